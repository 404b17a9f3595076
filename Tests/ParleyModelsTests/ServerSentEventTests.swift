import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `The parser of event streams` {
    struct Case: Sendable, CustomTestStringConvertible {
        var name: String
        var input: String
        var events: [ServerSentEvent]
        var testDescription: String { name }
    }

    static func event(_ data: String, _ name: String = "") -> ServerSentEvent { ServerSentEvent(name: name, data: Bytes(data.utf8)) }

    static let cases = [
        Case(name: "one event", input: "data: a\n\n", events: [event("a")]),
        Case(name: "no space after the colon", input: "data:a\n\n", events: [event("a")]),
        Case(name: "one of two spaces is taken", input: "data:  a\n\n", events: [event(" a")]),
        Case(name: "CRLF", input: "data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", events: [event("a\nb"), event("c")]),
        Case(name: "CR alone", input: "data: a\rdata: b\r\rdata: c\r\r", events: [event("a\nb"), event("c")]),
        Case(name: "line ends mixed", input: "data: a\r\n\rdata: b\n\r\n", events: [event("a"), event("b")]),
        Case(name: "data on several lines", input: "data: a\ndata\ndata: b\n\n", events: [event("a\n\nb")]),
        Case(name: "empty data is an event", input: "data\n\n", events: [event("")]),
        Case(name: "no data is none", input: "event: x\n\n\n\ndata: a\n\n", events: [event("a")]),
        Case(name: "a name is for one event", input: "event: x\ndata: a\n\ndata: b\n\n", events: [event("a", "x"), event("b")]),
        Case(name: "comments", input: ": ping\n\ndata: a\n: ping\n\n:\n\n", events: [event("a")]),
        Case(name: "other fields", input: "id: 7\nretry: 10\ndat: x\ndatas: y\ndata: a\n\n", events: [event("a")]),
        Case(name: "byte order mark", input: "\u{FEFF}data: a\n\n", events: [event("a")]),
        Case(name: "scalars of 2, 3 and 4 bytes", input: "data: é–🦊\n\nevent: ü\ndata: 漢\n\n", events: [event("é–🦊"), event("漢", "ü")]),
        Case(name: "colons in the data", input: "data: a: b\n\n", events: [event("a: b")]),
        Case(name: "the last event may lack its empty line", input: "data: a\n\ndata: b\n", events: [event("a"), event("b")]),
        Case(name: "the last line may lack its end", input: "data: a\n\ndata: b", events: [event("a"), event("b")]),
        Case(name: "nothing", input: "", events: []),
    ]

    func feed(_ parser: inout ServerSentEventParser, _ bytes: Bytes, _ visit: (ServerSentEvent) -> Void) throws {
        // Untyped: a typed throw through `withUnsafeBytes` crashes the compiler (6.3.1).
        try bytes.withUnsafeBytes { piece throws in try parser.feed(piece, visit) }
    }

    func parse(_ bytes: Bytes, cuts: [Int]) throws -> [ServerSentEvent] {
        var parser = ServerSentEventParser()
        var events: [ServerSentEvent] = []
        var start = 0
        for cut in cuts + [bytes.count] {
            try feed(&parser, Bytes(bytes[start..<cut])) { events.append($0) }
            start = cut
        }
        if let last = try parser.end() { events.append(last) }
        return events
    }

    @Test(arguments: cases) func `reads what the standard says`(_ example: Case) throws {
        #expect(try parse(Bytes(example.input.utf8), cuts: []) == example.events)
    }

    @Test(arguments: cases) func `reads the same however the bytes are cut`(_ example: Case) throws {
        let bytes = Bytes(example.input.utf8)
        guard !bytes.isEmpty else { return }
        #expect(try parse(bytes, cuts: Array(0..<bytes.count)) == example.events)
        for cut in 0...bytes.count { #expect(try parse(bytes, cuts: [cut]) == example.events, "cut at \(cut)") }
        var random = SplitMix64(seed: 7)
        for _ in 0..<50 {
            let cuts = (0..<Int(random.next() % 6)).map { _ in Int(random.next() % UInt64(bytes.count)) }.sorted()
            #expect(try parse(bytes, cuts: cuts) == example.events, "cuts at \(cuts)")
        }
    }

    @Test(arguments: [
        "data: " + String(repeating: "a", count: 100), String(repeating: "data: 12345\n", count: 10),
        ":" + String(repeating: " ", count: 100),
    ])
    func `a line or an event that is too long is an error`(input: String) {
        var parser = ServerSentEventParser(bytesMax: 50)
        #expect(throws: ServerSentEventError.tooLong) { try feed(&parser, Bytes(input.utf8)) { _ in } }
    }
}

@Suite struct `Retry-After` {
    static let now = Timestamp("1994-11-06T08:49:00Z")!

    @Test(
        arguments: [
            ("37", Duration.seconds(37)), ("0", .zero), (" 5 ", .seconds(5)), ("-5", nil), ("5.5", nil), ("soon", nil), ("", nil),
            ("99999999999", .seconds(1_000_000_000)), ("00000000000000037", .seconds(37)), ("9223372036854775807", .seconds(1_000_000_000)),
            ("99999999999999999999", nil), ("Sun, 06 Nov 1994 08:49:37 GMT", .seconds(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", .seconds(37)),
            ("Sun Nov  6 08:49:37 1994", .seconds(37)), ("Sun, 06 Nov 1994 08:48:00 GMT", .zero), ("Sun, 06 Now 1994 08:49:37 GMT", nil),
            ("Sun, 36 Nov 1994 08:49:37 GMT", nil), ("Sun, 06 Nov 1994 08:49:37 CET", nil), ("1, 06 Nov 1994 08:49:37 GMT", nil),
        ] as [(String, Duration?)])
    func `is read as seconds or as a date`(value: String, expected: Duration?) {
        #expect(RetryAfter.parse([("Retry-After", value)], now: Self.now) == expected)
    }

    @Test func `in milliseconds counts for more`() {
        #expect(RetryAfter.parse([("retry-after", "2"), ("Retry-After-Ms", "1500")], now: Self.now) == .milliseconds(1500))
        #expect(RetryAfter.parse([("retry-after-ms", "99999999999999")], now: Self.now) == .seconds(1_000_000_000))
        #expect(RetryAfter.parse([("x", "2")], now: Self.now) == nil)
    }

    @Test func `in a body is no longer than in a head`() {
        #expect(RetryAfter.seconds(1.5) == .milliseconds(1_500))
        for seconds: Double in [99_999_999_999, 1e300, .infinity] { #expect(RetryAfter.seconds(seconds) == .seconds(1_000_000_000)) }
        for seconds: Double in [-1, -.infinity, .nan] { #expect(RetryAfter.seconds(seconds) == nil) }
    }
}
