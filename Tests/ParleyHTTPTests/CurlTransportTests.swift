import Glibc
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyHTTP

/// Notes what a call's delegate is told.
final class Recorder: OutgoingCallDelegate {
    enum Event: Sendable, Equatable {
        case head(Int)
        case body(String)
        case ended(String?)
    }

    let events = Arrivals<Event>()
    let headers = Arrivals<[String]>()
    let errors = Arrivals<OutgoingError>()
    private let act: @Sendable (Event) -> Void

    init(_ act: @escaping @Sendable (Event) -> Void = { _ in }) { self.act = act }

    func received(status: Int, headers: [(name: String, value: String)]) {
        self.headers.add(headers.map { "\($0.name): \($0.value)" })
        note(.head(status))
    }

    func received(body: UnsafeRawBufferPointer) { note(.body(String(decoding: body, as: UTF8.self))) }
    func ended(_ error: OutgoingError?) {
        if let error { errors.add(error) }
        note(.ended(error?.code))
    }

    private func note(_ event: Event) {
        events.add(event)
        act(event)
    }

    @discardableResult
    func end(_ phase: String = "end of the call") throws -> [Event] {
        try events.wait(phase) { if case .ended = $0.last { true } else { false } }
    }
}

@Suite struct `Curl transport` {
    private func url(_ server: TestServer, _ path: String) -> String { "http://127.0.0.1:\(server.port)\(path)" }

