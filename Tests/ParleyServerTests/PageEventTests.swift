import Glibc
import ParleyChannels
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `Pages in events` {
    private static let server = Result { try TestServer { $0.pageBytes = 64 } }
    private var server: TestServer { get throws { try Self.server.get() } }

    // MARK: Framing

    @Test(arguments: [1, 2, 3]) func `a page is the same event however it is cut into pieces`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        for _ in 0..<300 {
            let text = Bytes((0..<Int.random(in: 1...60, using: &random)).map { _ in Bytes("a \r\n".utf8).randomElement(using: &random)! })
            var whole = Bytes()
            EventFraming.writeText(text, to: &whole)
            #expect(whole.count <= EventFraming.byteCountMax(of: text, as: .text), "\(text)")
            for form in [EventFraming.Form.text, .json, .binary] {
                var slices = EventSlices(text, 0..<text.count, form, continuing: nil, isOpen: false, end: Bytes("end".utf8))
                var (pieces, all) = (Bytes(), slices)
                let bytesMax = Int.random(in: 1...20, using: &random)
                while !slices.isDone {
                    let piece = slices.next(upTo: bytesMax)
                    #expect(piece.count <= bytesMax + 32)
                    pieces += piece
                }
                all.frame()
                #expect(all.whole == pieces, "\(text) by \(bytesMax)")
                if form != .binary { #expect(pieces == whole + Bytes("end".utf8)) }
            }
            // An event that goes over two pages.
            let place = Int.random(in: 0...text.count, using: &random)
            var first = EventSlices(text, 0..<place, .text, continuing: nil, isOpen: true, end: [])
            let head = first.next(upTo: .max)
            var second = EventSlices(text, place..<text.count, .text, continuing: first.lines, isOpen: false, end: [])
            #expect(head + second.next(upTo: .max) == whole, "\(text) at \(place)")
        }
    }

    // MARK: Text without a place to part it

    private func post(_ path: String, _ bytes: Bytes, _ headers: [(String, String)] = [], on server: TestServer) throws {
        #expect(try server.request("POST", path, [("Content-Type", "text/plain")] + headers, bytes).status == 204)
    }

    private func cut(_ text: String, _ count: Int, behind first: Int = 0) -> [Bytes] {
        let bytes = Bytes(text.utf8)
        let starts = (first > 0 ? [0] : []) + Array(stride(from: first, to: bytes.count, by: count))
        return zip(starts, starts.dropFirst() + [bytes.count]).map { Bytes(bytes[$0..<$1]) }
    }

    private static let lines = "\n" + String(repeating: "a", count: 98) + "\r"

    /// Appends that end within a character, or between CR and LF, each longer than a page or together.
    private func cases() -> [(pieces: [Bytes], text: String)] {
        let han = String(repeating: "\u{6f22}", count: 700)
        let faces = String(repeating: "\u{1f600}", count: 400)
        let returns = String(repeating: Self.lines, count: 9)
        return [
            (cut(han, 100), han), (cut(han, 31), han), (cut(han, 1_000), han), (cut(faces, 48, behind: 2), faces),
            (cut(faces, 200, behind: 1), faces), (cut(returns, 100), returns.replacing("\r\n", with: "\n").replacing("\r", with: "\n")),
        ]
    }

    @Test func `is text all the same, of a stream that has ended`() throws {
        for (index, (pieces, text)) in cases().enumerated() {
            let path = try server.stream("text/plain")
            for piece in pieces { try post(path, piece, on: server) }
            #expect(try server.request("POST", path, closed).status == 204)
            let client = try server.connect()
            try client.send("GET", path + "?offset=-1&live=sse")
            #expect(try client.head().headers["stream-sse-data-encoding"] == nil, "case \(index)")
            let events = try client.events()
            #expect(events.filter { $0.name == "data" }.map(\.data).joined() == text, "case \(index)")
            #expect(events.last?.json?["streamClosed"] == true, "case \(index)")
        }
    }

    @Test func `comes to a reader who is there, and one who comes again anywhere misses nothing`() throws {
        for (index, (pieces, text)) in cases().enumerated() {
            let path = try server.stream("text/plain", "first ")
            let live = try server.follow(path)
            _ = try live.events { $0["upToDate"] == true }
            for (number, piece) in pieces.enumerated() {
                try post(path, piece, number == pieces.count - 1 ? closed : [], on: server)
            }
            let events = try live.events()
            #expect(events.filter { $0.name == "data" }.map(\.data).joined() == text, "case \(index)")
            var data = ""
            for event in events {
                data += event.name == "data" ? event.data : ""
                guard event.name == "control", let next = event.id, index < 4 else { continue }
                let rest = try server.follow(path, "?offset=\(next)&live=sse").events()
                #expect(data + rest.filter { $0.name == "data" }.map(\.data).joined() == text, "case \(index) from \(next)")
            }
        }
    }

    @Test func `ends behind a carriage return that nothing follows, after a moment`() throws {
        let path = try server.stream("text/plain")
        for _ in 0..<5 { try post(path, Bytes(Self.lines.utf8), on: server) }
        let live = try server.follow(path)
        let line = "\n" + String(repeating: "a", count: 98)
        var events = try live.events { $0["upToDate"] == true }
        #expect(events.filter { $0.name == "data" }.map(\.data).joined() == String(repeating: line, count: 5) + "\n")
        #expect(events.last?.id == "0000000000000005")
        try post(path, Bytes("\nend".utf8), closed, on: server)
        events = try live.events()
        #expect(events.filter { $0.name == "data" }.map(\.data) == ["end"], "the line feed was told already")
    }

    @Test(arguments: [false, true]) func `that is none in the end breaks off, and comes in Base64`(isOpen: Bool) throws {
        let path = try server.stream("text/plain", "first")
        let pieces = cut(String(repeating: "\u{1f600}", count: 200), 48, behind: 2) + (isOpen ? [[0xf0, 0x9f]] : [[0x61, 0xff]])
        for piece in pieces { try post(path, piece, on: server) }
        if !isOpen { #expect(try server.request("POST", path, closed).status == 204) }
        var (offset, read, isBinary) = ("-1", Bytes(), false)
        for _ in 0..<4 where read.count < pieces.reduce(5, { $0 + $1.count }) {
            let client = try server.connect()
            try client.send("GET", path + "?offset=\(offset)&live=sse")
            isBinary = try client.head().headers["stream-sse-data-encoding"] == "base64"
            var data = Bytes()
            while let event = try? client.event() {
                if event.name == "data" { data = isBinary ? try #require(decodeBase64(event.data)) : Bytes(event.data.utf8) }
                guard event.name == "control", let next = event.id else { continue }
                (offset, read, data) = (next, read + data, [])
                if isBinary, read.count == pieces.reduce(5, { $0 + $1.count }) { break }
            }
        }
        #expect(isBinary && read == Bytes("first".utf8) + pieces.flatMap { $0 })
    }

    // MARK: Pages that become long in events

    private static let longest = 1 << 20

    @Test(arguments: ["text/plain", "application/json", "application/octet-stream"])
    func `a message holds no more than it takes as it is stored, and comes whole`(_ type: String) throws {
        let server = try TestServer { $0.answerBytesMax = 8 * Self.longest }
        let inner = Bytes(repeating: 0x0a, count: Self.longest)
        let path = try server.stream(type)
        let message = type == "application/json" ? Bytes("[[1,".utf8) + inner + Bytes("2]]".utf8) : inner
        #expect(try server.request("POST", path, [("Content-Type", type)] + closed, message).status == 204)
        let slow = try TestClient(port: server.port, receiveBuffer: 4_096)
        try slow.send("GET", path + "?offset=-1&live=sse")
        try server.eventually("the page") { try server.metric("parley_answer_bytes") ?? 0 > 0 }
        let held = try server.metric("parley_answer_bytes") ?? .infinity
        #expect(held < Double(Self.longest + 1_000))
        let events = try TestClient(port: server.port, patience: 60, receiveBuffer: 4 << 20).request("GET", path + "?offset=-1&live=sse")
        var (parser, data) = (ServerSentEventParser(bytesMax: 3 * Self.longest), [ServerSentEvent]())
        try events.body.withUnsafeBytes { bytes throws in try parser.feed(bytes) { data.append($0) } }
        #expect(data.map(\.name) == ["data", "control"])
        switch type {
        case "text/plain": #expect(data.first?.data == inner)
        case "application/json":
            #expect(data.first?.data == message.dropFirst().dropLast().reduce(into: Bytes("[".utf8)) { $0.append($1) } + Bytes("]".utf8))
        default: #expect(decodeBase64(data.first?.data.text ?? "") == inner)
        }
        withExtendedLifetime(slow) {}
    }

    @Test func `peers that take nothing are disconnected once others wait for the memory that their answers hold`() throws {
        let server = try TestServer {
            $0.answerBytesMax = 8 * Self.longest
            $0.http.crowdedWriteTimeout = .milliseconds(200)
        }
        let path = try server.stream("text/plain")
        for _ in 0..<2 { try post(path, Bytes(repeating: 0x61, count: Self.longest), on: server) }
        let stuck = try (0..<12).map { number in
            let client = try TestClient(port: server.port, receiveBuffer: 4_096)
            try client.send("GET", path + (number % 2 == 0 ? "?offset=-1&live=sse" : "?offset=-1"))
            return client
        }
        try server.eventually("their answers") { try server.metric("parley_answer_bytes") ?? 0 > 3 * Double(Self.longest) }
        #expect(try server.get(path + "?offset=-1").body.count >= Self.longest)
        try server.eventually("room") { try server.metric("parley_answer_bytes") ?? .infinity < Double(Self.longest) }
        withExtendedLifetime(stuck) {}
    }

    @Test func `nothing comes between the pieces of an event`() throws {
        let server = try TestServer {
            $0.heartbeatInterval = .milliseconds(20)
            $0.streamLifetime = .milliseconds(300)
        }
        let path = try server.stream("text/plain")
        try post(path, Bytes(repeating: 0x0a, count: Self.longest / 2), on: server)
        let slow = try TestClient(port: server.port, receiveBuffer: 4_096)
        try slow.send("GET", path + "?offset=-1&live=sse")
        try server.eventually("the page") { try server.metric("parley_answer_bytes") ?? 0 > 0 }
        slow.finishSending()
        // Its time is up long before it has read all.
        usleep(700_000)
        let events = try slow.answer().body
        #expect(events.starts(with: Bytes("event: data\ndata:\ndata:\n".utf8)))
        let end = try #require(events.firstRange(of: Bytes("data:\n\n".utf8)))
        #expect(end.upperBound == "event: data\n".utf8.count + (Self.longest / 2 + 1) * 6 + 1)
        #expect(events[end.upperBound...].starts(with: Bytes("event: control\n".utf8)))
    }

    @Test func `a reader that is gone before its data has room is let go of`() throws {
        let server = try TestServer { $0.answerBytesMax = 2 * Self.longest }
        let path = try server.stream("text/plain")
        try post(path, Bytes(repeating: 0x78, count: Self.longest - 1_000), on: server)
        let slow = try TestClient(port: server.port, receiveBuffer: 4_096)
        try slow.send("GET", path + "?offset=-1&live=sse")
        try server.eventually("the page") { try server.metric("parley_answer_bytes") ?? 0 > 0 }
        var gone = [TestClient]()
        for _ in 0..<5 {
            gone.append(try server.connect())
            try gone.last?.send("GET", path + "?offset=-1&live=sse")
        }
        try waitForReaders(6, on: server)
        gone = []
        try waitForReaders(1, on: server)
        withExtendedLifetime(slow) {}
    }

    @Test func `a large commit of line ends comes to all who are there`() throws {
        let server = try TestServer()
        let path = try server.stream("text/plain", "x")
        let readers = try (0..<3).map { _ in try TestClient(port: server.port, patience: 60, receiveBuffer: 1 << 20) }
        for reader in readers { try reader.send("GET", path + "?offset=now&live=sse") }
        for reader in readers {
            _ = try reader.head()
            _ = try reader.text(through: "\n\n")
        }
        try post(path, Bytes(repeating: 0x0a, count: 3 * Self.longest), closed, on: server)
        for reader in readers { #expect(try reader.rest().count > 3 * Self.longest * 6) }
    }
}
