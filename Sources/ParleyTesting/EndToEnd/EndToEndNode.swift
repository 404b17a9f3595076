internal import FoundationEssentials
internal import Glibc
package import ParleySystem
internal import Synchronization

/// A node in a process of its own on folders of its own, which a test kills and starts again, always on the same port.
package final class EndToEndNode: Sendable {
    package let folder: String
    package let port: Int
    private let executable: String
    private let environment: [String: String]
    private let kept: [any Sendable]
    private let running = Mutex<ChildProcess?>(nil)

    /// - Parameters:
    ///   - executable: Its name beside the test bundle.
    ///   - agents: Files for the agents folder: name and text.
    ///   - keeping: An object that the node needs as long as it is there: the upstream it calls.
    package init(
        _ executable: String = "parley", agents: [String: String] = [:], environment: [String: String] = [:], keeping: any Sendable...
    ) throws {
        self.executable = Products.path(executable)
        kept = keeping
        self.environment = environment
        folder = try TemporaryFolder.make()
        port = FreePort.take()
        try FileManager.default.createDirectory(atPath: agentsFolder, withIntermediateDirectories: true)
        for (name, text) in agents { try Data(text.utf8).write(to: URL(filePath: "\(agentsFolder)/\(name)")) }
    }

    deinit {
        running.withLock { $0 = nil }
        try? FileManager.default.removeItem(atPath: folder)
    }

    package var dataFolder: String { folder + "/data" }
    package var agentsFolder: String { folder + "/agents" }
    package var url: String { "http://127.0.0.1:\(port)" }

    /// The process that runs now, or ran last.
    package var process: ChildProcess {
        get throws {
            guard let process = running.withLock({ $0 }) else { throw Missed("the node was never started") }
            return process
        }
    }

    /// Starts the node without waiting for anything.
    ///
    /// - Parameters:
    ///   - failpoint: The place at which it is to die: `<name>:<n>`.
    ///   - changes: Variables of this process's environment that differ from those of the others.
    @discardableResult
    package func launch(
        failpoint: String? = nil, options: [String] = [], environment changes: [String: String] = [:], mayReadAnything: Bool = true
    ) throws -> ChildProcess {
        let isCommand = executable.hasSuffix("/parley")
        let arguments =
            (isCommand ? ["serve"] : []) + ["--listen", "127.0.0.1:\(port)", "--data", dataFolder, "--agents", agentsFolder] + options
        var environment = environment.merging(changes) { $1 }
        environment["PARLEY_FAILPOINT"] = failpoint
        environment["STEPS_FILE"] = stepsFile
        let process = try ChildProcess(executable, arguments, environment: environment, mayReadAnything: mayReadAnything)
        running.withLock { $0 = process }
        return process
    }

    /// Starts the node and waits until it serves.
    package func start(failpoint: String? = nil, options: [String] = [], environment changes: [String: String] = [:]) throws {
        try launch(failpoint: failpoint, options: options, environment: changes)
        try awaitServing()
    }

    /// Waits until the process that was launched serves.
    package func awaitServing() throws {
        try process.wait("the node to serve") { output in
            if output.error.contains("serving http://") { return true }
            if let exit = output.exit { throw Missed("the node ended at its start: \(exit)\n\(output.error)") }
            return nil
        }
    }

    /// `kill -9`.
    package func kill() throws { try process.kill() }

    // MARK: Requests

    package func request(
        _ method: String, _ path: String, _ headers: [(name: String, value: String)] = [], _ body: String = ""
    ) throws -> EndToEndHTTP.Answer {
        try EndToEndHTTP.request(method, url + path, headers, body)
    }

    /// Sends a message to an agent; gives its offset.
    package func send(_ text: String, to agent: String, key: String? = nil) throws -> String {
        var headers = [(name: "Content-Type", value: "application/json")]
        if let key { headers.append((name: "Idempotency-Key", value: key)) }
        let answer = try request("POST", "/v1/agents/\(agent)", headers, JSON.compact(("type", "message"), ("text", .string(text))).text)
        guard answer.status == 202, let offset = answer.json?["entries"]?.array?.first?["offset"]?.string else {
            throw Missed("POST to \(agent) answers \(answer.status): \(answer.text)")
        }
        return offset
    }

    /// All entries of an agent's channel after `offset`, by reading page after page.
    package func entries(_ agent: String, from offset: String = "-1", view: String = "raw") throws -> [JSON] {
        var (entries, next): ([JSON], String) = ([], offset)
        while true {
            let answer = try request("GET", "/v1/stream/agents/\(agent)?offset=\(next)&view=\(view)")
            guard answer.status == 200, let page = answer.json?.array, let following = answer.header("Stream-Next-Offset") else {
                throw Missed("reading \(agent) from \(next) answers \(answer.status): \(answer.text)")
            }
            entries += page
            next = following
            if answer.header("Stream-Up-To-Date") == "true" { return entries }
        }
    }

    // MARK: The test agent's side file

    /// The file in which `steps-agent` writes a line whenever the body of a step runs.
    package var stepsFile: String { folder + "/steps" }

    /// How often the body of each step ran so far, by idempotency key.
    package var stepRuns: [String: Int] {
        let text = (try? String(contentsOf: URL(filePath: stepsFile), encoding: .utf8)) ?? ""
        return text.split(separator: "\n").reduce(into: [:]) { $0[String($1), default: 0] += 1 }
    }
}

/// The programs that were built beside the tests.
package enum Products {
    /// The folder that holds the test bundle and the executables.
    package static let folder: String = {
        var path = [CChar](repeating: 0, count: 4_096)
        let count = max(0, readlink("/proc/self/exe", &path, path.count - 1))
        let own = String(decoding: path[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let bundle = ([own] + CommandLine.arguments).first { $0.hasSuffix(".xctest") } ?? own
        return String(bundle[..<(bundle.lastIndex(of: "/") ?? bundle.endIndex)])
    }()

    package static func path(_ name: String) -> String { "\(folder)/\(name)" }
}

package enum TemporaryFolder {
    /// Makes an empty folder that no other test has.
    package static func make() throws -> String {
        let path = FileManager.default.temporaryDirectory.path + "/parley-test-\(UUID().uuidString.prefix(13).lowercased())"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        return path
    }
}

/// Ports that a node can be started on again and again.
package enum FreePort {
    private static let taken = Mutex<Set<Int>>([])

    /// A port below those that the kernel gives to outgoing connections: while the node is down, a client that tries again could otherwise
    /// be given that very port, and connect to itself.
    package static func take() -> Int {
        while true {
            let port = Int.random(in: 20_000..<32_000)
            if taken.withLock({ $0.insert(port).inserted }), isFree(port) { return port }
        }
    }

    private static func isFree(_ port: Int) -> Bool {
        let descriptor = socket(AF_INET, SocketType.stream | SocketType.closesOnExec, 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(port).bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0 }
        }
    }
}
