package import Glibc
internal import ParleySystem

/// A process that a test starts, whose output it reads as it comes, and which never outlives the test.
///
/// It is killed when this value goes away, and by the kernel should the test's own process die.
package final class ChildProcess: Sendable {
    package enum Exit: Sendable, Equatable {
        case status(Int32)
        case signal(Int32)
    }

    package struct Output: Sendable {
        /// Its standard output so far.
        package var standard = ""
        /// Its standard error so far.
        package var error = ""
        /// How it ended; its output is complete then.
        package var exit: Exit?
    }

    package let pid: pid_t
    private let state: Monitor<Output>

    /// Starts `executable` with these arguments. It gets all of the test's own environment but the variables that configure Parley.
    ///
    /// - Parameter mayReadAnything: Whether it keeps root's right to read what its mode forbids; no matter for other users.
    package init(
        _ executable: String, _ arguments: [String] = [], environment: [String: String] = [:], mayReadAnything: Bool = true
    ) throws {
        // `setpriv` sets what `posix_spawn` cannot, and then becomes the program: the process id stays.
        var words = ["setpriv", "--pdeathsig", "KILL"]
        if !mayReadAnything && getuid() == 0 { words += ["--bounding-set", "-dac_override,-dac_read_search"] }
        words += ["--", executable] + arguments
        let started = try Spawner.shared.spawn(words, ChildProcess.environment(environment))
        let state = Monitor(Output())
        (pid, self.state) = (started.pid, state)
        _ = SystemThread(name: "child-output") { ChildProcess.read(started, into: state) }
    }

    deinit { send(SIGKILL) }

    package var output: Output { state.withLock { $0 } }

    /// Sends a signal, unless the process has ended.
    package func send(_ signal: Int32) {
        // Under the lock, in which it is reaped: the number cannot belong to another process meanwhile.
        state.withLock { if $0.exit == nil { _ = Glibc.kill(pid, signal) } }
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    package func kill() throws {
        send(SIGKILL)
        try waitForExit("the process to be gone after SIGKILL")
    }

    /// Waits until `find` makes something of what the process has written, or of its end.
    ///
    /// - Throws: ``Missed`` with `phase` and what the process said, when it does not in time.
    @discardableResult
    package func wait<Value>(_ phase: String, timeout: Duration = .seconds(60), _ find: (Output) throws -> Value?) throws -> Value {
        var failure: (any Error)?
        let found = state.wait(timeout: timeout) { output -> Value? in
            do { return try find(output) } catch {
                failure = error
                return nil
            }
        }
        if let found { return found }
        if let failure { throw failure }
        throw Missed("waited \(timeout) for \(phase); standard error was:\n\(output.error)")
    }

    /// Waits for the end of the process and its output.
    @discardableResult
    package func waitForExit(_ phase: String, timeout: Duration = .seconds(60)) throws -> Exit {
        try wait(phase, timeout: timeout) { $0.exit }
    }

    // MARK: Output

    private static func read(_ started: Spawner.Started, into state: Monitor<Output>) {
        var descriptors = [started.output, started.error].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        var collected: [Bytes] = [[], []]
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 1)
        defer { buffer.deallocate() }
        while descriptors.contains(where: { $0.fd >= 0 }) {
            guard poll(&descriptors, nfds_t(descriptors.count), -1) >= 0 || errno == EINTR else { break }
            for index in descriptors.indices where descriptors[index].fd >= 0 && descriptors[index].revents != 0 {
                let count = Glibc.read(descriptors[index].fd, buffer.baseAddress, buffer.count)
                if count > 0 {
                    collected[index].append(contentsOf: UnsafeRawBufferPointer(rebasing: buffer[..<count]))
                    state.withLock(signalAll: true) { ($0.standard, $0.error) = (collected[0].text, collected[1].text) }
                } else if count == 0 || errno != EINTR {
                    close(descriptors[index].fd)
                    descriptors[index].fd = -1
                }
            }
        }
        // First seen, then reaped under the lock: see `send`.
        var seen = siginfo_t()
        while waitid(P_PID, id_t(started.pid), &seen, WEXITED | WNOWAIT) != 0 && errno == EINTR {}
        state.withLock(signalAll: true) { output in
            var status: Int32 = 0
            waitpid(started.pid, &status, 0)
            output.exit = status & 0x7F == 0 ? .status(status >> 8 & 0xFF) : .signal(status & 0x7F)
        }
    }

    /// The settings of the person who runs the tests must not decide what they find.
    private static func environment(_ added: [String: String]) -> [String] {
        var variables: [String] = []
        var next = environ
        while let entry = next.pointee {
            variables.append(String(cString: entry))
            next += 1
        }
        let foreign = ["PARLEY_", "OPENAI_", "ANTHROPIC_", "http_proxy=", "HTTP_PROXY=", "all_proxy=", "ALL_PROXY="]
        variables.removeAll { variable in
            foreign.contains { variable.hasPrefix($0) } || added.keys.contains { variable.hasPrefix($0 + "=") }
        }
        return variables + added.map { "\($0.key)=\($0.value)" }
    }
}

/// Something a test waited for and did not get.
package struct Missed: Error, CustomStringConvertible {
    package var description: String
    package init(_ description: String) { self.description = description }
}

/// Starts all child processes from one thread that never ends: the kernel kills a child when the *thread* that started it goes.
private final class Spawner: Sendable {
    struct Started: Sendable {
        var pid: pid_t
        var output: Int32
        var error: Int32
    }

    private final class Request: Sendable {
        let words: [String]
        let environment: [String]
        let result = Monitor<Result<Started, Missed>?>(nil)

        init(_ words: [String], _ environment: [String]) { (self.words, self.environment) = (words, environment) }
    }

    static let shared = Spawner()
    private let requests = Monitor<[Request]>([])

    private init() {
        let requests = requests
        _ = SystemThread(name: "spawner") {
            while true {
                let request = requests.wait { $0.isEmpty ? nil : $0.removeFirst() }!
                let result = Result { () throws(Missed) in try Spawner.start(request) }
                request.result.withLock(signalAll: true) { $0 = result }
            }
        }
    }

    func spawn(_ words: [String], _ environment: [String]) throws -> Started {
        let request = Request(words, environment)
        requests.withLock(signal: true) { $0.append(request) }
        return try request.result.wait { $0 }!.get()
    }

    private static func start(_ request: Request) throws(Missed) -> Started {
        var (output, error): ([Int32], [Int32]) = ([0, 0], [0, 0])
        guard pipe(&output) == 0, pipe(&error) == 0 else { throw Missed("no pipe: \(String(cString: strerror(errno)))") }
        // No other child may hold an end: it would keep the pipe open. (Glibc's module does not have pipe2.)
        for descriptor in output + error { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
        defer {
            close(output[1])
            close(error[1])
        }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output[1], 1)
        posix_spawn_file_actions_adddup2(&actions, error[1], 2)
        // The signals that this thread blocks and ignores are no concern of the child's.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        let arguments = request.words.map { strdup($0) } + [nil]
        let environment = request.environment.map { strdup($0) } + [nil]
        defer { for text in arguments + environment { free(text) } }
        var pid = pid_t()
        let status = posix_spawnp(&pid, request.words[0], &actions, &attributes, arguments, environment)
        guard status == 0 else {
            close(output[0])
            close(error[0])
            throw Missed("cannot start \(request.words[0]): \(String(cString: strerror(status)))")
        }
        return Started(pid: pid, output: output[0], error: error[0])
    }
}
