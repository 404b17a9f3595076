import ParleySystem
import Testing

/// A conversation with a server about one stream, or a few, as a row of a table: requests in order, and what each must be answered with.
///
/// In queries, in header fields and in expectations, `{0}` is the offset that step 0 answered, `{0.ETag}` another of its fields, `{path}` the path of
/// the case's stream, and `{path:fork}` that of its stream `fork`.
struct ProtocolCase: Sendable, CustomTestStringConvertible {
    let id: String
    let steps: [Step]

    init(_ id: String, _ steps: Step...) {
        self.id = id
        self.steps = steps
    }

    var testDescription: String { id }

    /// Runs the steps on one connection, against paths that no other case has.
    /// - Parameter path: that of the case's stream, when it is not to be a new one.
    func run(on server: some ServerUnderTest = ProtocolServer.shared, path: String? = nil) throws {
        let base = path ?? server.path("case")
        let isExact = (server as? ProtocolServer)?.isOurs ?? true
        var client = try server.connect()
        var answers: [TestClient.Answer] = []
        for (index, step) in steps.enumerated() {
            let placeholders = Placeholders(path: base, answers: answers)
            let target = Placeholders.path(base, step.stream) + placeholders.fill(step.query)
            let answer = try client.request(step.method, target, step.headers.map { ($0.0, placeholders.fill($0.1)) }, step.body)
            if answer.headers["connection"]?.lowercased() == "close" { client = try server.connect() }
            answers.append(answer)
            step.check(answer, "\(id), step \(index) (\(step.method) \(step.stream)\(step.query))", isExact: isExact, placeholders.fill)
        }
    }

    private struct Placeholders {
        let path: String
        let answers: [TestClient.Answer]

        static func path(_ base: String, _ stream: String) -> String { stream.isEmpty ? base : base + "-" + stream }

        func fill(_ text: String) -> String {
            var (filled, rest) = ("", text[...])
            while let open = rest.firstIndex(of: "{"), let close = rest[open...].firstIndex(of: "}") {
                let name = rest[rest.index(after: open)..<close]
                filled += rest[..<open] + (value(name) ?? "{\(name)}")
                rest = rest[rest.index(after: close)...]
            }
            return filled + rest
        }

        private func value(_ name: Substring) -> String? {
            if name.hasPrefix("path") { return Self.path(path, String(name.dropFirst("path:".count))) }
            let parts = name.split(separator: ".")
            guard let step = parts.first.flatMap({ Int($0) }), answers.indices.contains(step) else { return nil }
            return parts.count == 1 ? answers[step].next : answers[step].headers[parts[1].lowercased()] ?? ""
        }
    }
}

/// One request and what it must be answered with.
struct Step: Sendable {
    var method: String
    /// The name of one of the case's streams.
    var stream = ""
    var query = ""
    var headers: [(String, String)] = []
    var body = Bytes()
    var status: Int
    /// Statuses that the protocol allows as well, although Parley gives the other.
    var alternatives: Set<Int> = []
    var expected: [String: Expected] = [:]
    var text: String?
    /// Parley's code of the error.
    var code: String?

    static func put(
        _ status: Int = 201, type: String? = "text/plain", _ headers: [(String, String)] = [], _ body: String = "",
        expect: [String: Expected] = [:], code: String? = nil
    ) -> Step {
        Step(method: "PUT", headers: typed(type, headers), body: Bytes(body.utf8), status: status, expected: expect, code: code)
    }

    /// Makes the stream `name` a fork of the case's stream, or of another, at an offset and so many bytes or messages further.
    static func fork(
        _ name: String = "fork", of source: String = "", _ status: Int = 201, at offset: String? = nil, plus further: String? = nil,
        type: String? = nil, _ headers: [(String, String)] = [], _ body: String = "", expect: [String: Expected] = [:], code: String? = nil
    ) -> Step {
        var all = [("Stream-Forked-From", source.isEmpty ? "{path}" : "{path:\(source)}")] + headers
        if let offset { all.append(("Stream-Fork-Offset", offset)) }
        if let further { all.append(("Stream-Fork-Sub-Offset", further)) }
        return put(status, type: type, all, body, expect: expect, code: code).on(name)
    }

