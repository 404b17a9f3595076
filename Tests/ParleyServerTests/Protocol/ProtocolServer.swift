import Foundation
import ParleyHTTP
import ParleyServer
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// The Durable Streams protocol, case by case. The cases know nothing of the inside of a server: they run against a ``ProtocolServer``,
/// and so against any, `./test --protocol <url>`.
///
/// Each of the protocol's demands on a server is a row of a table or a test in the file of its section:
///
/// | file | PROTOCOL.md, sections |
/// |---|---|
/// | `CreatingTests` | 5.1 create, 5.4 delete, 5.5 metadata, 12.7 browser security headers |
/// | `AppendingTests` | 5.2 append and `Stream-Seq`, 4.1 and 5.3 closing, 9.1 JSON mode |
/// | `ProducerTests` | 5.2.1 idempotent producers, also when they close |
/// | `ReadingTests` | 5.6 catch-up, 5.7 long-poll, 8 offsets, 10.1 caching, ETags and cursors |
/// | `EventTests` | 5.8 and 10.2 server-sent events |
/// | `LifetimeTests` | 5.1 `Stream-TTL` and `Stream-Expires-At`, 4.2 those of forks |
/// | `ForkTests` | 4.2 forks, and what 5.7, 5.8, 8 and 9.1 say of them |
/// | `SubscriptionTests` | 6 and 7 subscriptions, 12.8 URLs of webhooks, 12.9 tokens |
/// | `PropertyTests` | for any data and many at once: 4 order and immutability, 8, `Stream-Seq`, 5.2.1, 9.1, 4.2 |
@Suite enum DurableStreams {}

/// The server that the protocol's cases ask: one in this process, or the one at `PARLEY_SUITE_URL`, with the bearer key `PARLEY_SUITE_KEY`
/// if it wants one.
///
/// The URL is `http://host[:port][/path]`; streams are made below the path, by default `/v1/stream`.
final class ProtocolServer: ServerUnderTest {
    static let shared = try! ProtocolServer()

    let root: String
    /// Whether answers are checked against Parley's own choices as well as the protocol: which of several statuses, the code of an error, JSON byte
    /// for byte.
    let isOurs: Bool
    /// The header fields of requests besides their own.
    let headers: [(String, String)]
    private let host: String
    private let port: Int
    private let own: TestServer?

    private init() throws {
        guard let text = environment("PARLEY_SUITE_URL") else {
            let server = try TestServer {
                $0.pageBytes = 1_024
                $0.longPollTimeout = .seconds(5)
            }
            (own, isOurs, headers, host, port, root) = (server, true, [], "127.0.0.1", server.port, server.root)
            return
        }
        guard let url = try? OutgoingURL(text), url.scheme == "http" else {
            throw TestFailure("PARLEY_SUITE_URL is '\(text)'; expected http://host[:port][/path]")
        }
        (own, isOurs, host) = (nil, false, url.host)
        port = url.origin.split(separator: ":").dropFirst(2).last.flatMap { Int($0) } ?? 80
        let path = text.split(separator: "/", omittingEmptySubsequences: true).dropFirst(2).joined(separator: "/")
        root = "/" + (path.isEmpty ? "v1/stream" : path) + "/"
        headers = environment("PARLEY_SUITE_KEY").map { [("Authorization", "Bearer \($0)")] } ?? []
    }

    func connect() throws -> TestClient { try TestClient(host: host, port: port, headers: headers, patience: isOurs ? 10 : 40) }
}

/// The server that a test asks over HTTP.
protocol ServerUnderTest: Sendable {
    /// The beginning of the paths of streams.
    var root: String { get }
    func connect() throws -> TestClient
}

/// No two paths of a run, nor of two runs, are the same: a server may keep its streams.
private let run = String(UInt32.random(in: .min ... .max), radix: 36)
private let names = Atomic(0)

extension ServerUnderTest {
    /// A path that no other test has.
    func path(_ hint: String = "s") -> String { "\(root)\(hint)-\(run)-\(names.add(1, ordering: .relaxed).newValue)" }

    /// One request on a connection of its own.
    func request(
        _ method: String, _ path: String, _ headers: [(String, String)] = [], _ body: Bytes = []
    ) throws -> TestClient.Answer {
        try connect().request(method, path, headers, body)
    }

    func request(_ method: String, _ path: String, _ headers: [(String, String)] = [], _ body: String) throws -> TestClient.Answer {
        try request(method, path, headers, Bytes(body.utf8))
    }

    /// Makes a stream, with data if there is some, and returns its path.
    func stream(_ type: String = "text/plain", _ body: String = "", closed isClosed: Bool = false) throws -> String {
        let path = path()
        let answer = try request("PUT", path, [("Content-Type", type)] + (isClosed ? closed : []), body)
        guard answer.status == 201 else { throw TestFailure("PUT \(path) answers \(answer.status): \(answer.text)") }
        return path
    }

    @discardableResult
    func post(_ path: String, _ body: String, _ type: String = "text/plain", _ headers: [(String, String)] = []) throws -> TestClient.Answer
    {
        try request("POST", path, [("Content-Type", type)] + headers, body)
    }

    func get(_ path: String, _ headers: [(String, String)] = []) throws -> TestClient.Answer { try request("GET", path, headers) }

    func tail(_ path: String) throws -> String { try request("HEAD", path).headers["stream-next-offset"] ?? "" }

    /// Everything from `offset` to the tail, page by page.
    func read(_ path: String, from offset: String = "-1", on client: TestClient? = nil) throws -> Bytes {
        let client = try client ?? connect()
        var (offset, read) = (offset, Bytes())
        while true {
            let page = try client.request("GET", path + "?offset=\(offset)")
            guard page.status == 200, !page.next.isEmpty else { throw TestFailure("GET \(path) answers \(page.status): \(page.text)") }
            guard page.next >= offset || offset == "-1" else { throw TestFailure("GET \(path): \(page.next) comes after \(offset)") }
            read += page.body
            if page.headers["stream-up-to-date"] == "true" || (page.body.isEmpty && page.next == offset) { return read }
            offset = page.next
        }
    }

    /// A reader of events, past the head of the answer.
    func follow(_ path: String, _ query: String = "?offset=-1&live=sse", _ headers: [(String, String)] = []) throws -> TestClient {
        let client = try connect()
        try client.send("GET", path + query, headers)
        let head = try client.head()
        guard head.status == 200 else { throw TestFailure("GET \(path)\(query) answers \(head.status)") }
        return client
    }

    /// The events for a reader up to the tail: of a closed stream, up to the event that says so.
    func events(_ path: String, _ query: String = "?offset=-1&live=sse", _ headers: [(String, String)] = []) throws -> [TestClient.Event] {
        let isClosed = try request("HEAD", path).headers["stream-closed"] == "true"
        return try follow(path, query, headers).events { $0[isClosed ? "streamClosed" : "upToDate"] == true }
    }

    /// Asks again until it is so.
    func eventually(_ what: String, _ isMet: () throws -> Bool) throws {
        try RealTime.until(what, isMet)
    }
}

private func environment(_ name: String) -> String? { ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 } }
