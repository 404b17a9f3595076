import Foundation
import ParleySystem
import Testing

@testable import ParleyHTTP

/// A parser's reading of the bytes of one connection.
private struct Reading: Equatable {
    struct Request: Equatable {
        var method: String
        var target: String
        var minorVersion: Int
        /// Names and values, one byte a character.
        var fields: [[String]]
        var body: String
        var stays: Bool

        var asksForUpgrade: Bool { fields.contains { $0[0].lowercased() == "upgrade" } }
    }

    enum End: Equatable {
        /// Everything was used up.
        case complete
        /// A request is not there whole.
        case incomplete
        case refused(String)
    }

    var requests: [Request] = []
    var end = End.complete
}

extension Reading: CustomStringConvertible {
    var description: String {
        requests.map { "\($0.method) \($0.target) \($0.minorVersion) \($0.fields) \($0.body) \($0.stays)" }.joined(separator: " | ")
            + " \(end)"
    }

    /// Ours. Input behind a request after which the connection closes is not looked at.
    init(_ bytes: Bytes) {
        var limits = HTTPParserLimits()
        limits.bodyBytes = 1 << 20
        var parser = HTTPRequestParser(limits: limits)
        var rest = bytes[...]
        do {
            while true {
                let (used, event) = try rest.withUnsafeBytes { bytes throws in try parser.parse(bytes) }
                rest = rest.dropFirst(used)
                if event == .needsMore { break }
                guard event == .request else { continue }
                let (head, body) = parser.takeRequest()
                func text(_ range: Range<Int32>) -> String {
                    String(String.UnicodeScalarView(head.bytes[Int(range.lowerBound)..<Int(range.upperBound)].map { Unicode.Scalar($0) }))
                }
                requests.append(
                    Request(
                        method: head.method, target: head.target, minorVersion: head.minorVersion,
                        fields: head.fields.map { [text($0.name), text($0.value)] }, body: hexadecimal(body), stays: head.keepsAlive))
                if !head.keepsAlive { return }
            }
            end = parser.phase == .idle ? .complete : .incomplete
        } catch {
            end = .refused((error as! HTTPParseError).message)
        }
    }

    /// Node's, from a line of Tests/Support/Clients/parse.mjs.
    init?(_ json: JSON) {
        for request in json["requests"]?.array ?? [] {
            guard let method = request["method"]?.string, let target = request["target"]?.string, let minor = request["minor"]?.integer,
                let fields = request["fields"]?.array, let body = request["body"]?.string, let stays = request["stays"]?.bool
            else { return nil }
            requests.append(
                Request(
                    method: method, target: target, minorVersion: Int(minor),
                    fields: fields.map { ($0.array ?? []).compactMap(\.string) }, body: body, stays: stays))
            if !stays { return }
        }
        guard let isComplete = json["isComplete"]?.bool else { return nil }
        if let reason = json["refused"]?.string { end = .refused(reason) } else { end = isComplete ? .complete : .incomplete }
    }
}

/// The same bytes, read by ours and by node's.
private struct Comparison {
    enum Verdict: Hashable {
        case same, bothRefuse, oursStricter
        /// Ours takes, or waits for, what node refuses or reads otherwise; with a reason it is meant.
        case oursLaxer(reason: String?)
    }

    let bytes: Bytes
    let ours: Reading
    let theirs: Reading

    /// Methods that node knows; ours takes any token, and the routes answer 405.
    private static let methods: Set<String> = [
        "ACL", "BIND", "CHECKOUT", "COPY", "DELETE", "GET", "HEAD", "LINK", "LOCK", "M-SEARCH", "MERGE", "MKACTIVITY", "MKCALENDAR",
        "MKCOL",
        "MOVE", "NOTIFY", "OPTIONS", "PATCH", "POST", "PROPFIND", "PROPPATCH", "PURGE", "PUT", "REBIND", "REPORT", "SEARCH", "SOURCE",
        "SUBSCRIBE", "TRACE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
    ]

