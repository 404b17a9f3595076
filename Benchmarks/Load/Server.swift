internal import Glibc

/// A server that a benchmark starts itself, to see how long that takes; it never outlives this program.
final class Server {
    let pid: Int32
    let port: UInt16
    /// The time from the start of the program until it reports that it serves, in milliseconds.
    let startMilliseconds: Double
    private let output: Int32
    private var isRunning = true

    /// - Parameter words: The program and its arguments; its environment is this program's own.
    init(_ words: [String]) {
        var ends: [Int32] = [0, 0]
        check(pipe(&ends), "pipe")
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO)
        posix_spawn_file_actions_addclose(&actions, ends[0])
        posix_spawn_file_actions_addclose(&actions, ends[1])
        defer { posix_spawn_file_actions_destroy(&actions) }
        // `setpriv` becomes the program: the process id stays.
        let arguments = (["setpriv", "--pdeathsig", "KILL", "--"] + words).map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var pid: pid_t = 0
        let start = Clock.now
        check(-posix_spawnp(&pid, "setpriv", &actions, nil, arguments, environ), "start \(words[0])")
        Glibc.close(ends[1])
        self.pid = pid
        output = ends[0]
        var said: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while true {
            let count = read(output, &buffer, buffer.count)
            guard count > 0 else { fail("\(words[0]) did not start: \(String(decoding: said, as: UTF8.self))") }
            said.append(contentsOf: buffer[..<count])
            if let port = Server.port(in: String(decoding: said, as: UTF8.self)) {
                self.port = port
                break
            }
        }
        startMilliseconds = Double(Clock.now - start) / 1e6
    }

    private static func port(in text: String) -> UInt16? {
        for line in text.split(separator: "\n") where line.contains("serving http://127.0.0.1:") {
            let digits = line.split(separator: ":").dropFirst(3).first?.prefix { $0.isNumber }
            return digits.flatMap { UInt16($0) }
        }
        return nil
    }

    /// Sends the signal and waits for the end.
    func stop(_ signal: Int32 = SIGTERM) {
        guard isRunning else { return }
        isRunning = false
        kill(pid, signal)
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        Glibc.close(output)
    }

    /// Resident memory in MiB.
    var residentMegabytes: Double {
        let status = Usage.read("/proc/\(pid)/status")
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
        return line?.split(separator: " ").dropFirst().first.flatMap { Double($0) }.map { $0 / 1_024 } ?? .nan
    }

    /// A number that the server counts.
    func metric(_ name: String) -> Double {
        let connection = Connection(port: port)
        defer { connection.close() }
        let answer = connection.request(Array("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8), HTTPAnswer.length)
        let line = String(decoding: answer, as: UTF8.self).split(whereSeparator: \.isNewline).first { $0.hasPrefix(name + " ") }
        return line.flatMap { Double($0.dropFirst(name.count + 1)) } ?? .nan
    }
}

/// A request to append one entry to an agent's channel.
func post(_ entry: String, to agent: String) -> [UInt8] {
    Array(
        ("POST /v1/agents/\(agent) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            + "Content-Length: \(entry.utf8.count)\r\n\r\n" + entry).utf8)
}

/// SplitMix64: the same numbers from the same seed.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: Int) { state = UInt64(seed) }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
        return mixed ^ mixed >> 31
    }
}
