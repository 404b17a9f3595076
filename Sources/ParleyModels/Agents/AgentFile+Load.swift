internal import Glibc
internal import ParleySystem

extension AgentFile {
    /// The limit of a file: a page of instructions is a thousandth of it.
    private static let fileBytesMax = 1 << 20

    /// Reads every `<kind>.md` of a folder, in the order of their names. Hidden files and folders are passed over.
    ///
    /// A file with mistakes gives its problems and no agent; the others load. A folder that cannot be read is one problem.
    package static func loadAll(_ directory: String) -> (agents: [AgentFile], problems: [AgentFileProblem]) {
        var agents: [AgentFile] = []
        var problems: [AgentFileProblem] = []
        guard let names = markdownFiles(in: directory) else {
            let problem = "cannot be read: \(reason(errno))"
            return ([], [AgentFileProblem(file: directory, problem: problem, remedy: "make the folder, or name another one.")])
        }
        for name in names {
            switch load(directory + (directory.hasSuffix("/") ? "" : "/") + name) {
            case .agent(let agent): agents.append(agent)
            case .problems(let found): problems += found
            }
        }
        return (agents, problems)
    }

    /// Reads one file, whose name says the kind.
    package static func load(_ path: String) -> Outcome {
        let name = path.split(separator: "/").last ?? ""
        let kind = String(name.hasSuffix(".md") ? name.dropLast(3) : name)
        func fail(line: Int? = nil, _ problem: String, _ remedy: String) -> Outcome {
            .problems([AgentFileProblem(file: path, line: line, problem: problem, remedy: remedy)])
        }
        guard isRead(path) else {
            let remedy = name.hasPrefix(".") ? "take the dot away." : "name it <kind>.md."
            return fail("is a file that `parley serve` does not read", remedy)
        }
        guard let bytes = read(path) else { return fail("cannot be read: \(reason(errno))", "check its permissions.") }
        guard bytes.count <= fileBytesMax else { return fail("is longer than \(fileBytesMax >> 20) MiB", "make it shorter.") }
        do {
            _ = try UTF8Span(validating: bytes.span)
        } catch {
            let line = bytes[..<error.byteOffsets.lowerBound].count { $0 == UInt8(ascii: "\n") } + 1
            return fail(line: line, "is not UTF-8 text", "save it as UTF-8.")
        }
        return parse(bytes.text, kind: kind, file: path)
    }

    /// Whether a file of this name is one that declares agents.
    private static func isRead(_ path: String) -> Bool {
        let name = path.split(separator: "/").last ?? ""
        return name.hasSuffix(".md") && !name.hasPrefix(".")
    }

    /// The names of the folder's files; `nil` with `errno` set when it cannot be read.
    private static func markdownFiles(in directory: String) -> [String]? {
        guard let stream = opendir(directory) else { return nil }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            var status = stat()
            guard isRead(name) else { continue }
            // A link that leads nowhere stays in, so that reading it reports it.
            if stat(directory + "/" + name, &status) != 0 || status.st_mode & S_IFMT == S_IFREG { names.append(name) }
        }
        return names.sorted()
    }

    /// The bytes of a file, one more than `fileBytesMax` at most; `nil` with `errno` set when it cannot be read.
    private static func read(_ path: String) -> Bytes? {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var bytes = Bytes()
        var buffer = Bytes(repeating: 0, count: 64 << 10)
        while bytes.count <= fileBytesMax {
            let count = Glibc.read(file, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { return nil }
            guard count > 0 else { break }
            bytes += buffer[..<count]
        }
        return bytes
    }

    private static func reason(_ code: Int32) -> String { String(cString: strerror(code)) }
}
