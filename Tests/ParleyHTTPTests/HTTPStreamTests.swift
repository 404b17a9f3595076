import ParleySystem
import Testing

@testable import ParleyHTTP

@Suite struct `HTTP stream` {
    @Test func `sends pieces as they are written, and the connection continues`() throws {
        let streams = Arrivals<HTTPStream>()
        let server = try TestServer { request, responder in
            if request.path == "/stream" {
                streams.add(responder.stream(headers: [("Content-Type", "text/event-stream")]))
            } else {
                responder.respond(status: 200, body: Bytes("after".utf8))
            }
        }
        let client = try server.connect()
        try client.send(get("/stream"))
        let stream = try streams.next("stream")
        #expect(try client.read(through: "\r\n\r\n", "the head").text.contains("Transfer-Encoding: chunked"))
        stream.loop.execute { stream.write(Bytes("abc".utf8)) }
        #expect(try client.read(through: "abc\r\n", "the first piece").text == "3\r\nabc\r\n")
        let large = Bytes(repeating: UInt8(ascii: "x"), count: 5_000)
        stream.loop.execute { stream.write([Bytes("[".utf8), large, Bytes("]".utf8)]) }
        #expect(try client.read(through: "]\r\n", "the second piece").text == "138a\r\n[" + large.text + "]\r\n")
        stream.loop.execute { stream.finish() }
        #expect(try client.read(through: "0\r\n\r\n", "the end").text == "0\r\n\r\n")
        try client.send(get("/next"))
        #expect(try client.answer().text == "after")
    }

    @Test func `stops at a slow reader's bound and continues when it has read`() throws {
        let piece = Bytes(repeating: 7, count: 100_000)
        let total = 20_000_000
        let writer = Arrivals<String>()
        let most = Monitor(0)
        let server = try TestServer { _, responder in
            let stream = responder.stream(headers: [("Content-Length", "\(total)")])
            var written = 0
            let fill = {
                while written < total, stream.bufferedBytes < 200_000 {
                    stream.write(piece)
                    written += piece.count
                }
                most.withLock { $0 = max($0, stream.bufferedBytes) }
                if written == total { stream.finish() } else { writer.add("full") }
            }
            stream.onDrain = {
                writer.add("drained")
                fill()
            }
            fill()
        }
        let client = try server.connect(receiveBuffer: 8_192)
        try client.send(get())
        try writer.next("full queue")
        let answer = try client.answer()
        #expect(answer.body.count == total)
        #expect(answer.body.allSatisfy { $0 == 7 })
        #expect(most.withLock { $0 } < 400_000)
        #expect(writer.all.contains("drained"))
    }

    @Test(arguments: ["1.1", "1.0"])
    func `what is sent at once and what is queued comes in order, however slow the reader`(_ version: String) throws {
        let shared = (0..<20).map { BodyPiece(Bytes(repeating: UInt8($0), count: $0 % 3 == 0 ? 300_000 : 700)) }
        let server = try TestServer { _, responder in
            let stream = responder.stream()
            for (number, piece) in shared.enumerated() {
                if number % 5 == 4 { stream.write(Bytes(repeating: 100, count: 3)) }
                stream.send(piece)
            }
            // The head has left by then, so that the first of these goes straight to the socket.
            stream.loop.atEndOfTick {
                stream.loop.atEndOfTick {
                    for piece in shared { stream.send(piece) }
                    stream.finish()
                }
            }
        }
        let client = try server.connect(receiveBuffer: 8_192)
        try client.send("GET / HTTP/\(version)\r\nHost: a\r\n\r\n")
        var expected = Bytes()
        for round in 0..<2 {
            for number in 0..<20 {
                if round == 0 && number % 5 == 4 { expected += Bytes(repeating: 100, count: 3) }
                expected += Bytes(repeating: UInt8(number), count: number % 3 == 0 ? 300_000 : 700)
            }
        }
        #expect(try client.answer().body == expected)
    }

    @Test func `tells when the peer goes away`() throws {
        let events = Arrivals<String>()
        let server = try TestServer { request, responder in
            if request.path == "/poll" {
                responder.onClose = { events.add("poll") }
            } else {
                responder.stream().onClose = { events.add("stream") }
            }
            events.add("asked " + request.path)
        }
        for path in ["/poll", "/stream"] {
            let client = try server.connect()
            try client.send(get(path))
            try events.wait("request for \(path)") { $0.contains("asked " + path) }
            client.close()
            try events.wait("\(path) closed") { $0.contains(String(path.dropFirst())) }
        }
    }

    @Test func `continues to a peer that only sends no more, where it may`() throws {
        let halves = Arrivals<HTTPStream>()
        let server = try TestServer { _, responder in
            let stream = responder.stream()
            stream.onHalfClose = { halves.add(stream) }
        }
        let client = try server.connect()
        try client.send(get())
        client.finishSending()
        let stream = try halves.wait("the end of what the peer sends") { !$0.isEmpty }[0]
        stream.loop.execute {
            stream.write(Bytes("all the same".utf8))
            stream.finish()
        }
        #expect(try client.answer().text == "all the same")
    }

    @Test func `frames a body by the length among its headers`() throws {
        let server = try TestServer { request, responder in
            let stream = responder.stream(headers: [("content-length", "6")])
            stream.write(Bytes("abc".utf8))
            if request.path == "/whole" {
                stream.write(Bytes("def".utf8))
                stream.finish()
            } else {
                request.loop.schedule(after: .milliseconds(10)) { stream.finish() }
            }
        }
        let client = try server.connect()
        try client.send(get("/whole"))
        let answer = try client.answer()
        #expect(answer.text == "abcdef")
        #expect(answer.headers["transfer-encoding"] == nil)
        try client.send(get("/part"))
        #expect(try client.readToEnd("the cut").text.hasSuffix("\r\n\r\nabc"))
    }

    @Test func `cuts the body off when it is aborted`() throws {
        let server = try TestServer { request, responder in
            let stream = responder.stream()
            stream.onClose = { Issue.record("abort is not a close") }
            stream.write(Bytes("abc".utf8))
            request.loop.schedule(after: .milliseconds(10)) { stream.abort() }
        }
        let client = try server.connect()
        try client.send(get())
        #expect(try client.readToEnd("the cut").text.hasSuffix("\r\n\r\n3\r\nabc\r\n"))
    }

    @Test func `holds back a stream until the answers before it are sent`() throws {
        let first = Arrivals<HTTPResponder>()
        let server = try TestServer { request, responder in
            if request.path == "/first" { return first.add(responder) }
            let stream = responder.stream()
            stream.write(Bytes("second".utf8))
            #expect(stream.bufferedBytes > 6)
            request.loop.execute { first.all[0].respond(status: 200, body: Bytes("first".utf8)) }
            request.loop.schedule(after: .milliseconds(10)) { stream.finish() }
        }
        let client = try server.connect()
        try client.send(get("/first") + get("/second"))
        #expect(try client.answer().text == "first")
        #expect(try client.answer().text == "second")
    }

    @Test func `decodes percent-encoding and refuses what is malformed`() {
        #expect(PercentEncoding.decode("a%2Fb+c%c3%a9") == "a/b+c\u{e9}")
        #expect(PercentEncoding.decode("a+b", plusIsSpace: true) == "a b")
        for text in ["%", "%1", "%zz", "%ff"] { #expect(PercentEncoding.decode(text) == nil) }
        #expect(PercentEncoding.encode("a/b c\u{e9}", keeping: "/") == "a/b%20c%C3%A9")
    }
}
