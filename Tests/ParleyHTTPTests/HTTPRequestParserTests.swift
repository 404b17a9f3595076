import ParleySystem
import Testing

@testable import ParleyHTTP

/// A message and what the parser makes of it.
struct ParserCase: CustomTestStringConvertible, Sendable {
    enum Outcome: Sendable, Equatable {
        /// The method, target and body of each request, in order.
        case requests([String])
        case rejected(Int)
        case incomplete
    }

    let name: String
    let message: String
    let outcome: Outcome
    var testDescription: String { name }

    init(_ name: String, _ message: String, _ outcome: Outcome) {
        self.name = name
        self.message = message
        self.outcome = outcome
    }

    static func accepts(_ name: String, _ message: String, _ requests: String...) -> ParserCase {
        ParserCase(name, message, .requests(requests))
    }

    static func rejects(_ name: String, _ message: String, _ status: Int = 400) -> ParserCase {
        ParserCase(name, message, .rejected(status))
    }

    /// A request with the usual line and Host, with more fields.
    static func get(_ fields: String) -> String { "GET / HTTP/1.1\r\nHost: a\r\n\(fields)\r\n" }

    static func chunked(_ body: String) -> String {
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\(body)"
    }

    static func body(_ fields: String, _ body: String = "abc") -> String { "POST / HTTP/1.1\r\nHost: a\r\n\(fields)\r\n\r\n\(body)" }
}

