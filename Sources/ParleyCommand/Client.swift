internal import Glibc
internal import ParleyHTTP
internal import ParleyServer
internal import ParleySystem
internal import Synchronization

/// Talks to a server from the command line: whole answers, or the events of a channel, which it follows through every break.
final class Client: Sendable {
    let baseURL: String
    private let loop: EventLoop
    private let transport: CurlTransport
    /// The key or token that every request shows.
    private let bearer: String?
    /// The rights that the command needs on its channel; empty: those that each request needs.
    let needs: [Verb]

    /// - Parameter needs: All verbs of a command that sends several requests, for the token that a refusal suggests.
    init(_ arguments: Arguments, needs: [Verb] = []) throws(UsageError) {
        self.needs = needs
        var url = arguments["server"] ?? Terminal.environment("PARLEY_URL") ?? "http://127.0.0.1:4437"
        while url.hasSuffix("/") { url.removeLast() }
        do { _ = try OutgoingURL(url) } catch {
            throw UsageError("the server is '\(url)'; expected a URL such as http://127.0.0.1:4437 (--server or PARLEY_URL).")
        }
        baseURL = url
        let authorities = Terminal.environment("PARLEY_CA_FILE")
        if let authorities, access(authorities, R_OK) != 0 {
            throw UsageError(
                "PARLEY_CA_FILE is '\(authorities)', which cannot be read: \(String(cString: strerror(errno))). Expected a file of certificates (PEM).",
                showsUsage: false)
        }
        bearer = try Bearer.find(arguments)
        loop = EventLoop(name: "client")
        loop.start()
        // For servers whose certificate the system does not trust, such as one that is self-signed.
        transport = CurlTransport(loop, authorityFile: authorities)
    }

    struct Answer: Sendable {
        var status: Int
        var headers: [(name: String, value: String)]
        var body: Bytes

        func header(_ name: String) -> String? { headers.first { $0.name.lowercased() == name.lowercased() }?.value }
        var json: JSON? { try? JSON.parse(stored: body) }
    }

    /// Whether it shows a token, which may be for a part of what there is.
    var showsToken: Bool { bearer?.hasPrefix("parley_") ?? false }

    /// The options that curl needs besides the URL.
    var curlOptions: String { bearer == nil ? "" : "-H \"Authorization: Bearer $PARLEY_TOKEN\" " }

    private var authorization: [(name: String, value: String)] { bearer.map { [("Authorization", "Bearer \($0)")] } ?? [] }

    /// One request and its whole answer.
    /// - Parameter patience: How long the server may take until it answers.
    func request(
        _ method: String, _ path: String, headers: [(name: String, value: String)] = [], body: Bytes = [],
        patience: Duration = .seconds(120)
    ) throws -> Answer {
        var request = OutgoingRequest(method: method, url: baseURL + path, headers: headers + authorization, body: body)
        request.connectTimeout = .seconds(5)
        request.firstByteTimeout = patience
        let call = WholeCall()
        _ = transport.start(request, call)
        return try named { try call.wait() }
    }

    /// Adds the remedy to an error of the connection.
    private func named<Value>(_ body: () throws -> Value) throws -> Value {
        do { return try body() } catch let error as OutgoingError { throw named(error) }
    }

    private func named(_ error: OutgoingError) -> any Error {
        if error.reason.contains("HTTP/0.9") {
            return FollowError("what answers at \(baseURL) is not a Parley server. Name another with --server or PARLEY_URL.")
        }
        guard error.code == "upstream_unreachable" else {
            return Disconnected(description: "the connection to the server at \(baseURL) broke: \(error.reason).")
        }
        if error.reason.contains("wrong version number") {
            return FollowError("the server at \(baseURL) does not speak TLS: name it with http:// instead of https://.")
        }
        if baseURL.hasPrefix("https://"), error.reason.contains("SSL") || error.reason.contains("certificate") {
            return FollowError(mistrust(error.reason))
        }
        return Unreachable(
            description: "no server answers at \(baseURL). Start one with `parley serve`, or name another with --server or PARLEY_URL.")
    }

    /// Says why the server's certificate is refused, and what helps.
    private func mistrust(_ reason: String) -> String {
        if reason.contains("subject name") {
            return
                "the certificate of \(baseURL) is for another host: \(reason). Name the server as its certificate does: --server or PARLEY_URL."
        }
        let remedy =
            Terminal.environment("PARLEY_CA_FILE").map {
                "PARLEY_CA_FILE is '\($0)'; expected a PEM file with the certificate of the authority that signed it, or with that certificate itself."
            }
            ?? "PARLEY_CA_FILE names a PEM file of authorities to trust besides the system's."
        return "the certificate of \(baseURL) is not trusted: \(reason). \(remedy)"
    }

