package import ParleyHTTP
package import ParleySystem

/// HTTP as a test speaks it to a node in another process.
package enum EndToEndHTTP {
    package struct Answer: Sendable {
        package var status = 0
        package var headers: [(name: String, value: String)] = []
        package var body = Bytes()

        package var json: JSON? { try? JSON.parse(body) }
        package var text: String { body.text }
        package func header(_ name: String) -> String? { headers.first { $0.name.lowercased() == name.lowercased() }?.value }
    }

    /// For all tests of the process.
    package static let transport: CurlTransport = {
        let loop = EventLoop(name: "tests")
        loop.start()
        return CurlTransport(loop)
    }()

    /// One request and its whole answer.
    /// - Throws: `OutgoingError` when no answer comes, or it breaks off.
    package static func request(
        _ method: String, _ url: String, _ headers: [(name: String, value: String)] = [], _ body: String = ""
    ) throws -> Answer {
        var request = OutgoingRequest(method: method, url: url, headers: headers, body: Bytes(body.utf8))
        request.connectTimeout = .seconds(10)
        request.idleTimeout = .seconds(60)
        let call = WholeCall()
        _ = transport.start(request, call)
        return try call.wait()
    }

    private final class WholeCall: OutgoingCallDelegate {
        private let state = Monitor<(answer: Answer, result: Result<Void, OutgoingError>?)>((Answer(), nil))

        func received(status: Int, headers: [(name: String, value: String)]) {
            state.withLock { ($0.answer.status, $0.answer.headers) = (status, headers) }
        }

        func received(body: UnsafeRawBufferPointer) { state.withLock { $0.answer.body.append(contentsOf: body) } }

        func ended(_ error: OutgoingError?) {
            state.withLock(signalAll: true) { $0.result = error.map { .failure($0) } ?? .success(()) }
        }

        func wait() throws -> Answer { try state.wait { state in state.result.map { $0.map { state.answer } } }!.get() }
    }
}

/// A thread of a test's own: a test that waits must not hold one of Swift's pool, of which there are as many as cores.
package final class OwnThread: TaskExecutor {
    package func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        _ = SystemThread(name: "test") { job.runSynchronously(on: self.asUnownedTaskExecutor()) }
    }

    /// Runs `body`, which may block, on such a thread, still as part of the calling task.
    package static func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
        try await withTaskExecutorPreference(OwnThread()) { try await detour(body) }
    }

    /// A concurrent function follows the preference; a closure without a hop may stay where it was called.
    @concurrent private static func detour<Value: Sendable>(_ body: @Sendable () throws -> Value) async throws -> Value { try body() }
}
