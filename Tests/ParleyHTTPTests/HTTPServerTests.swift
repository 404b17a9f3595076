import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyHTTP

/// Answers with what was asked.
private let echo: @Sendable (HTTPRequest, HTTPResponder) -> Void = { request, responder in
    responder.respond(status: 200, headers: [("X-Path", request.path)], body: Bytes(request.method.utf8) + [0x20] + request.body)
}

@Suite struct `HTTP server` {
    @Test func `answers many requests on one connection`() throws {
        let server = try TestServer(echo)
        let client = try server.connect()
        for index in 0..<3 {
            try client.send(get("/\(index)"))
            let answer = try client.answer()
            #expect(answer.status == 200)
            #expect(answer.headers["x-path"] == "/\(index)")
            #expect(answer.headers["content-length"] == "4")
            #expect(answer.headers["date"]?.hasSuffix(" GMT") == true)
            #expect(answer.text == "GET ")
        }
        #expect(server.server.connectionCount == 1)
    }

    @Test func `answers pipelined requests in order, though later ones are ready first`() throws {
        let waiting = Monitor<HTTPResponder?>(nil)
        let server = try TestServer { request, responder in
            guard request.path == "/first" else {
                responder.respond(status: 200, body: Bytes(request.path.utf8))
                if request.path == "/third" {
                    responder.loop.execute { waiting.withLock { $0.take() }!.respond(status: 200, body: Bytes("first".utf8)) }
                }
                return
            }
            waiting.withLock { $0 = responder }
        }
        let client = try server.connect()
        try client.send(get("/first") + get("/second") + get("/third"))
        #expect(try (0..<3).map { _ in try client.answer().text } == ["first", "/second", "/third"])
    }

    @Test func `sends the answers to pipelined requests together`() throws {
        let server = try TestServer(echo)
        let client = try server.connect()
        try client.send(get() + get() + get())
        let first = try client.read(count: 1, "the answers")
        #expect(first.text == "H")
        // The three answers left in one send, so the first read brought all of them.
        #expect(client.bufferedText.components(of: "HTTP/1.1 200") == 2)
    }