    /// The connection broke before the answer, so it is unknown whether the server has seen the request.
    struct Disconnected: Error, CustomStringConvertible {
        let description: String
    }

    /// The server could not be connected to, so it has not seen the request.
    struct Unreachable: Error, CustomStringConvertible {
        let description: String
    }

    /// As ``request(_:_:headers:body:)``, but retries for a while when the connection breaks before the answer, which is safe for requests with
    /// an idempotency key. Fails at once when no server is there.
    func requestPatiently(_ method: String, _ path: String, headers: [(name: String, value: String)], body: Bytes) throws -> Answer {
        var pause = Duration.milliseconds(100)
        var wasReached = false
        while true {
            do { return try request(method, path, headers: headers, body: body) } catch {
                wasReached = wasReached || !(error is Unreachable)
                guard wasReached, pause < .seconds(5) else { throw error }
                Pause.wait(pause)
                pause *= 2
            }
        }
    }

    /// Returns an unused `Idempotency-Key`.
    static func newIdempotencyKey() -> String { hexadecimal((0..<16).map { _ in UInt8.random(in: .min ... .max) }) }

    /// Calls `interrupted` on Ctrl-C, and then ends the process by that signal.
    func onInterrupt(_ interrupted: @escaping @Sendable () -> Void) {
        let watcher = SignalWatcher(loop, signals: [SIGINT]) { _ in
            interrupted()
            // By the signal and not by a status: a shell that runs a loop of commands ends the loop, too.
            signal(SIGINT, SIG_DFL)
            kill(getpid(), SIGINT)
        }
        watcher.waitUntilListening()
    }

    /// Streams one answer; passes its head and the pieces of its body to `take` until it ends or `take` returns false.
    func stream(_ path: String, headers: [(name: String, value: String)], _ take: @escaping @Sendable (Answer, Bytes) -> Bool) throws {
        var request = OutgoingRequest(url: baseURL + path, headers: headers + authorization)
        request.connectTimeout = .seconds(5)
        // The server sends a heartbeat every 15 seconds.
        request.idleTimeout = .seconds(40)
        let call = StreamedCall(take)
        let running = transport.start(request, call)
        defer { running.cancel() }
        try named { try call.wait() }
    }
}

/// Waits for moments, off any event loop: a command line has nothing else to do.
enum Pause {
    private static let nothing = Monitor(())
    static func wait(_ duration: Duration) { _ = nothing.wait(timeout: duration) { _ in nil as Void? } }
}

private final class WholeCall: OutgoingCallDelegate {
    private struct State {
        var answer = Client.Answer(status: 0, headers: [], body: [])
        var result: Result<Void, OutgoingError>?
    }

    private let state = Monitor(State())

    func received(status: Int, headers: [(name: String, value: String)]) {
        state.withLock { ($0.answer.status, $0.answer.headers) = (status, headers) }
    }

    func received(body: UnsafeRawBufferPointer) { state.withLock { $0.answer.body.append(contentsOf: body) } }

    func ended(_ error: OutgoingError?) {
        state.withLock(signal: true) { $0.result = error.map { .failure($0) } ?? .success(()) }
    }

    func wait() throws -> Client.Answer {
        try state.wait { state in state.result.map { result in result.map { state.answer } } }!.get()
    }
}

private final class StreamedCall: OutgoingCallDelegate {
    private struct State {
        var head = Client.Answer(status: 0, headers: [], body: [])
        var isOver = false
        var error: OutgoingError?
    }

    private let state = Monitor(State())
    private let take: @Sendable (Client.Answer, Bytes) -> Bool

    init(_ take: @escaping @Sendable (Client.Answer, Bytes) -> Bool) { self.take = take }

    func received(status: Int, headers: [(name: String, value: String)]) {
        state.withLock { $0.head = Client.Answer(status: status, headers: headers, body: []) }
    }

    func received(body: UnsafeRawBufferPointer) {
        let (head, isOver) = state.withLock { ($0.head, $0.isOver) }
        guard !isOver, !take(head, Bytes(body)) else { return }
        state.withLock(signal: true) { $0.isOver = true }
    }

    func ended(_ error: OutgoingError?) {
        state.withLock(signal: true) { state in
            if !state.isOver { state.error = error }
            state.isOver = true
        }
    }

    func wait() throws {
        if let error = state.wait({ state in state.isOver ? .some(state.error) : nil })! { throw error }
    }
}