    var verdict: Verdict {
        // Node's readings are of whole requests; ours must be the same ones as far as both go.
        for (mine, other) in zip(ours.requests, theirs.requests) where mine != other {
            // "keep-alive, close" of HTTP/1.0: ours closes (RFC 9112, section 9.3), and reads nothing behind it.
            var closing = other
            closing.stays = false
            return mine == closing ? .oursStricter : .oursLaxer(reason: nil)
        }
        let (mine, others) = (ours.requests.count, theirs.requests.count)
        switch (ours.end, theirs.end) {
        case (.refused, .refused) where mine == others: return .bothRefuse
        case (.refused, _) where mine <= others: return .oursStricter
        case (.complete, .complete) where mine == others, (.incomplete, .incomplete) where mine == others: return .same
        case (_, .refused(let code)) where mine >= others:
            return .oursLaxer(reason: reason(code, mine > others ? ours.requests[others] : nil))
        case (_, .complete) where mine >= others && ours.requests.prefix(others).contains(where: \.asksForUpgrade):
            return .oursLaxer(reason: "behind an upgrade that it does not grant, node says nothing of what is wrong")
        default: return .oursLaxer(reason: nil)
        }
    }

    /// The intended differences: requests that node refuses and ours takes, or waits for the end of.
    private func reason(_ code: String, _ request: Reading.Request?) -> String? {
        let text = String(decoding: bytes, as: UTF8.self)
        switch code {
        case "HPE_INVALID_METHOD", "CONNECT":
            guard request.map({ !Comparison.methods.contains($0.method) }) ?? (ours.end == .incomplete) else { return nil }
            return "a method that node does not know, or does not serve, is a token; the routes answer 405"
        case "HPE_INVALID_URL": return "a target that is no path is visible ASCII; the routes answer 404"
        case "HPE_STRICT", "HPE_INVALID_CHUNK_SIZE":
            guard [" ;", "; ", "\t;", ";\t", " =", "= ", "\t=", "=\t"].contains(where: { text.contains($0) }) else { return nil }
            return "blanks around the parts of a chunk's extension must be read over (RFC 9112, section 7.1.1)"
        case "HPE_INVALID_CONTENT_LENGTH":
            return text.contains("\t\r") || text.contains("\t ") ? "the blanks around a value may be tabs (RFC 9110, section 5.6.3)" : nil
        default: return nil
        }
    }
}

/// Node's parser is the second opinion: where it refuses, ours must not take; where both take, they must mean the same.
@Suite struct `HTTP request parser beside node's` {
    @Test func `is never the laxer one, but where it is said why`() throws {
        let seed = Seed.value
        var random = SeededRandom(seed: seed)
        let plain = ParserCase.all.map(\.message.latin1).filter { $0.count < 2_000 }
        var inputs = plain + HostileRequests.all.map(\.latin1)
        let count = ProcessInfo.processInfo.environment["PARLEY_LONG"] == nil ? 6_000 : 50_000
        while inputs.count < count {
            var bytes = inputs.randomElement(using: &random)!
            if Bool.random(using: &random) { bytes += plain.randomElement(using: &random)! }
            for _ in 0..<Int.random(in: 1...3, using: &random) { HostileRequests.mutate(&bytes, &random) }
            if (1..<4_000).contains(bytes.count) { inputs.append(bytes) }
        }
        let readings = try NodeParser.read(inputs)
        try #require(readings.count == inputs.count)
        var counts: [Comparison.Verdict: Int] = [:]
        for (bytes, theirs) in zip(inputs, readings) {
            let comparison = Comparison(bytes: bytes, ours: Reading(bytes), theirs: theirs)
            let verdict = comparison.verdict
            counts[verdict, default: 0] += 1
            guard verdict == .oursLaxer(reason: nil), counts[verdict]! <= 20 else { continue }
            Issue.record("PARLEY_SEED=\(seed) \(bytes.text.debugDescription)\n  ours \(comparison.ours)\n  node \(theirs)")
        }
        // The comparison would say nothing if one of them refused everything.
        #expect(counts[.same, default: 0] > 100 && counts[.bothRefuse, default: 0] > count / 20, "\(counts)")
    }
}

private enum NodeParser {
    static func read(_ inputs: [Bytes]) throws -> [Reading] {
        let file = FileManager.default.temporaryDirectory.appending(path: "parley-node-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: file) }
        try Data(inputs.map { hexadecimal($0) }.joined(separator: "\n").utf8).write(to: file)
        let script = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../Support/Clients/parse.mjs")
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/node")
        process.arguments = [script.path, file.path]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let lines = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw TestFailure("node ends with \(process.terminationStatus)") }
        return try Bytes(lines).split(separator: UInt8(ascii: "\n")).map { line in
            guard let reading = Reading(try JSON.parse(Bytes(line))) else { throw TestFailure("node says \(Bytes(line).text)") }
            return reading
        }
    }
}

