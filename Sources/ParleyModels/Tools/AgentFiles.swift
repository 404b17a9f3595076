internal import FoundationEssentials
internal import Glibc
internal import ParleyAgents
internal import ParleySystem

/// The folders of agents: `<folder>/<kind>/<id>/`, out of which no path leads.
struct AgentFiles: Sendable {
    let folder: String

    private static let segmentsMax = 8
    private static let segmentBytesMax = 100
    private static let fileBytesMax = 1 << 20

    /// Writes a file, whole or not at all: a reader sees the old content or the new. Written again, it is the same.
    ///
    /// - Throws: `StepFailure` `file_not_written`, or as ``check(_:bytes:)``; the model is told why.
    func write(_ bytes: Bytes, to path: String, for channel: String) throws {
        try AgentFiles.check(path, bytes: bytes.count)
        let segments = AgentFiles.segments(path)
        guard let agent = AgentName(channel: channel) else { preconditionFailure("'\(channel)' is no agent's channel") }
        // Step by step and without following links: a planted link leads nowhere.
        var directory = try makeFolder()
        defer { close(directory) }
        // A kind or an id may be `..`.
        for name in ["kind-" + agent.kind, "id-" + agent.id] + segments.dropLast() {
            let next = try enter(name, in: directory, path)
            close(directory)
            directory = next
        }
        try replace(segments.last!, in: directory, bytes, path)
    }

    /// Checks a file before a person is asked to approve it.
    /// - Throws: `StepFailure` `invalid_path` or `file_too_large`.
    static func check(_ path: String, bytes: Int) throws(StepFailure) {
        guard bytes <= AgentFiles.fileBytesMax else {
            throw failure("file_too_large", "the text has \(bytes) bytes; the limit is \(AgentFiles.fileBytesMax)")
        }
        let segments = segments(path)
        guard segments.count <= AgentFiles.segmentsMax, segments.allSatisfy(AgentFiles.isSegment) else {
            throw failure(
                "invalid_path",
                "'\(path)' is no path of at most \(AgentFiles.segmentsMax) names of A-Z a-z 0-9 . _ - and space that do not begin with a dot"
            )
        }
    }

    private static func segments(_ path: String) -> [String] {
        path.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
    }

    private static func isSegment(_ text: String) -> Bool {
        (1...segmentBytesMax).contains(text.utf8.count) && !text.hasPrefix(".")
            && text.utf8.allSatisfy { byte in
                switch byte {
                case 48...57, 65...90, 97...122, UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"), UInt8(ascii: " "): true
                default: false
                }
            }
    }

    /// Removes the agent's folder with everything in it, following no link.
    /// - Throws: `StepFailure` `files_not_removed`.
    func remove(for channel: String) throws {
        guard let agent = AgentName(channel: channel) else { return }
        let path = "\(folder)/kind-\(agent.kind)/id-\(agent.id)"
        // Below the folder of its kind, by a name that holds no slash: nothing of another agent's is reached. Links are removed, not followed.
        guard access(path, F_OK) == 0 else { return }
        do { try FileManager.default.removeItem(atPath: path) } catch {
            throw AgentFiles.failure("files_not_removed", "'\(path)' cannot be removed: \(error)")
        }
    }

    private func makeFolder() throws -> Int32 {
        guard mkdir(folder, 0o700) == 0 || errno == EEXIST else { throw system("the folder for agents' files cannot be made") }
        let descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw system("the folder for agents' files cannot be opened") }
        return descriptor
    }

    private func enter(_ name: String, in directory: Int32, _ path: String) throws -> Int32 {
        guard mkdirat(directory, name, 0o700) == 0 || errno == EEXIST else { throw system("'\(path)' cannot be made") }
        let descriptor = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard descriptor >= 0 else { throw system("'\(path)' cannot be made") }
        return descriptor
    }

    private func replace(_ name: String, in directory: Int32, _ bytes: Bytes, _ path: String) throws {
        // With a dot in front: no path of an agent's can be that of the unfinished file.
        let unfinished = ".\(name).unfinished"
        let descriptor = openat(directory, unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw system("'\(path)' cannot be written") }
        defer { close(descriptor) }
        var written = 0
        while written < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress! + written, bytes.count - written) }
            guard count > 0 || errno == EINTR else { throw system("'\(path)' cannot be written") }
            written += max(0, count)
        }
        guard fsync(descriptor) == 0, renameat(directory, unfinished, directory, name) == 0, fsync(directory) == 0 else {
            throw system("'\(path)' cannot be written")
        }
    }

    private static func failure(_ code: String, _ message: String) -> StepFailure {
        StepFailure(code: code, message: message, retryable: false)
    }

    private func system(_ what: String) -> StepFailure {
        AgentFiles.failure("file_not_written", "\(what): \(String(cString: strerror(errno)))")
    }
}