    @Test func `sends method, headers and body as given and nothing that changes the answer`() throws {
        let requests = Arrivals<HTTPRequest>()
        let server = try TestServer { request, responder in
            requests.add(request)
            responder.respond(status: 201, headers: [("X-Answer", "yes")], body: request.body)
        }
        let transport = CurlTransport(server.group.next())
        let body = Bytes(repeating: UInt8(ascii: "b"), count: 2_000_000)
        let recorder = Recorder()
        _ = transport.start(
            OutgoingRequest(
                method: "POST", url: url(server, "/z/../a?b=c"),
                headers: [("Content-Type", "application/json"), ("X-Empty", ""), ("X-Bad", "a\r\nX-Forged: b")], body: body),
            recorder)
        let events = try recorder.end()
        #expect(events.first == .head(201) && events.last == .ended(nil))
        #expect(try recorder.headers.next("head").contains("X-Answer: yes"))
        let request = try requests.next("request")
        #expect(request.method == "POST" && request.target == "/z/../a?b=c" && request.body == body)
        #expect(request.header("content-type") == "application/json")
        #expect(request.header("x-empty") == "")
        #expect(request.header("x-bad") == "aX-Forged: b")
        for name in ["expect", "accept-encoding", "x-forged"] { #expect(request.header(name) == nil) }
    }

    @Test func `lets go of a large body once it is sent`() throws {
        let streams = Arrivals<HTTPStream>()
        let requests = Arrivals<Int>()
        let server = try TestServer { request, responder in
            requests.add(request.body.count)
            streams.add(responder.stream())
        }
        let transport = CurlTransport(server.group.next())
        let recorder = Recorder()
        let body = Bytes(repeating: UInt8(ascii: "b"), count: 2_000_000)
        let call = transport.start(OutgoingRequest(method: "POST", url: url(server, "/"), body: body), recorder) as! CurlCall
        #expect(try requests.next("request") == body.count)
        let stream = try streams.next("stream")
        let left = Arrivals<Int>()
        transport.loop.execute { left.add(call.upload.count) }
        #expect(try left.next("what is left") == 0)
        stream.loop.execute { stream.finish() }
        #expect(try recorder.end().last == .ended(nil))
    }

    @Test func `takes nothing while it is paused, and misses nothing`() throws {
        let streams = Arrivals<HTTPStream>()
        let server = try TestServer { _, responder in streams.add(responder.stream()) }
        let transport = CurlTransport(server.group.next())
        let recorder = Recorder()
        let call = transport.start(OutgoingRequest(url: url(server, "/")), recorder)
        let stream = try streams.next("stream")
        try recorder.events.wait("head") { $0.count == 1 }
        call.pause()
        let isPaused = Arrivals<Bool>()
        transport.loop.execute { isPaused.add(true) }
        _ = try isPaused.next("the pause")
        stream.loop.execute { stream.write(Bytes("one".utf8)) }
        call.resume()
        try recorder.events.wait("the piece") { $0.last == .body("one") }
        call.pause()
        stream.loop.execute {
            stream.write(Bytes("two".utf8))
            stream.finish()
        }
        // Another call on the same transport continues meanwhile.
        let other = Recorder()
        _ = transport.start(OutgoingRequest(url: url(server, "/")), other)
        let second = try streams.wait("another stream") { $0.count == 2 }[1]
        second.loop.execute { second.finish() }
        #expect(try other.end().last == .ended(nil))
        #expect(try recorder.events.wait("what came") { _ in true } == [.head(200), .body("one")])
        call.resume()
        #expect(try recorder.end() == [.head(200), .body("one"), .body("two"), .ended(nil)])
    }

    @Test(arguments: ["GET", "HEAD", "PUT", "DELETE", "POST"])
    func `knows every method`(method: String) throws {
        let server = try TestServer { request, responder in
            responder.respond(status: request.body.isEmpty ? 200 : 500, headers: [("X-Method", request.method)])
        }
        let recorder = Recorder()
        _ = CurlTransport(server.group.next()).start(OutgoingRequest(method: method, url: url(server, "/")), recorder)
        #expect(try recorder.end() == [.head(200), .ended(nil)])
        #expect(try recorder.headers.next("head").contains("X-Method: \(method)"))
    }

    @Test func `hands over each piece as it comes and uses its connection again`() throws {
        let streams = Arrivals<HTTPStream>()
        let server = try TestServer { _, responder in streams.add(responder.stream()) }
        let transport = CurlTransport(server.group.next())
        for round in 1...2 {
            let recorder = Recorder()
            _ = transport.start(OutgoingRequest(url: url(server, "/")), recorder)
            let stream = try streams.wait("stream \(round)") { $0.count == round }[round - 1]
            try recorder.events.wait("head") { $0.count == 1 }
            for piece in ["one", "two", "three"] {
                stream.loop.execute { stream.write(Bytes(piece.utf8)) }
                try recorder.events.wait("piece \(piece)") { $0.last == .body(piece) }
            }
            stream.loop.execute { stream.finish() }
            #expect(try recorder.end().last == .ended(nil))
        }
        #expect(server.server.connectionCount == 1)
    }

    @Test func `carries many streams at once`() throws {
        let server = try TestServer(loops: 2) { request, responder in
            let stream = responder.stream()
            var left = 20
            func next() {
                stream.write(Bytes("x".utf8))
                left -= 1
                if left == 0 { stream.finish() } else { request.loop.schedule(after: .milliseconds(1)) { next() } }
            }
            next()
        }
        let transport = CurlTransport(server.group.next())
        let recorders = (0..<100).map { _ in Recorder() }
        for recorder in recorders { _ = transport.start(OutgoingRequest(url: url(server, "/")), recorder) }
        for recorder in recorders {
            let bytes = try recorder.end().reduce(0) { if case .body(let text) = $1 { $0 + text.utf8.count } else { $0 } }
            #expect(bytes == 20)
        }
    }

    @Test func `cancels from any thread: the upstream sees it and the delegate hears no more`() throws {
        let closed = Arrivals<ContinuousClock.Instant>()
        let server = try TestServer { _, responder in responder.stream().onClose = { closed.add(.now) } }
        let recorder = Recorder()
        let call = CurlTransport(server.group.next()).start(OutgoingRequest(url: url(server, "/")), recorder)
        try recorder.events.wait("head") { $0 == [.head(200)] }
        let start = ContinuousClock.now
        call.cancel()
        call.cancel()
        let latency = try closed.next("close at the upstream") - start
        #expect(latency < .seconds(1))
        #expect(recorder.events.all == [.head(200)])
    }

    /// A process that is started meanwhile would hold the connection open: the upstream would not hear that the call was cancelled.
    @Test func `keeps its connections from processes that are started meanwhile`() throws {
        let server = try TestServer { _, responder in responder.stream().write(Bytes("x".utf8)) }
        let recorder = Recorder()
        let call = CurlTransport(server.group.next()).start(OutgoingRequest(url: url(server, "/")), recorder)
        defer { call.cancel() }
        try recorder.events.wait("the answer") { $0.count == 2 }
        let connections = (0..<Int32(min(getdtablesize(), 65_536))).filter { peerPort(of: $0) == server.port }
        #expect(!connections.isEmpty)
        #expect(connections.allSatisfy { fcntl($0, F_GETFD) & FD_CLOEXEC != 0 })
    }

    @Test func `cancels inside a callback of the call`() throws {
        let closed = Arrivals<Bool>()
        let server = try TestServer { _, responder in
            let stream = responder.stream()
            stream.onClose = { closed.add(true) }
            stream.write(Bytes("abc".utf8))
        }
        let calls = Monitor<(any OutgoingCall)?>(nil)
        let recorder = Recorder { event in
            if event == .body("abc") { calls.wait(timeout: .seconds(5)) { $0 }?.cancel() }
        }
        let call = CurlTransport(server.group.next()).start(OutgoingRequest(url: url(server, "/")), recorder)
        calls.withLock(signalAll: true) { $0 = call }
        try closed.next("close at the upstream")
        #expect(recorder.events.all == [.head(200), .body("abc")])
    }

    @Test func `says that an upstream cannot be reached`() throws {
        let port = try TestServer { _, _ in }.port  // Nothing listens there any more.
        let loop = EventLoop(name: "test")
        loop.start()
        defer { loop.stop() }
        let transport = CurlTransport(loop)
        for (url, code) in [
            ("http://127.0.0.1:\(port)/", "upstream_unreachable"), ("http://name.invalid/", "upstream_unreachable"),
            ("ftp://127.0.0.1/", "invalid_url"), ("file:///etc/passwd", "invalid_url"), ("no url", "invalid_url"),
        ] {
            let recorder = Recorder()
            _ = transport.start(OutgoingRequest(url: url), recorder)
            #expect(try recorder.end("answer for \(url)") == [.ended(code)])
        }
    }

    @Test func `gives up on an upstream that is silent, but not on a slow one`() throws {
        let server = try TestServer { request, responder in
            let stream = responder.stream()
            if request.path == "/silent" { return stream.write(Bytes("a".utf8)) }
            var left = 8
            func next() {
                stream.write(Bytes("s".utf8))
                left -= 1
                if left == 0 { stream.finish() } else { request.loop.schedule(after: .milliseconds(100)) { next() } }
            }
            next()
        }
        let transport = CurlTransport(server.group.next())
        var silent = OutgoingRequest(url: url(server, "/silent"))
        silent.idleTimeout = .milliseconds(400)
        var slow = OutgoingRequest(url: url(server, "/slow"))
        slow.idleTimeout = .milliseconds(400)
        let (silentRecorder, slowRecorder) = (Recorder(), Recorder())
        _ = transport.start(silent, silentRecorder)
        _ = transport.start(slow, slowRecorder)
        #expect(try silentRecorder.end() == [.head(200), .body("a"), .ended("upstream_timeout")])
        #expect(try slowRecorder.end().last == .ended(nil))
    }

    @Test func `gives the answer's begin its own time, which the upload takes nothing of`() throws {
        let server = try TestServer { request, responder in
            let stream = responder.stream()
            guard request.path != "/never" else { return }
            request.loop.schedule(after: .milliseconds(600)) {
                stream.write(Bytes("late".utf8))
                if request.path == "/late" { stream.finish() }
            }
        }
        let transport = CurlTransport(server.group.next())
        // More than one look apart from each other, so that an upload that counted would be seen.
        let body = Bytes(repeating: UInt8(ascii: "b"), count: 4_000_000)
        func start(_ path: String, idle: Duration, firstByte: Duration) -> Recorder {
            var request = OutgoingRequest(method: "POST", url: url(server, path), body: body)
            (request.idleTimeout, request.firstByteTimeout) = (idle, firstByte)
            let recorder = Recorder()
            _ = transport.start(request, recorder)
            return recorder
        }
        let late = start("/late", idle: .milliseconds(200), firstByte: .seconds(20))
        let stuck = start("/stuck", idle: .milliseconds(200), firstByte: .seconds(20))
        let began = ContinuousClock.now
        let never = start("/never", idle: .seconds(20), firstByte: .milliseconds(400))
        #expect(try never.end().last == .ended("upstream_timeout"))
        #expect(ContinuousClock.now - began < .seconds(15))
        #expect(try late.end() == [.head(200), .body("late"), .ended(nil)])
        #expect(try stuck.end() == [.head(200), .body("late"), .ended("upstream_timeout")])
    }

    @Test func `does not take a head that trickles for the answer's begin`() throws {
        let server = try RawServer { client, _ in
            RawServer.send("HTTP/1.1 200 OK\r\n", to: client)
            while RawServer.send("X-A: b\r\n", to: client) { RealTime.pass(.milliseconds(50)) }
        }
        let loops = EventLoopGroup(count: 1, name: "client")
        defer { loops.stop() }
        var request = OutgoingRequest(url: "http://127.0.0.1:\(server.port)/")
        (request.idleTimeout, request.firstByteTimeout) = (.seconds(20), .milliseconds(500))
        let recorder = Recorder()
        _ = CurlTransport(loops.next()).start(request, recorder)
        #expect(try recorder.end() == [.ended("upstream_timeout")])
    }

    @Test func `tells a head that is too large from other ends`() throws {
        let server = try TestServer { _, responder in
            responder.respond(status: 200, headers: [("X-Large", String(repeating: "a", count: 150_000))])
        }
        let recorder = Recorder()
        _ = CurlTransport(server.group.next()).start(OutgoingRequest(url: url(server, "/")), recorder)
        #expect(try recorder.end() == [.ended("upstream_head_too_large")])
    }

    @Test func `hands over a compressed answer as it came, or as what it was where that is wanted`() throws {
        let zipped = Base64.decode(gzipped)!
        let server = try TestServer { request, responder in
            responder.respond(
                status: 200, headers: [("Content-Encoding", "gzip"), ("X-Asked", request.header("accept-encoding") ?? "-")], body: zipped)
        }
        let transport = CurlTransport(server.group.next())
        for decodes in [false, true] {
            var request = OutgoingRequest(url: url(server, "/"))
            request.decodesContent = decodes
            let recorder = Recorder()
            _ = transport.start(request, recorder)
            let body = try recorder.end().reduce("") { if case .body(let piece) = $1 { $0 + piece } else { $0 } }
            #expect(body.hasPrefix("data: {") == decodes)
            #expect(try recorder.headers.next("head").contains("X-Asked: \(decodes ? "identity" : "-")"))
        }
    }

    @Test func `tells an answer whose compression cannot be undone from one that was cut`() throws {
        let server = try TestServer { request, responder in
            responder.respond(
                status: 200, headers: [("Content-Encoding", request.path == "/unknown" ? "dcb" : "gzip")], body: Bytes("not gzip".utf8))
        }
        let transport = CurlTransport(server.group.next())
        for path in ["/unknown", "/broken"] {
            var request = OutgoingRequest(url: url(server, path))
            request.decodesContent = true
            let recorder = Recorder()
            _ = transport.start(request, recorder)
            #expect(try recorder.end().last == .ended("upstream_encoding"))
        }
    }

    /// An event stream of 85 bytes.
    private let gzipped =
        "H4sIAAAAAAACA0tJLEm0UqhWSs7Iz0xOLVayiq5WSknNKUlUsgIK5ueVpOaVKFkpeWQq1eoopWXmZRZnxBelJhbn5wFFi0vyC5RqY2u5uFLAxkS7+Pu5xnJxAQBBvCD5VQAAAA=="

    @Test func `says that an upstream closed in the middle`() throws {
        let server = try TestServer { request, responder in
            let headers = request.path == "/length" ? [(name: "Content-Length", value: "10")] : []
            let stream = responder.stream(headers: headers)
            stream.write(Bytes("abc".utf8))
            request.loop.schedule(after: .milliseconds(20)) { stream.abort() }
        }
        let transport = CurlTransport(server.group.next())
        for path in ["/chunked", "/length"] {
            let recorder = Recorder()
            _ = transport.start(OutgoingRequest(url: url(server, path)), recorder)
            #expect(try recorder.end() == [.head(200), .body("abc"), .ended("upstream_closed")])
        }
    }

    @Test func `sends a request once, also on a connection that it uses again`() throws {
        let paths = Arrivals<String>()
        let server = try TestServer { request, responder in
            paths.add(request.path)
            if request.path == "/good" { responder.respond(status: 200) } else { responder.stream().abort() }
        }
        let transport = CurlTransport(server.group.next())
        for (path, end) in [("/good", [.head(200), .ended(nil)]), ("/closes", [.ended("upstream_closed")])] as [(String, [Recorder.Event])]
        {
            let recorder = Recorder()
            _ = transport.start(OutgoingRequest(method: "POST", url: url(server, path), body: Bytes("body".utf8)), recorder)
            #expect(try recorder.end() == end)
        }
        #expect(paths.all == ["/good", "/closes"])
    }

    @Test(arguments: ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray", "HTTP/1.1 408 Request Timeout\r\n\r\n", "data: stray\n\n"])
    func `does not take for an answer what came before it had asked`(stray: String) throws {
        let mayStray = Monitor(false)
        let strayed = Arrivals<Bool>()
        let server = try RawServer { client, number in
            while RawServer.awaitRequest(of: client) {
                RawServer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\(number)", to: client)
                guard number == 0 else { continue }
                _ = mayStray.wait { $0 ? true : nil }
                RawServer.send(stray, to: client)
                strayed.add(true)
            }
        }
        let loops = EventLoopGroup(count: 1, name: "client")
        defer { loops.stop() }
        let transport = CurlTransport(loops.next())
        func ask() throws -> [Recorder.Event] {
            let recorder = Recorder()
            _ = transport.start(OutgoingRequest(url: "http://127.0.0.1:\(server.port)/"), recorder)
            return try recorder.end()
        }
        #expect(try ask() == [.head(200), .body("0"), .ended(nil)])
        mayStray.withLock(signalAll: true) { $0 = true }
        try strayed.next("stray bytes")
        #expect(try ask() == [.head(200), .body("1"), .ended(nil)])
        #expect(try ask() == [.head(200), .body("1"), .ended(nil)], "a clean connection is used again")
    }

    @Test(arguments: ["HTTP/2 200", "HTTP/2.0 200 OK"])
    func `has a connection for each call, whatever a server says that it speaks`(status: String) throws {
        let asked = Monitor(0)
        let server = try RawServer { client, number in
            while RawServer.awaitRequest(of: client) {
                asked.withLock(signalAll: true) { $0 += 1 }
                // All are in flight before the first is answered.
                if number > 0 { _ = asked.wait(timeout: .seconds(10)) { $0 == 5 ? true : nil } }
                let line = number == 0 ? status : "HTTP/1.1 200 OK"
                RawServer.send("\(line)\r\nContent-Length: 1\r\n\r\n\(number)", to: client)
            }
        }
        let loops = EventLoopGroup(count: 1, name: "client")
        defer { loops.stop() }
        let transport = CurlTransport(loops.next())
        func begin() -> Recorder {
            let recorder = Recorder()
            _ = transport.start(OutgoingRequest(url: "http://127.0.0.1:\(server.port)/"), recorder)
            return recorder
        }
        _ = try begin().end()
        let bodies = try (0..<4).map { _ in begin() }.map { try $0.end() }.compactMap { events in
            events.lazy.compactMap { if case .body(let text) = $0 { text } else { nil } }.first
        }
        #expect(Set(bodies).count == 4, "each on its own: \(bodies)")
    }

    @Test func `tells what is not HTTP from a URL that cannot be used`() throws {
        let server = try RawServer { client, _ in
            if RawServer.awaitRequest(of: client) { RawServer.send("data: garbage\n\n", to: client) }
        }
        let loops = EventLoopGroup(count: 1, name: "client")
        defer { loops.stop() }
        let recorder = Recorder()
        _ = CurlTransport(loops.next()).start(OutgoingRequest(url: "http://127.0.0.1:\(server.port)/"), recorder)
        #expect(try recorder.end() == [.ended("upstream_not_http")])
    }

    @Test func `does not follow redirects`() throws {
        let server = try TestServer { _, responder in responder.respond(status: 302, headers: [("Location", "/elsewhere")]) }
        let recorder = Recorder()
        _ = CurlTransport(server.group.next()).start(OutgoingRequest(url: url(server, "/")), recorder)
        #expect(try recorder.end() == [.head(302), .ended(nil)])
    }

    @Test func `ends open calls when its loop stops`() throws {
        let server = try TestServer { _, responder in _ = responder.stream() }
        let loop = EventLoop(name: "test")
        loop.start()
        let recorder = Recorder()
        _ = CurlTransport(loop).start(OutgoingRequest(url: url(server, "/")), recorder)
        try recorder.events.wait("head") { $0 == [.head(200)] }
        loop.stop()
        #expect(recorder.events.all == [.head(200), .ended("upstream_closed")])
    }
}

private func peerPort(of descriptor: Int32) -> Int? {
    var address = sockaddr_in()
    var count = socklen_t(MemoryLayout<sockaddr_in>.size)
    let status = withUnsafeMutablePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getpeername(descriptor, $0, &count) }
    }
    return status == 0 && address.sin_family == sa_family_t(AF_INET) ? Int(UInt16(bigEndian: address.sin_port)) : nil
}