/// Requests of attackers, beyond the cases that have a name.
enum HostileRequests {
    private static let lengths = [
        "Content-Length: 3", "Content-Length: +3", "Content-Length: -1", "Content-Length: 3,3", "content-length:3", "Content-Length: 03",
        "Content-Length: 3 ", "Content-Length : 3", "Content-Length: 0x3", "Content-Length: 3\r\n 4", "Content-Length:\t3",
        "Content-Length: 3;a",
        "Content-Length\u{0b}: 3", "Content-Length: 99999999999999999999", "X: y\rContent-Length: 3", "X: y\nContent-Length: 3",
    ]
    private static let codings = [
        "Transfer-Encoding: chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding:chunked ", "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity", "Transfer-Encoding: chunke",
        "Transfer-Encoding:\u{0b}chunked",
        "Transfer-Encoding: \u{a0}chunked", "Transfer-Encoding: chunked\u{00}", "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked;q=1", "Transfer_Encoding: chunked", "X: y\r Transfer-Encoding: chunked", "Transfer-Encoding: ,chunked",
    ]
    private static let bodies = [
        "abc", "3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", "3\nabc\n0\n\n", "00000003 \r\nabc\r\n0\r\n\r\n",
    ]
    private static let lines = [
        "GET /a HTTP/1.1", "GET http://b/ HTTP/1.1", "OPTIONS * HTTP/1.1", "CONNECT a:1 HTTP/1.1", "PRI * HTTP/2.0", "GET /a#b HTTP/1.1",
        "GET //a HTTP/1.1",
        "GET /%00%zz HTTP/1.1", "GET /\\..\\a HTTP/1.1", "GET /a HTTP/1.1\t", "GET /a  HTTP/1.1", "GET\u{00}/a HTTP/1.1",
        "GET /a HTTP/01.1", "GET /a HTTP/1.1.1",
        "GET /a HTP/1.1", "GET /a", "PUT /a HTTP/1.0", "QUERY /a HTTP/1.1", "G ET /a HTTP/1.1", "GET /é HTTP/1.1", "GET /\"<>` HTTP/1.1",
    ]
    private static let fields = [
        "Host: a", "Host: a\r\nHost: b", "Host:a:b", "host: \"a\"", "Host: a b", "Host: a,b", "", "Connection: close",
        "Connection: keep-alive, close",
        "Connection: Upgrade\r\nUpgrade: h2c", "Connection: content-length", "Expect: 100-continue", "Expect: 100-continue, x", "X:: y",
        "X: \u{7f}", "é: x",
    ]

    static let all: [String] = {
        var all: [String] = []
        for length in lengths + [""] {
            for coding in codings + [""] {
                let head = ["POST /a HTTP/1.1", "Host: a", length, coding].filter { !$0.isEmpty }.joined(separator: "\r\n")
                all.append(head + "\r\n\r\n" + bodies[all.count % bodies.count])
            }
        }
        for line in lines {
            for field in fields {
                let head = [line, line.hasSuffix("1.0") ? "" : "Host: a", field].filter { !$0.isEmpty }.joined(separator: "\r\n")
                all.append(head + "\r\n\r\n" + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
            }
        }
        return all
    }()

    private static let interesting = Bytes("\r\n\0 \t:;,=\"\\0123456789abcdefGX/\u{7f}+-#?*".utf8) + [0x0b, 0x85, 0xa0, 0xff]

    /// Changes a byte, takes one out, puts one in, or says something twice.
    static func mutate(_ bytes: inout Bytes, _ random: inout SeededRandom) {
        guard !bytes.isEmpty else { return }
        let index = Int.random(in: 0..<bytes.count, using: &random)
        switch Int.random(in: 0..<4, using: &random) {
        case 0: bytes.remove(at: index)
        case 1: bytes.insert(interesting.randomElement(using: &random)!, at: index)
        case 2: bytes[index] = interesting.randomElement(using: &random)!
        default: bytes.insert(contentsOf: bytes[index..<min(bytes.count, index + 20)], at: index)
        }
    }
}