extension ParserCase {
    static let framing: [ParserCase] = [
        .rejects("CL then TE", body("Content-Length: 3\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
        .rejects("TE then CL", body("Transfer-Encoding: chunked\r\nContent-Length: 3", "0\r\n\r\n")),
        .rejects("TE xchunked with CL", body("Transfer-Encoding: xchunked\r\nContent-Length: 3"), 501),
        .rejects("TE gzip", body("Transfer-Encoding: gzip"), 501),
        .rejects("TE chunked, gzip", body("Transfer-Encoding: chunked, gzip"), 501),
        .rejects("TE quoted chunked", body("Transfer-Encoding: \"chunked\""), 501),
        .rejects("TE xchunked", body("Transfer-Encoding: xchunked"), 501),
        .rejects("TE gzip, chunked", body("Transfer-Encoding: gzip, chunked"), 501),
        .rejects("TE chunked, chunked", body("Transfer-Encoding: chunked, chunked"), 501),
        .rejects("TE empty", body("Transfer-Encoding:"), 501),
        .rejects("TE with a vertical tab", body("Transfer-Encoding: \u{0b}chunked")),
        .rejects("TE identity and TE chunked", body("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"), 501),
        .rejects("TE chunked twice", body("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        .accepts("TE chunked in capitals", body("TRANSFER-ENCODING: CHUNKED", "1\r\nx\r\n0\r\n\r\n"), "POST / x"),
        .rejects("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        .rejects("the same CL twice", body("Content-Length: 3\r\nContent-Length: 3")),
        .rejects("CL list", body("Content-Length: 3, 3")),
        .rejects("two CLs that differ", body("Content-Length: 3\r\nContent-Length: 4")),
        .rejects("CL with a sign", body("Content-Length: +3")),
        .rejects("CL negative", body("Content-Length: -3")),
        .rejects("CL hexadecimal", body("Content-Length: 0x3")),
        .rejects("CL with a blank inside", body("Content-Length: 3 3")),
        .rejects("CL empty", body("Content-Length:")),
        .rejects("CL above 2^64", body("Content-Length: 18446744073709551619")),
        .rejects("CL above 2^63", body("Content-Length: 9223372036854775808")),
        .rejects("CL above the limit", body("Content-Length: 1048577"), 413),
        .accepts("CL with blanks around", body("Content-Length: \t 3 \t"), "POST / abc"),
        .accepts("CL zero", body("Content-Length: 0", ""), "POST / "),
        ParserCase("CL not reached", body("Content-Length: 4"), .incomplete),
    ]

    static let lines: [ParserCase] = [
        .rejects("bare LF behind the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
        .rejects("bare LF behind a field", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        .rejects("bare LF at the head's end", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        .rejects("bare CR in a value", get("X: a\rb\r\n")),
        .rejects("bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("NUL in a value", get("X: a\0b\r\n")),
        .rejects("NUL in a name", get("X\0: a\r\n")),
        .rejects("control character in a value", get("X: a\u{01}b\r\n")),
        .rejects("DEL in a value", get("X: a\u{7f}\r\n")),
        .accepts("tab and bytes above ASCII in a value", get("X: a\tb\u{e9}\r\n"), "GET / "),
        .rejects("folded field", get("X: a\r\n b\r\n")),
        .rejects("folded field with a tab", get("X: a\r\n\tb\r\n")),
        .rejects("blank before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        .rejects("blank before a colon", get("X : a\r\n")),
        .rejects("tab before a colon", get("X\t: a\r\n")),
        .rejects("empty name", get(": a\r\n")),
        .rejects("line without a colon", get("X\r\n")),
        .rejects("name with a bracket", get("X[: a\r\n")),
        .rejects("name above ASCII", get("X\u{e9}: a\r\n")),
        .accepts("empty value", get("X:\r\n"), "GET / "),
        .rejects("101 fields", get(String(repeating: "X: a\r\n", count: 100)), 431),
        .accepts("100 fields", get(String(repeating: "X: a\r\n", count: 99)), "GET / "),
        .rejects("field of 64 KB", get("X: " + String(repeating: "a", count: 65_536) + "\r\n"), 431),
        .rejects("64 fields of 1 KB", get(String(repeating: "X: " + String(repeating: "a", count: 1_024) + "\r\n", count: 64)), 431),
        .rejects("target of 64 KB", "GET /" + String(repeating: "a", count: 65_536) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        .rejects("method without end", String(repeating: "A", count: 100), 501),
        ParserCase("head without end", "GET / HTTP/1.1\r\nHost: a\r\n", .incomplete),
        .rejects("first wrong byte, no end of head", "GET / HTTP/1.1\r\nX\u{01}"),
    ]

    static let requestLine: [ParserCase] = [
        .rejects("missing Host", "GET / HTTP/1.1\r\n\r\n"),
        .rejects("two Hosts", get("Host: b\r\n")),
        .rejects("Host with a slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        .rejects("Host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
        .accepts("Host IPv6 with a port", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / "),
        .accepts("Host empty", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / "),
        .rejects("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        .rejects("HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        .rejects("HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
        .rejects("HTTP/0.9", "GET /\r\n"),
        .rejects("http in lower case", "GET / http/1.1\r\nHost: a\r\n\r\n"),
        .rejects("no version", "GET / \r\nHost: a\r\n\r\n"),
        .accepts("get in lower case", "get / HTTP/1.1\r\nHost: a\r\n\r\n", "get / "),
        .accepts("unknown method", "FOO / HTTP/1.1\r\nHost: a\r\n\r\n", "FOO / "),
        .rejects("method that is no token", "G@T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("no method", " / HTTP/1.1\r\nHost: a\r\n\r\n"),
        .accepts("absolute target", "GET http://b/c?d HTTP/1.1\r\nHost: b\r\n\r\n", "GET http://b/c?d "),
        .rejects("absolute target without a host", "GET http:///c HTTP/1.1\r\nHost: b\r\n\r\n"),
        .rejects("absolute target with a user", "GET http://u@b/c HTTP/1.1\r\nHost: b\r\n\r\n"),
        .rejects("absolute target with a fragment", "GET http://b#c/ HTTP/1.1\r\nHost: b\r\n\r\n"),
        .accepts("absolute target without a path", "GET HTTPS://b:1?d HTTP/1.1\r\nHost: b\r\n\r\n", "GET HTTPS://b:1?d "),
        .accepts("target without a slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", "GET a "),
        .rejects("0xff in the target", "GET /\u{ff} HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("control character in the target", "GET /\u{01} HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("two spaces before the target", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("two spaces behind the target", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("tab in the request line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        .rejects("space behind the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
        .accepts("one leading CRLF", "\r\n" + get(""), "GET / "),
        .rejects("two leading CRLFs", "\r\n\r\n" + get("")),
        .rejects("leading LF", "\n" + get("")),
        .rejects("leading CR", "\r" + get("")),
        .rejects("TLS hello", "\u{16}\u{03}\u{01}"),
        .accepts("three pipelined", get("") + body("Content-Length: 3") + get(""), "GET / ", "POST / abc", "GET / "),
        .accepts("upgrade", get("Connection: Upgrade\r\nUpgrade: websocket\r\n"), "GET / "),
        .accepts("GET with a body", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "GET / abc"),
        .accepts("HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", "GET / "),
        .accepts("HTTP/1.0 kept alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET / "),
        .accepts("Connection list with empty elements", get("Connection: , close ,,\tTE\r\n"), "GET / "),
        .rejects("Connection list without a comma", get("Connection: keep alive\r\n")),
        .rejects("Connection list with a quote", get("Connection: \"close\"\r\n")),
        .accepts("Expect 100-continue", body("Expect: 100-Continue\r\nContent-Length: 3"), "POST / abc"),
        .rejects("Expect something else", get("Expect: a pony\r\n"), 417),
    ]

    static let chunks: [ParserCase] = [
        .accepts("three chunks", chunked("3\r\nabc\r\n1\r\nd\r\nA\r\n0123456789\r\n0\r\n\r\n"), "POST / abcd0123456789"),
        .accepts("size with leading zeros", chunked("003\r\nabc\r\n000\r\n\r\n"), "POST / abc"),
        .accepts(
            "chunks of a byte, with others between",
            chunked(String(repeating: "1\r\nx\r\n", count: 50) + "1;a=b\r\ny\r\n2\r\nzz\r\n0\r\n\r\n"),
            "POST / " + String(repeating: "x", count: 50) + "yzz"),
        .rejects("a chunk of a byte that ends in LF", chunked("1\r\nx\r\n1\r\nx\n")),
        .rejects("size g", chunked("g\r\n")),
        .rejects("size 0x3", chunked("0x3\r\nabc\r\n0\r\n\r\n")),
        .rejects("size with a blank behind", chunked("3 \r\nabc\r\n0\r\n\r\n")),
        .rejects("size with a blank before", chunked(" 3\r\nabc\r\n0\r\n\r\n")),
        .rejects("size empty", chunked("\r\nabc\r\n0\r\n\r\n")),
        .rejects("size negative", chunked("-3\r\nabc\r\n0\r\n\r\n")),
        .rejects("size above 2^64", chunked("10000000000000003\r\nabc\r\n0\r\n\r\n"), 413),
        .rejects("size of zeros without end", chunked(String(repeating: "0", count: 200))),
        .rejects("size line with LF only", chunked("3\nabc\r\n0\r\n\r\n")),
        .rejects("size 0x7fffffff", chunked("7fffffff\r\nabc\r\n0\r\n\r\n"), 413),
        .rejects("sum of chunks above the limit", chunked("80000\r\n" + String(repeating: "a", count: 0x80000) + "\r\n80001\r\n"), 413),
        .rejects("chunk longer than announced", chunked("3\r\nabcd\r\n0\r\n\r\n")),
        .rejects("chunk with LF only", chunked("3\r\nabc\n0\r\n\r\n")),
        .accepts("extension", chunked("3;a=b\r\nabc\r\n0\r\n\r\n"), "POST / abc"),
        .accepts("extensions of all kinds", chunked("3 ; a ; b = c;d=\"x\\\"\ty\" ;e\r\nabc\r\n0;z\r\n\r\n"), "POST / abc"),
        .rejects("extension of 20 KB", chunked("3;a=" + String(repeating: "b", count: 20_480) + "\r\nabc\r\n0\r\n\r\n")),
        .rejects("extension without a name", chunked("3;\r\nabc\r\n0\r\n\r\n")),
        .rejects("extension without a value", chunked("3;a=\r\nabc\r\n0\r\n\r\n")),
        .rejects("extension with LF in quotes", chunked("3;a=\"b\nc\"\r\nabc\r\n0\r\n\r\n")),
        .rejects("extension behind a quoted value", chunked("3;a=\"b\"c\r\nabc\r\n0\r\n\r\n")),
        .rejects("extension with a blank at the end", chunked("3;a \r\nabc\r\n0\r\n\r\n")),
        .accepts("trailer", chunked("0\r\nX: y\r\n\r\n") + get(""), "POST / ", "GET / "),
        .rejects("CL in a trailer", chunked("0\r\nContent-Length: 3\r\n\r\n")),
        .rejects("TE in a trailer", chunked("0\r\ntransfer-encoding: chunked\r\n\r\n")),
        .rejects("Host in a trailer", chunked("0\r\nHOST: b\r\n\r\n")),
        .rejects("trailer without a colon", chunked("0\r\nX\r\n\r\n")),
        .rejects("trailer with a blank before its colon", chunked("0\r\nX : y\r\n\r\n")),
        .rejects("folded trailer", chunked("0\r\nX: y\r\n z\r\n\r\n")),
        .rejects("trailers of 64 KB", chunked("0\r\nX: " + String(repeating: "a", count: 65_536) + "\r\n\r\n"), 431),
        .rejects("101 trailers", chunked("0\r\n" + String(repeating: "X: y\r\n", count: 101) + "\r\n"), 431),
        .rejects("end with LF only", chunked("0\r\n\n")),
    ]

    static let all = framing + lines + requestLine + chunks
}

@Suite struct `HTTP request parser` {
    @Test(arguments: ParserCase.all)
    func `takes what is unambiguous and refuses the rest`(sample: ParserCase) {
        #expect(outcome(of: sample.message.latin1, cuts: []) == sample.outcome)
    }

    @Test(arguments: ParserCase.all)
    func `says the same of a message that comes byte by byte`(sample: ParserCase) {
        let bytes = sample.message.latin1
        guard bytes.count < 20_000 else { return }
        #expect(outcome(of: bytes, cuts: Array(0..<bytes.count)) == sample.outcome)
    }

    @Test func `says the same of mutated messages however they are cut`() {
        let seed = Seed.value
        var random = SeededRandom(seed: seed)
        let samples = ParserCase.all.map(\.message.latin1).filter { $0.count < 2_000 }
        for _ in 0..<20_000 {
            var bytes = samples.randomElement(using: &random)! + samples.randomElement(using: &random)!
            for _ in 0..<Int.random(in: 0...3, using: &random) { HostileRequests.mutate(&bytes, &random) }
            let cuts = (0..<Int.random(in: 1...5, using: &random)).map { _ in Int.random(in: 0...bytes.count, using: &random) }
            let whole = outcome(of: bytes, cuts: [])
            let cut = outcome(of: bytes, cuts: cuts.sorted())
            #expect(whole == cut, "PARLEY_SEED=\(seed) message \(bytes.text.debugDescription) cuts \(cuts)")
            if whole != cut { return }
        }
    }

    @Test func `gives fields without blanks around their values, whatever the case of the name`() throws {
        let message = "GET /a%20b?x=1&y=a+b%21&z HTTP/1.1\r\nHost: h\r\nAccept:  text/html \r\naccept: */*\r\n\r\n"
        var parser = HTTPRequestParser()
        let head = try message.latin1.withUnsafeBytes { bytes throws in
            let first = try parser.parse(bytes)
            #expect(first.event == .head && first.used == bytes.count)
            #expect(try parser.parse(UnsafeRawBufferPointer(rebasing: bytes[first.used...])).event == .request)
            return parser.takeRequest().head
        }
        let request = HTTPRequest(head: head, body: [], loop: EventLoop(name: "unused"))
        #expect(request.path == "/a%20b")
        #expect(request.query == "x=1&y=a+b%21&z")
        #expect(request.queryItems.map { "\($0.name)=\($0.value)" } == ["x=1", "y=a b!", "z="])
        #expect(request.header("ACCEPT") == "text/html")
        #expect(request.headers("Accept") == ["text/html", "*/*"])
        #expect(request.header("Accept-Language") == nil)
    }

    @Test func `lets a request have a body limit of its own`() throws {
        var parser = HTTPRequestParser()
        #expect(throws: HTTPParseError(413, "body_too_large", "the request's body is longer than 2 bytes")) {
            try "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n".latin1.withUnsafeBytes { bytes throws in
                _ = try parser.parse(bytes)
                parser.bodyBytesMax = 2
                _ = try parser.parse(UnsafeRawBufferPointer(start: nil, count: 0))
            }
        }
    }

    private func outcome(of message: Bytes, cuts: [Int]) -> ParserCase.Outcome {
        var limits = HTTPParserLimits()
        limits.bodyBytes = 1 << 20
        var parser = HTTPRequestParser(limits: limits)
        var requests: [String] = []
        var start = 0
        do {
            for cut in cuts + [message.count] {
                var index = start
                try message.withUnsafeBytes { bytes throws in
                    while true {
                        let (used, event) = try parser.parse(UnsafeRawBufferPointer(rebasing: bytes[index..<cut]))
                        index += used
                        if event == .needsMore { break }
                        guard event == .request else { continue }
                        let (head, body) = parser.takeRequest()
                        requests.append("\(head.method) \(head.target) \(body.text)")
                    }
                }
                #expect(index == cut)
                start = cut
            }
        } catch {
            return .rejected((error as! HTTPParseError).status)
        }
        return parser.phase == .idle && !requests.isEmpty ? .requests(requests) : .incomplete
    }
}