    static func post(
        _ status: Int = 204, _ body: String = "", type: String? = "text/plain", _ headers: [(String, String)] = [],
        expect: [String: Expected] = [:], code: String? = nil
    ) -> Step {
        Step(method: "POST", headers: typed(type, headers), body: Bytes(body.utf8), status: status, expected: expect, code: code)
    }

    static func get(
        _ status: Int = 200, _ query: String = "", _ text: String? = nil, headers: [(String, String)] = [],
        expect: [String: Expected] = [:],
        code: String? = nil
    ) -> Step {
        Step(method: "GET", query: query, headers: headers, status: status, expected: expect, text: text, code: code)
    }

    static func head(_ status: Int = 200, expect: [String: Expected] = [:]) -> Step {
        Step(method: "HEAD", status: status, expected: expect)
    }

    static func delete(_ status: Int = 204, _ headers: [(String, String)] = [], code: String? = nil) -> Step {
        Step(method: "DELETE", headers: headers, status: status, code: code)
    }

    private static func typed(_ type: String?, _ headers: [(String, String)]) -> [(String, String)] {
        (type.map { [("Content-Type", $0)] } ?? []) + headers
    }

    func on(_ stream: String) -> Step {
        var step = self
        step.stream = stream
        return step
    }

    func or(_ status: Int) -> Step {
        var step = self
        step.alternatives.insert(status)
        return step
    }
}

/// The expected value of a header field; `nil`: it must not be there.
enum Expected: Sendable, ExpressibleByStringLiteral, ExpressibleByNilLiteral {
    case missing, any, digits
    case equal(String), other(than: String), after(String), contains(String), ends(String)
    case oneOf([String])
    /// Contains it; another server than Parley need not say it at all.
    case ifSaid(String)

    init(stringLiteral value: String) { self = .equal(value) }
    init(nilLiteral: ()) { self = .missing }

    func isMet(by value: String?, isExact: Bool, _ fill: @escaping (String) -> String) -> Bool {
        guard let value else {
            return switch self {
            case .missing: true
            case .ifSaid: !isExact
            default: false
            }
        }
        return switch self {
        case .missing: false
        case .any: !value.isEmpty
        case .digits: !value.isEmpty && value.allSatisfy { ("0"..."9").contains($0) }
        case .equal(let text): value == fill(text)
        case .other(let text): value != fill(text)
        case .after(let text): value > fill(text)
        case .contains(let text), .ifSaid(let text): value.contains(fill(text))
        case .ends(let text): value.hasSuffix(fill(text))
        case .oneOf(let texts): texts.contains(value)
        }
    }
}

extension Step {
    /// - Parameter isExact: Whether the answer is held to what Parley says, and not only to what the protocol leaves open.
    fileprivate func check(_ answer: TestClient.Answer, _ place: String, isExact: Bool, _ fill: @escaping (String) -> String) {
        #expect(answer.status == status || (!isExact && alternatives.contains(answer.status)), "\(place): \(answer.text)")
        for (name, value) in expected {
            let found = answer.headers[name.lowercased()]
            #expect(value.isMet(by: found, isExact: isExact, fill), "\(place): \(name) is \(found ?? "missing")")
        }
        if let text { #expect(isText(text, of: answer, isExact), "\(place): the body is \(answer.text)") }
        guard isExact else { return }
        if let code {
            #expect(answer.code == code, "\(place): \(answer.text)")
            #expect(answer.headers["content-type"] == "application/problem+json", "\(place)")
        }
        #expect(answer.headers["x-content-type-options"] == "nosniff", "\(place)")
    }

    private func isText(_ text: String, of answer: TestClient.Answer, _ isExact: Bool) -> Bool {
        if answer.body == Bytes(text.utf8) { return true }
        let isJSON = answer.headers["content-type"]?.hasPrefix("application/json") == true
        return !isExact && isJSON && (try? JSON.parse(text)) == answer.json
    }
}

func producer(_ id: String, _ epoch: String, _ sequence: String) -> [(String, String)] {
    [("Producer-Id", id), ("Producer-Epoch", epoch), ("Producer-Seq", sequence)]
}

let closed = [("Stream-Closed", "true")]
