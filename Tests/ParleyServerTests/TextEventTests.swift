import ParleyChannels
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `Text in events` {
    private static let server = Result { try TestServer() }
    private var server: TestServer { get throws { try Self.server.get() } }

    /// The text that a reader of the events has in the end.
    private func data(_ output: Bytes) throws -> String {
        var (parser, text) = (ServerSentEventParser(), Bytes())
        try output.withUnsafeBytes { bytes throws in try parser.feed(bytes) { if $0.name == "data" { text += $0.data } } }
        return String(decoding: text, as: UTF8.self)
    }

    /// Text as events have it: line ends are line feeds.
    private func plain(_ text: String) -> String {
        var (output, isAfterReturn) = (Bytes(), false)
        for byte in text.utf8 {
            if byte != 0x0a || !isAfterReturn { output.append(byte == 0x0d ? 0x0a : byte) }
            isAfterReturn = byte == 0x0d
        }
        return output.text
    }

    /// Returns text as it reaches a reader that is there for each of the pieces.
    private func read(_ pieces: [Bytes]) throws -> (text: String, waits: Int) {
        var (output, pending, waits) = (Bytes(), [TextEvents.Piece](), 0)
        for (index, piece) in pieces.enumerated() {
            pending.append(TextEvents.Piece(text: piece, last: UInt64(index + 1)))
            var continues = true
            while continues, !pending.isEmpty {
                switch TextEvents(cursor: 1, isEnded: index == pieces.count - 1).outcome(of: pending) {
                case .events(let bytes, let next, _, _):
                    output += bytes
                    pending.removeAll { $0.last <= next }
                case .waits: (waits, continues) = (waits + 1, false)
                case .unfit: throw TestFailure("unfit: \(pending)")
                }
            }
        }
        #expect(pending.isEmpty)
        return (try data(output), waits)
    }

    @Test(arguments: ["a\u{e9}\u{20ac}\u{1f600}z", "a\r\nb\rc\n\r\n\r\rd\r", "\r\n", "\u{feff} x\r", " \r\n  \u{1f600}"])
    func `is the same however it was cut`(_ text: String) throws {
        let bytes = Bytes(text.utf8)
        #expect(try read(bytes.map { [$0] }).text == plain(text))
        for first in 0...bytes.count {
            for second in first...bytes.count {
                let pieces = [bytes[..<first], bytes[first..<second], bytes[second...]].map { Bytes($0) }.filter { !$0.isEmpty }
                #expect(try read(pieces).text == plain(text), "cut at \(first) and \(second)")
            }
        }
    }

    @Test func `waits only where it must`() throws {
        #expect(try read(["a", "b\n", "c"].map { Bytes($0.utf8) }).waits == 0)
        #expect(try read([[0xe2], [0x82], [0xac]]).waits == 2)
        #expect(try read(["a\r", "b\r", "c"].map { Bytes($0.utf8) }).waits == 2)
    }

    @Test(arguments: [[0xff], [0x63, 0xe9, 0x20], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0x80], [0xf5], [0xe9, 0x0d]] as [Bytes])
    func `is not what is no UTF-8`(_ bytes: Bytes) {
        let pieces = bytes.enumerated().map { TextEvents.Piece(text: [$1], last: UInt64($0 + 1)) }
        #expect(TextEvents(cursor: 1).outcome(of: [TextEvents.Piece(text: bytes, last: 1)]) == .unfit)
        var isUnfit = false
        var rest = pieces
        while !isUnfit, case .events(_, let next, _, _) = TextEvents(cursor: 1).outcome(of: rest) { rest.removeAll { $0.last <= next } }
        if case .unfit = TextEvents(cursor: 1).outcome(of: rest) { isUnfit = true }
        #expect(isUnfit)
    }

    /// Bytes of which texts and their ends are made, in any order.
    private static let alphabet = Bytes("a \r\n\u{e9}\u{20ac}\u{1f600}".utf8) + [0xff, 0xc0, 0xed]

    @Test(arguments: [1, 2, 3]) func `is all there, or refused as none, whatever the bytes`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        for round in 0..<400 {
            let isText = round % 2 == 0
            var bytes = Bytes()
            for _ in 0..<Int.random(in: 1...12, using: &random) {
                let text = ["a", " ", "\r", "\n", "\r\n", "\u{e9}", "\u{20ac}", "\u{1f600}"].randomElement(using: &random)!
                bytes += isText ? Bytes(text.utf8) : [Self.alphabet.randomElement(using: &random)!]
            }
            var (pieces, start) = ([Bytes](), 0)
            while start < bytes.count {
                let end = min(bytes.count, start + Int.random(in: 1...4, using: &random))
                pieces.append(Bytes(bytes[start..<end]))
                start = end
            }
            let whole = String(validating: bytes, as: UTF8.self)
            if let whole {
                #expect(try read(pieces).text == plain(whole), "\(pieces)")
            } else {
                #expect(throws: TestFailure.self, "\(pieces)") { try read(pieces) }
            }
        }
    }

    @Test func `cannot forge an event`() {
        var output = Bytes()
        EventFraming.writeText(Bytes("a\r\nid: 9\rb\n\n c".utf8), to: &output)
        #expect(output.text == "event: data\ndata:a\ndata:id: 9\ndata:b\ndata:\ndata:  c\n\n")
        output = []
        EventFraming.writeText(Bytes("a\n".utf8), to: &output)
        #expect(output.text == "event: data\ndata:a\ndata:\n\n")
    }

    // MARK: Over HTTP

    private func post(_ path: String, _ bytes: Bytes, _ headers: [(String, String)] = []) throws {
        #expect(try server.request("POST", path, [("Content-Type", "text/plain")] + headers, bytes).status == 204)
    }

    @Test func `a character cut between two appends comes whole, and a reader may continue anywhere`() throws {
        let path = try server.stream("text/plain", "a")
        let (live, euro) = (try server.follow(path), Bytes("\u{20ac}".utf8))
        _ = try live.events { $0["upToDate"] == true }
        try post(path, Bytes("b".utf8) + euro.prefix(1))
        // From the middle, before the rest has come: up to date with what is text.
        let late = try server.follow(path)
        #expect(try late.events { $0["upToDate"] == true }.map(\.data).first == "a")
        try post(path, Bytes(euro.dropFirst()))
        for reader in [live, late] {
            let events = try reader.events { $0["streamNextOffset"] == "0000000000000003" }
            #expect(events.filter { $0.name == "data" }.map(\.data) == ["b\u{20ac}"])
        }
        #expect(try server.get(path + "?offset=0000000000000002").body == Bytes(euro.dropFirst()))
    }

    @Test func `a line's end cut between two appends is one`() throws {
        let path = try server.stream("text/plain", "a\r")
        let live = try server.follow(path)
        try post(path, Bytes("\nb".utf8), closed)
        #expect(try live.events().filter { $0.name == "data" }.map(\.data).joined() == "a\nb")
        #expect(try server.events(path)[0].data == "a\nb")
    }

    @Test func `a carriage return that nothing follows ends a line, after a moment`() throws {
        let path = try server.stream("text/plain", "10 %\r")
        let live = try server.follow(path)
        var events = try live.events { $0["streamNextOffset"] == "0000000000000001" }
        #expect(events.filter { $0.name == "data" }.map(\.data) == ["10 %\n"])
        try post(path, Bytes("\nend".utf8), closed)
        events = try live.events()
        #expect(events.filter { $0.name == "data" }.map(\.data) == ["end"], "the line feed was told already")
    }

    @Test(arguments: ["text/plain; charset=iso-8859-1", "text/html;Charset=\"windows-1252\"", "text/plain; charset=utf-16"])
    func `of another charset is sent in Base64`(_ type: String) throws {
        let path = try server.stream(type)
        #expect(try server.request("POST", path, [("Content-Type", type)] + closed, [0x63, 0xe9]).status == 204)
        let client = try server.connect()
        try client.send("GET", path + "?offset=-1&live=sse")
        #expect(try client.head().headers["stream-sse-data-encoding"] == "base64")
        #expect(try decodeBase64(client.events()[0].data) == [0x63, 0xe9])
    }

    @Test(arguments: ["text/plain", "text/plain; charset=UTF-8", "text/csv;charset=\"us-ascii\"", "TEXT/plain; format=flowed"])
    func `of no other charset is sent as it is`(_ type: String) throws {
        let path = try server.stream(type, "x", closed: true)
        #expect(try server.get(path + "?offset=-1&live=sse").headers["stream-sse-data-encoding"] == nil)
    }

    /// A reader that resumes at its last offset, until the stream is closed: all that it was given.
    private func readAll(_ path: String) throws -> Bytes {
        var (read, offset) = (Bytes(), "-1")
        for _ in 0..<20 {
            let client = try server.connect()
            try client.send("GET", path + "?offset=\(offset)&live=sse")
            let isBinary = try client.head().headers["stream-sse-data-encoding"] == "base64"
            while let event = try client.event() {
                if event.name == "data" { read += isBinary ? decodeBase64(event.data) ?? [] : Bytes(event.data.utf8) }
                guard event.name == "control" else { continue }
                offset = event.json?["streamNextOffset"]?.string ?? offset
                if event.json?["streamClosed"] == true { return read }
            }
        }
        throw TestFailure("the end never came")
    }

    @Test(
        arguments: [
            [[0x61], [0xff, 0xfe], [0x62]], [[0x61, 0xe2], [0x82]], [[0xe2]], [[0x63, 0x61, 0x66, 0xe9], [0x20, 0x61]],
            [[0x61], [0xc3, 0xa9], [0xc3], [0x28], [0x62]],
        ] as [[Bytes]]) func `that is none after all comes in Base64, byte for byte`(_ pieces: [Bytes]) throws
    {
        let path = try server.stream("text/plain")
        for (index, piece) in pieces.enumerated() { try post(path, piece, index == pieces.count - 1 ? closed : []) }
        #expect(try readAll(path) == pieces.flatMap { $0 })
    }

    @Test func `that is none is not waited for without end`() throws {
        let path = try server.stream("text/plain", "a")
        try post(path, [0x63, 0xe9])
        let live = try server.follow(path)
        let events = try live.events()
        #expect(events.filter { $0.name == "data" }.map(\.data) == ["a"])
        #expect(events.last?.json?["streamNextOffset"] == "0000000000000001")
        let again = try server.connect()
        try again.send("GET", path + "?offset=0000000000000001&live=sse")
        #expect(try again.head().headers["stream-sse-data-encoding"] == "base64")
        #expect(try decodeBase64(#require(try again.event()).data) == [0x63, 0xe9])
    }

    @Test func `a page ends with a character, unless there is no end to it`() throws {
        let server = try TestServer { $0.pageBytes = 64 }
        let path = try server.stream("text/plain")
        let text = Bytes(String(repeating: "\u{1f600}\r\n", count: 60).utf8)
        for start in stride(from: 0, to: text.count, by: 5) {
            #expect(
                try server.request("POST", path, [("Content-Type", "text/plain")], Bytes(text[start..<min(start + 5, text.count)])).status
                    == 204)
        }
        #expect(try server.request("POST", path, closed).status == 204)
        let events = try server.events(path)
        #expect(events.filter { $0.name == "data" }.map(\.data).joined() == String(repeating: "\u{1f600}\n", count: 60))
        #expect(try server.read(path) == text)
    }
}
