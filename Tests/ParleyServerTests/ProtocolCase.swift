import ParleySystem
import Testing

/// A conversation with one stream, as a row of a table: requests in order, and what each must be answered with.
struct ProtocolCase: Sendable, CustomTestStringConvertible {
    let id: String
    let steps: [Step]

    init(_ id: String, _ steps: Step...) {
        self.id = id
        self.steps = steps
    }

    var testDescription: String { id }

    /// Runs the steps on one connection, against a path that no other case has. In queries, `{0}` is the offset that step 0 answered.
    func run(on server: TestServer, path given: String? = nil) throws {
        let path = given ?? server.path("case")
        let client = try server.connect()
        var offsets: [String] = []
        for (index, step) in steps.enumerated() {
            var query = step.query
            for (number, offset) in offsets.enumerated() { query = query.replacing("{\(number)}", with: offset) }
            let answer = try client.request(step.method, path + query, step.headers, step.body)
            offsets.append(answer.next)
            check(answer, step, "\(id), step \(index) (\(step.method) \(query))")
        }
    }

    private func check(_ answer: TestClient.Answer, _ step: Step, _ place: String) {
        #expect(answer.status == step.status, "\(place): \(answer.text)")
        for (name, value) in step.expected {
            let found = answer.headers[name.lowercased()]
            #expect(value == "*" ? found != nil : found == value, "\(place): \(name) is \(found ?? "missing")")
        }
        if let text = step.text { #expect(answer.body == Bytes(text.utf8), "\(place): the body is \(answer.text)") }
        if let code = step.code {
            #expect(answer.code == code, "\(place): \(answer.text)")
            #expect(answer.headers["content-type"] == "application/problem+json", "\(place)")
        }
        #expect(answer.headers["x-content-type-options"] == "nosniff", "\(place)")
    }
}

/// One request and what it must be answered with.
struct Step: Sendable {
    var method: String
    var query = ""
    var headers: [(String, String)] = []
    var body = Bytes()
    var status: Int
    /// Header fields by name; `nil`: must not be there; `*`: any value.
    var expected: [String: String?] = [:]
    var text: String?
    var code: String?

    static func put(
        _ status: Int = 201, type: String? = "text/plain", _ headers: [(String, String)] = [], _ body: String = "",
        expect: [String: String?] = [:], code: String? = nil
    ) -> Step {
        Step(method: "PUT", headers: typed(type, headers), body: Bytes(body.utf8), status: status, expected: expect, code: code)
    }

    static func post(
        _ status: Int = 204, _ body: String = "", type: String? = "text/plain", _ headers: [(String, String)] = [],
        expect: [String: String?] = [:], code: String? = nil
    ) -> Step {
        Step(method: "POST", headers: typed(type, headers), body: Bytes(body.utf8), status: status, expected: expect, code: code)
    }

    static func get(
        _ status: Int = 200, _ query: String = "", _ text: String? = nil, headers: [(String, String)] = [], expect: [String: String?] = [:],
        code: String? = nil
    ) -> Step {
        Step(method: "GET", query: query, headers: headers, status: status, expected: expect, text: text, code: code)
    }

    static func head(_ status: Int = 200, expect: [String: String?] = [:]) -> Step {
        Step(method: "HEAD", status: status, expected: expect)
    }

    static func delete(_ status: Int = 204, code: String? = nil) -> Step { Step(method: "DELETE", status: status, code: code) }

    private static func typed(_ type: String?, _ headers: [(String, String)]) -> [(String, String)] {
        (type.map { [("Content-Type", $0)] } ?? []) + headers
    }
}

func producer(_ id: String, _ epoch: String, _ sequence: String) -> [(String, String)] {
    [("Producer-Id", id), ("Producer-Epoch", epoch), ("Producer-Seq", sequence)]
}

let closed = [("Stream-Closed", "true")]