    @Test func `takes more pipelined requests than it handles at a time`() throws {
        let server = try TestServer { configuration in
            configuration.pipelinedCountMax = 4
        } handle: { request, responder in
            request.loop.execute { responder.respond(status: 200, body: Bytes(request.path.utf8)) }
        }
        let client = try server.connect()
        try client.send((0..<100).map { get("/\($0)") }.joined())
        for index in 0..<100 { #expect(try client.answer().text == "/\(index)") }
    }

    @Test func `connections that take nothing have little waiting when there are many of them`() throws {
        let server = try TestServer { configuration in
            configuration.waitingBytesMax = 64 << 10
        } handle: { _, responder in
            responder.respond(status: 200, body: Bytes(repeating: UInt8(ascii: "x"), count: 1_000))
        }
        let requests = (0..<1_000).map { _ in get() }.joined()
        let clients = try (0..<20).map { _ in try server.connect(receiveBuffer: 4_096) }
        for client in clients { try client.send(requests) }
        var waiting = 0
        for _ in 0..<50 {
            waiting = max(waiting, server.server.waitingBytes)
            RealTime.pass(.milliseconds(10))
        }
        // One has all that it may have before the others count for anything.
        #expect(waiting < 1 << 20)
        for client in clients { for _ in 0..<1_000 { #expect(try client.answer().status == 200) } }
        #expect(server.server.waitingBytes == 0)
    }

    @Test func `reads from a connection that brings much no more than its share before the others have their turn`() throws {
        let (entered, released, order) = (Monitor(false), Monitor(false), Arrivals<String>())
        let server = try TestServer { configuration in
            configuration.readBytes = 1 << 10
        } handle: { request, responder in
            order.add(request.path)
            if request.path == "/hold" {
                entered.withLock(signalAll: true) { $0 = true }
                _ = released.wait(timeout: .seconds(10)) { $0 ? true : nil }
            }
            responder.respond(status: 200, body: [])
        }
        let (greedy, other) = (try server.connect(), try server.connect())
        for client in [greedy, other] {
            try client.send(get("/first"))
            _ = try client.answer()
        }
        // All of it waits in the sockets when the loop continues, the other's behind the greedy one's.
        try greedy.send(get("/hold"))
        _ = entered.wait(timeout: .seconds(10)) { $0 ? true : nil }
        try greedy.send(String(repeating: get("/greedy"), count: 400))
        try other.send(get("/other"))
        released.withLock(signalAll: true) { $0 = true }
        let paths = try order.wait("requests") { $0.count == 404 }
        let before = try #require(paths.firstIndex(of: "/other")) - 3
        #expect(before <= 2 << 10 / get("/greedy").utf8.count, "\(before) requests of the other connection came first")
    }

    @Test func `makes few answers at a time that may be large`() throws {
        let waiting = Monitor<[HTTPResponder]>([])
        let server = try TestServer { _, responder in waiting.withLock(signal: true) { $0.append(responder) } }
        let client = try server.connect()
        try client.send((0..<10).map { get("/\($0)") }.joined())
        for index in 0..<10 {
            // The first of the waiting ones is answered, and then there is room for another.
            let first = try #require(waiting.wait(timeout: .seconds(10)) { $0.count == min(4, 10 - index) ? $0.removeFirst() : nil })
            first.loop.execute { first.respond(status: 200, body: Bytes("\(index)".utf8)) }
            #expect(try client.answer().text == "\(index)")
        }
    }

    @Test func `takes a request in pieces, in chunks and with a body`() throws {
        let server = try TestServer(echo)
        let client = try server.connect()
        let message = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n"
        for byte in message.utf8 { try client.send([byte]) }
        #expect(try client.answer().text == "POST abcde")
        try client.send("PUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        try client.send("fghij")
        #expect(try client.answer().text == "PUT fghij")
    }

    @Test func `answers HEAD with the length and without the body`() throws {
        let server = try TestServer(echo)
        let client = try server.connect()
        try client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + get())
        let answer = try client.answer(toHead: true)
        #expect(answer.headers["content-length"] == "5")
        #expect(try client.answer().text == "GET ")
    }

    @Test func `says no length to HEAD where none is known`() throws {
        let server = try TestServer { request, responder in
            responder.respond(
                status: request.path == "/none" ? 204 : 200, headers: request.path == "/said" ? [("Content-Length", "7")] : [])
        }
        let client = try server.connect()
        for (path, length) in [("/", nil), ("/said", "7"), ("/none", nil)] as [(String, String?)] {
            try client.send("HEAD \(path) HTTP/1.1\r\nHost: a\r\n\r\n")
            #expect(try client.answer(toHead: true).headers["content-length"] == length, "\(path)")
        }
        try client.send(get())
        #expect(try client.answer().headers["content-length"] == "0")
    }

    /// Answers POST a little later, and GET with how many POSTs had been answered when it came.
    private func counting(_ arrivals: Arrivals<String>) throws -> TestServer {
        try TestServer { request, responder in
            let answered = arrivals.all.count { $0 == "answered" }
            arrivals.add(request.method)
            guard request.method == "POST" else { return responder.respond(status: 200, body: Bytes("\(answered)".utf8)) }
            request.loop.schedule(after: .milliseconds(20)) {
                arrivals.add("answered")
                responder.respond(status: 200, body: Bytes("posted".utf8))
            }
        }
    }

    private let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"

    @Test(arguments: [1, 7, 1_000]) func `reads behind a write on one connection only when that was answered`(_ pieceBytes: Int) throws {
        let server = try counting(Arrivals())
        let client = try server.connect()
        let requests = Bytes((get() + post + get() + post + post + "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + get()).utf8)
        for start in stride(from: 0, to: requests.count, by: pieceBytes) {
            try client.send(Bytes(requests[start..<min(start + pieceBytes, requests.count)]))
        }
        client.finishSending()
        #expect(try [client.answer(), client.answer(), client.answer()].map(\.text) == ["0", "posted", "1"])
        #expect(try [client.answer(), client.answer()].map(\.text) == ["posted", "posted"])
        #expect(try client.answer(toHead: true).status == 200)
        #expect(try client.answer().text == "3")
        #expect(try client.readToEnd("the end") == [])
    }

    @Test func `takes writes of one connection at the same time`() throws {
        let arrivals = Arrivals<String>()
        let server = try counting(arrivals)
        let client = try server.connect()
        try client.send(post + post)
        #expect(try [client.answer(), client.answer()].map(\.text) == ["posted", "posted"])
        #expect(arrivals.all == ["POST", "POST", "answered", "answered"])
    }

    @Test func `speaks HTTP/1.0: closes, or stays when asked to`() throws {
        let server = try TestServer { request, responder in
            if request.path == "/stream" {
                let stream = responder.stream()
                stream.write(Bytes("abc".utf8))
                stream.finish()
            } else {
                responder.respond(status: 204)
            }
        }
        let kept = try server.connect()
        try kept.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        let answer = try kept.answer()
        #expect(answer.headers["connection"] == "keep-alive")
        #expect(answer.headers["content-length"] == nil)
        try kept.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        let streamed = try kept.answer()
        #expect(streamed.headers["connection"] == "close")
        #expect(streamed.headers["transfer-encoding"] == nil)
        #expect(streamed.text == "abc")
    }

    @Test func `closes after an answer when the client asks for it`() throws {
        let server = try TestServer(echo)
        let client = try server.connect()
        try client.send(get("/", "Connection: close\r\n"))
        #expect(try client.answer().headers["connection"] == "close")
        #expect(try client.readToEnd("the end") == [])
    }

    @Test func `answers a client that stops sending after its request`() throws {
        let server = try TestServer { request, responder in
            request.loop.schedule(after: .milliseconds(20)) { responder.respond(status: 200, body: Bytes("late".utf8)) }
        }
        let client = try server.connect()
        try client.send(get())
        client.finishSending()
        #expect(try client.answer().text == "late")
        #expect(try client.readToEnd("the end") == [])
    }

    @Test func `invites a body that was announced with Expect`() throws {
        let server = try TestServer(echo)
        let client = try server.connect()
        try client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        #expect(try client.answer().status == 100)
        try client.send("abc")
        #expect(try client.answer().text == "POST abc")
    }

    @Test(arguments: [
        ("GET / HTTP/1.1\r\nX y\r\n", 400, "bad_request"),
        ("GET / HTTP/3.0\r\n", 505, "unsupported_version"),
        ("GET /" + String(repeating: "a", count: 9_000), 414, "target_too_long"),
        ("GET / HTTP/1.1\r\nX: " + String(repeating: "a", count: 20_000), 431, "head_too_large"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413, "body_too_large"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", 413, "body_too_large"),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n", 413, "body_too_large"),
    ])
    func `refuses a bad request with a problem, behind the answers that are due, and closes`(
        message: String, status: Int, code: String
    ) throws {
        let server = try TestServer {
            $0.limits.bodyBytes = 1_000
        } handle: { request, responder in
            request.loop.execute { responder.respond(status: 200, body: Bytes("good".utf8)) }
        }
        let client = try server.connect()
        try client.send(get() + message)
        #expect(try client.answer().text == "good")
        let answer = try client.answer()
        #expect(answer.status == status)
        #expect(answer.headers["content-type"] == "application/problem+json")
        #expect(answer.headers["connection"] == "close")
        let problem = try JSON.parse(answer.body)
        #expect(problem["code"]?.string == code)
        #expect(problem["status"]?.integer == Int64(status))
        #expect(problem["detail"]?.string?.isEmpty == false)
        #expect(try client.readToEnd("the end") == [])
    }

    @Test func `gives up on what takes too long`() throws {
        let server = try TestServer {
            $0.headTimeout = .milliseconds(200)
            $0.bodyTimeout = .milliseconds(200)
            $0.idleTimeout = .milliseconds(200)
        } handle: {
            echo($0, $1)
        }
        let silent = try server.connect()
        let slowHead = try server.connect()
        try slowHead.send("GET / HT")
        let slowBody = try server.connect()
        try slowBody.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
        let idle = try server.connect()
        try idle.send(get())
        #expect(try idle.answer().status == 200)
        #expect(try slowHead.answer("the 408 for a head").status == 408)
        #expect(try slowBody.answer("the 408 for a body").status == 408)
        #expect(try idle.readToEnd("the end of an idle connection") == [])
        #expect(try silent.readToEnd("the end of a silent connection") == [])
    }

    @Test func `gives up on a body that arrives byte by byte, and not on one that is long`() throws {
        let server = try TestServer {
            $0.bodyTimeout = .milliseconds(200)
        } handle: {
            echo($0, $1)
        }
        let slow = try server.connect()
        try slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        for _ in 0..<40 where (try? slow.send("a")) != nil { RealTime.pass(.milliseconds(25)) }
        #expect(try slow.answer("the 408 for a body").status == 408)
        let long = try server.connect()
        try long.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n")
        for _ in 0..<10 {
            try long.send(String(repeating: "a", count: 1_000))
            RealTime.pass(.milliseconds(50))
        }
        #expect(try long.answer().status == 200)
    }

    @Test func `refuses connections beyond its limit`() throws {
        let server = try TestServer {
            $0.connectionCountMax = 1
            $0.patience = .seconds(30)
        } handle: {
            echo($0, $1)
        }
        let first = try server.connect()
        try first.send(get())
        #expect(try first.answer().status == 200)
        let second = try server.connect()
        #expect(try second.answer().status == 503)
        try first.send(get())
        #expect(try first.answer().status == 200)
    }

    @Test func `drains: finishes what is in flight and closes what is idle`() throws {
        let waiting = Arrivals<HTTPResponder>()
        let server = try TestServer { request, responder in
            if request.path == "/now" { responder.respond(status: 200) } else { waiting.add(responder) }
        }
        let idle = try server.connect()
        try idle.send(get("/now"))
        _ = try idle.answer()
        let busy = try server.connect()
        try busy.send(get("/later"))
        let responder = try waiting.next("request")
        let drained = Arrivals<Bool>()
        let http = server.server
        let thread = SystemThread(name: "drain") { drained.add(http.drain(within: .seconds(10))) }
        #expect(try idle.readToEnd("the end of the idle connection") == [])
        #expect(drained.all.isEmpty)
        responder.loop.execute { responder.respond(status: 200, body: Bytes("done".utf8)) }
        let answer = try busy.answer()
        #expect(answer.text == "done")
        #expect(answer.headers["connection"] == "close")
        #expect(try drained.next("end of draining"))
        thread.join()
        #expect(throws: TestFailure.self) { try TestClient(port: http.port) }
    }

    @Test func `says which address it cannot listen on, even when several loops share the port`() throws {
        let server = try TestServer(loops: 2, echo)
        #expect(server.port > 0)
        for _ in 0..<8 {
            let client = try server.connect()
            try client.send(get())
            #expect(try client.answer().status == 200)
        }
        let error = #expect(throws: HTTPServerError.self) {
            _ = try TestServer(loops: 2) {
                $0.port = server.port
            } handle: {
                echo($0, $1)
            }
        }
        #expect(error?.message == "cannot listen on 127.0.0.1:\(server.port): Address already in use (EADDRINUSE)")
        #expect(error?.description.hasPrefix("cannot_listen: ") == true && error?.remedy.contains("--listen 127.0.0.1:<port>") == true)
    }

    @Test func `goes with its loops when they stop first`() throws {
        let requests = Arrivals<String>()
        let server = try TestServer { request, _ in requests.add(request.path) }
        let client = try server.connect()
        try client.send(get())
        try requests.next("request")
        server.group.stop()
        #expect(try client.readToEnd("the end") == [])
        #expect(server.server.connectionCount == 0)
        server.server.stop()
    }

    @Test func `listens on IPv6`() throws {
        let server = try TestServer {
            $0.host = "::1"
        } handle: {
            echo($0, $1)
        }
        let client = try TestClient(port: server.port, host: "::1")
        try client.send(get())
        #expect(try client.answer().status == 200)
    }

    @Test func `lets no header value forge another field`() throws {
        let server = try TestServer { _, responder in
            responder.respond(status: 200, headers: [("X-A", "b\r\nX-C: d")])
        }
        let client = try server.connect()
        try client.send(get())
        let answer = try client.answer()
        #expect(answer.headers["x-a"] == "b  X-C: d")
        #expect(answer.headers["x-c"] == nil)
    }
}