/// A server whose bytes are the test's own: each connection runs on a thread.
private final class RawServer: Sendable {
    let port: UInt16
    private let descriptor: Int32

    /// - Parameter serve: Gets the connection, and how many there were before it. The connection is closed behind it.
    init(_ serve: @escaping @Sendable (_ client: Int32, _ number: Int) -> Void) throws {
        let listener = socket(AF_INET, SocketType.stream | SocketType.closesOnExec, 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var count = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isListening = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, count) == 0 && listen(listener, 8) == 0 && getsockname(listener, $0, &count) == 0
            }
        }
        guard isListening else { throw TestFailure("cannot listen: errno \(errno)") }
        (descriptor, port) = (listener, UInt16(bigEndian: address.sin_port))
        _ = SystemThread.startDetached(name: "raw server") {
            var number = 0
            while case let client = accept(listener, nil, nil), client >= 0 {
                _ = fcntl(client, F_SETFD, FD_CLOEXEC)
                let before = number
                number += 1
                _ = SystemThread.startDetached(name: "raw connection") {
                    serve(client, before)
                    close(client)
                }
            }
        }
    }

    deinit {
        shutdown(descriptor, Int32(SHUT_RDWR))
        close(descriptor)
    }

    /// - Returns: Whether the peer is still there.
    @discardableResult
    static func send(_ text: String, to client: Int32) -> Bool {
        text.withCString { Glibc.send(client, $0, strlen($0), Int32(MSG_NOSIGNAL)) } > 0
    }

    /// Waits for a head.
    static func awaitRequest(of client: Int32) -> Bool {
        var (head, byte) = (Bytes(), UInt8(0))
        while !head.suffix(4).elementsEqual("\r\n\r\n".utf8), recv(client, &byte, 1, 0) == 1 { head.append(byte) }
        return head.suffix(4).elementsEqual("\r\n\r\n".utf8)
    }
}
