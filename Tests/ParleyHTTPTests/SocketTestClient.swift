import Glibc
import ParleySystem

@testable import ParleyHTTP

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// A blocking connection to a server under test. Every wait has a limit and says what it waited for.
final class TestClient {
    struct Answer {
        var status = 0
        var headers: [String: String] = [:]
        var body = Bytes()
        var text: String { body.text }
    }

    private let descriptor: Int32
    fileprivate var input = Bytes()
    private var isClosed = false

    /// - Parameter receiveBuffer: A small one makes a slow reader.
    init(port: Int, host: String = "127.0.0.1", receiveBuffer: Int32? = nil) throws {
        var hints = addrinfo()
        hints.ai_flags = AI_NUMERICHOST
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(host, String(port), &hints, &found) == 0, let address = found else { throw TestFailure("no address \(host)") }
        defer { freeaddrinfo(found) }
        descriptor = socket(address.pointee.ai_family, SocketType.stream | SocketType.closesOnExec, 0)
        var limit = timeval(tv_sec: 10, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var noDelay: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &noDelay, 4)
        if var receiveBuffer { setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &receiveBuffer, 4) }
        guard connect(descriptor, address.pointee.ai_addr, address.pointee.ai_addrlen) == 0 else {
            throw TestFailure("cannot connect to port \(port): errno \(errno)")
        }
    }

    deinit { close() }

    func close() {
        if !isClosed { Glibc.close(descriptor) }
        isClosed = true
    }

    func setSendTimeout(seconds: Int) {
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    func finishSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    func send(_ text: String) throws { try send(text.latin1) }

    func send(_ bytes: Bytes) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { throw TestFailure("cannot send: errno \(errno)") }
            sent += count
        }
    }

    /// Reads until the answer is complete. Without length or chunks it ends with the connection.
    func answer(toHead isHead: Bool = false, _ phase: String = "an answer") throws -> Answer {
        let head = try read(through: "\r\n\r\n", phase)
        var answer = Answer()
        let lines = head.text.split(separator: "\r\n")
        answer.status = Int(lines[0].split(separator: " ")[1])!
        for line in lines.dropFirst() {
            let parts = line.split(separator: ":", maxSplits: 1)
            answer.headers[parts[0].lowercased()] = parts.count > 1 ? String(parts[1].drop { $0 == " " }) : ""
        }
        if isHead || answer.status == 204 || answer.status < 200 { return answer }
        if let length = answer.headers["content-length"] {
            answer.body = try read(count: Int(length)!, phase)
        } else if answer.headers["transfer-encoding"] == "chunked" {
            while true {
                let size = Int(try read(through: "\r\n", phase).text.dropLast(1), radix: 16)!
                if size == 0 { break }
                answer.body += try read(count: size, phase)
                _ = try read(count: 2, phase)
            }
            _ = try read(count: 2, phase)
        } else {
            answer.body = try readToEnd(phase)
        }
        return answer
    }

    func read(through end: String, _ phase: String) throws -> Bytes {
        while true {
            if let range = input.firstRange(of: Bytes(end.utf8)) {
                defer { input.removeFirst(range.upperBound) }
                return Array(input[..<range.upperBound])
            }
            guard try readMore(phase) else { throw TestFailure("the server closed during \(phase), after \(input.text.debugDescription)") }
        }
    }

    func read(count: Int, _ phase: String) throws -> Bytes {
        while input.count < count {
            guard try readMore(phase) else { throw TestFailure("the server closed during \(phase), after \(input.count) bytes") }
        }
        defer { input.removeFirst(count) }
        return Array(input[..<count])
    }

    func readToEnd(_ phase: String) throws -> Bytes {
        while try readMore(phase) {}
        defer { input = [] }
        return input
    }

    private func readMore(_ phase: String) throws -> Bool {
        var buffer = Bytes(repeating: 0, count: 65_536)
        let count = recv(descriptor, &buffer, buffer.count, 0)
        if count < 0 { throw TestFailure("waiting for \(phase): errno \(errno)") }
        input += buffer[..<count]
        return count > 0
    }
}

/// A server whose handler is a closure, for one test.
final class TestServer {
    let group: EventLoopGroup
    let server: HTTPServer
    var port: Int { server.port }

    init(
        loops: Int = 1, _ configure: (inout HTTPServerConfiguration) -> Void,
        handle: @escaping @Sendable (HTTPRequest, HTTPResponder) -> Void
    ) throws {
        var configuration = HTTPServerConfiguration()
        configure(&configuration)
        group = EventLoopGroup(count: loops, name: "test")
        server = HTTPServer(configuration, on: group, handler: ClosureHandler(handle))
        try server.start()
    }

    convenience init(loops: Int = 1, _ handle: @escaping @Sendable (HTTPRequest, HTTPResponder) -> Void) throws {
        try self.init(loops: loops, { _ in }, handle: handle)
    }

    deinit {
        server.stop()
        group.stop()
    }

    func connect(receiveBuffer: Int32? = nil) throws -> TestClient { try TestClient(port: port, receiveBuffer: receiveBuffer) }
}

final class ClosureHandler: HTTPHandler {
    private let body: @Sendable (HTTPRequest, HTTPResponder) -> Void

    init(_ body: @escaping @Sendable (HTTPRequest, HTTPResponder) -> Void) { self.body = body }

    func handle(_ request: HTTPRequest, _ responder: HTTPResponder) { body(request, responder) }
}

/// Values that arrive from loops, for a test to wait for.
final class Arrivals<Value: Sendable>: Sendable {
    private let values = Monitor<[Value]>([])

    func add(_ value: Value) { values.withLock(signalAll: true) { $0.append(value) } }

    var all: [Value] { values.withLock { $0 } }

    /// Waits until `condition` holds of what has arrived.
    @discardableResult
    func wait(_ phase: String, until condition: ([Value]) -> Bool) throws -> [Value] {
        let result = values.wait(timeout: .seconds(10)) { condition($0) ? $0 : nil }
        guard let result else { throw TestFailure("no \(phase) within 10 s; so far \(all)") }
        return result
    }

    @discardableResult
    func next(_ phase: String) throws -> Value { try wait(phase) { !$0.isEmpty }[0] }
}

func get(_ path: String = "/", _ fields: String = "") -> String { "GET \(path) HTTP/1.1\r\nHost: a\r\n\(fields)\r\n" }

extension TestClient {
    /// The input that has been read from the socket and not been asked for.
    var bufferedText: String { input.text }
}

extension String {
    /// How often `part` occurs.
    func components(of part: String) -> Int { ranges(of: part).count }
}
