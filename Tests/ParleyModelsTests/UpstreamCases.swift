import Foundation
import ParleyAgents
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyModels

/// One row of `Upstreams/cases.json`: an answer that an endpoint is known to send, and the events it is read as.
///
/// | member | meaning |
/// |---|---|
/// | `events` | each an SSE event: an object, or a text as it is |
/// | `raw`, `json` | the body in place of events: as it is, or one JSON text. `repeat` adds a text so many times |
/// | `latin` | the body with one byte for each character |
/// | `status`, `headers` | 200, and `text/event-stream`, without them |
/// | `end` | `open`: the connection stays; `broken`: it breaks |
/// | `answers` | one after the other, each with the members above |
/// | `continuing`, `maxTokens` | of the request |
/// | `expect` | `text`, `reasoning`, `usage`, and either `finish` with `calls` and `returned`, or `failure` with `retryable` and what it `says`; how many `requests`, and which field the last of them `lacks` |
struct UpstreamCase: Sendable, CustomTestStringConvertible {
    struct Answer: Sendable {
        var status = 200
        var headers: [(name: String, value: String)]
        var body: Bytes
        var staysOpen = false
        var breaksOff = false

        init(_ row: JSON) {
            status = row["status"]?.integer.map { Int($0) } ?? 200
            headers = (row["headers"]?.members ?? []).map { ($0.name, $0.value.string!) }
            if !headers.contains(where: { $0.name == "content-type" }) { headers.append(("content-type", "text/event-stream")) }
            body = Bytes((row["raw"]?.string ?? "").utf8)
            if let latin = row["latin"]?.string { body = latin.unicodeScalars.map { UInt8($0.value) } }
            if let json = row["json"] { body = json.bytes }
            for event in row["events"]?.array ?? [] { body += Bytes("data: \(event.string ?? event.text)\n\n".utf8) }
            if let repeated = row["repeat"]?.array {
                let text = Bytes(repeated[0].string!.utf8)
                for _ in 0..<repeated[1].integer! { body += text }
            }
            (staysOpen, breaksOff) = (row["end"] == "open", row["end"] == "broken")
        }
    }

    var row: JSON
    var answers: [Answer]
    var id: String { row["id"]!.string! }
    var expected: JSON { row["expect"]! }
    var testDescription: String { id }

    static let all: [UpstreamCase] = {
        let file = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "Upstreams/cases.json")
        let rows = try! JSON.parse(Bytes(try! Data(contentsOf: file))).array!
        return rows.map { UpstreamCase(row: $0, answers: ($0["answers"]?.array ?? [$0]).map(Answer.init)) }
    }()

    var request: ModelRequest {
        let tools = ["look", "find"].map { ToolDefinition(name: $0, description: "", parameters: ["type": "object"]) }
        return ModelRequest(
            messages: [.user(row["prompt"]?.string ?? "Hello")], tools: tools,
            options: ModelOptions(maxTokens: row["maxTokens"]?.integer.map { Int($0) }, temperature: 0.5),
            continuing: row["continuing"]?.string)
    }

    /// The events in the form in which a row expects them.
    func heard(_ events: [ModelEvent], requests: [JSON]) -> JSON {
        var (text, reasoning, calls, returned, usage) = ("", "", [HeardCall](), JSON?.none, JSON?.none)
        var (end, ends) = (JSON.object([]).members!, 0)
        for event in events {
            switch event {
            case .text(let piece): text += piece
            case .reasoning(let piece): reasoning += piece
            case .toolCall(let index, let id, let name, let arguments):
                while calls.count <= index { calls.append(HeardCall()) }
                calls[index].id = id ?? calls[index].id
                calls[index].name += name ?? ""
                calls[index].arguments += arguments
            case .returned(let index?, let members): calls[index].returned = members
            case .returned(call: nil, let members): returned = members
            case .usage(let tokens): usage = .array([.integer(Int64(tokens.inputTokens)), .integer(Int64(tokens.outputTokens))])
            case .finished(let reason):
                ends += 1
                end = [JSON.Member("finish", .string(reason))]
            case .failed(let failure):
                ends += 1
                end = [JSON.Member("failure", .string(failure.code)), JSON.Member("retryable", .bool(failure.retryable))]
                if let says = expected["says"]?.string {
                    end.append(JSON.Member("says", failure.message.contains(says) ? .string(says) : .string(failure.message)))
                }
                if let wait = failure.retryAfter { end.append(JSON.Member("retryAfterSeconds", JSON.number(wait / .seconds(1)))) }
            }
        }
        #expect(ends == 1, "\(id): one end")
        let known = expected.members!
        func asked(_ name: String, _ value: JSON?) -> [JSON.Member] {
            known.contains { $0.name == name } || name == "text" && !text.isEmpty ? [JSON.Member(name, value ?? .null)] : []
        }
        let asksForIDs = known.first { $0.name == "calls" }?.value.array?.map { $0["id"] != nil } ?? []
        let all = calls.enumerated().map { index, call in call.json(withID: asksForIDs.indices.contains(index) ? asksForIDs[index] : true) }
        end += calls.isEmpty || end.contains { $0.name == "failure" } ? [] : [JSON.Member("calls", .array(all))]
        end += asked("text", .string(text)) + asked("reasoning", .string(reasoning)) + asked("returned", returned) + asked("usage", usage)
        end += asked("requests", .integer(Int64(requests.count)))
        if let lacks = expected["lacks"]?.string { end.append(JSON.Member("lacks", requests.last?[lacks] == nil ? .string(lacks) : .null)) }
        return .object(end)
    }

    private struct HeardCall {
        var (id, name, arguments) = ("", "", "")
        var returned: JSON?

        func json(withID: Bool) -> JSON {
            .compact(
                ("name", .string(name)), ("arguments", .string(arguments)), ("id", withID ? .string(id) : nil), ("returned", returned))
        }
    }

    /// The expectation, with its numbers in one form.
    var expectation: String {
        JSON.object(expected.members!.map { JSON.Member($0.name, $0.name == "retryAfterSeconds" ? .number($0.value.double!) : $0.value) })
            .canonical.text
    }

}

@Suite struct `What endpoints are known to do` {
    @Test func `fills a table with a row for each behaviour`() {
        #expect(UpstreamCase.all.count >= 270)
        #expect(Set(UpstreamCase.all.map(\.id)).count == UpstreamCase.all.count)
    }

    /// Not those that are about what libcurl makes of bytes.
    @Test(arguments: UpstreamCase.all.filter { $0.row["wire"] == nil }) func `is heard as what it is, however its bytes are cut`(
        example: UpstreamCase
    ) {
        let size = example.answers[0].body.count
        for cut in Set([0, 1, 6, 7, 100, size - 1]) where cut >= 0 && cut <= size {
            let transport = FakeTransport()
            let world = ManualWorld()
            let sink = RecordingSink()
            _ = ChatCompletionsModel.test(transport, world: world).start(example.request, sink)
            for (number, answer) in example.answers.enumerated() where number < transport.calls.count {
                let call = transport.calls[number]
                call.head(answer.status, answer.headers)
                call.send(Bytes(answer.body.prefix(cut)))
                call.send(Bytes(answer.body.dropFirst(cut)))
                if !answer.staysOpen { call.end(answer.breaksOff ? OutgoingError(code: "upstream_closed", message: "broken") : nil) }
            }
            world.run()
            #expect(
                example.heard(sink.events, requests: transport.calls.map(\.body)).canonical.text == example.expectation, "cut at \(cut)")
            #expect(transport.calls.last!.isCancelled || !example.answers.last!.staysOpen, "the connection is not left open")
        }
    }

    @Test(arguments: UpstreamCase.all.filter { $0.row["at"] == nil })
    func `is heard the same over HTTP`(example: UpstreamCase) throws {
        let upstream = try ScriptedUpstream()
        for answer in example.answers {
            var played = ScriptedUpstream.Behaviour.Played(answer.body)
            (played.status, played.staysOpen, played.breaksOff) = (answer.status, answer.staysOpen, answer.breaksOff)
            played.headers = answer.headers.map { [$0.name, $0.value] }
            var behaviour = ScriptedUpstream.Behaviour()
            behaviour.fault = .plays(played)
            upstream.next(behaviour)
        }
        let group = EventLoopGroup(count: 1, name: "client")
        defer { group.stop() }
        var configuration = ChatCompletionsModel.Configuration(
            baseURL: BaseURL(upstream.baseURL)!, apiKey: ChatCompletionsModel.testKey, model: "m1", continues: .prefix)
        configuration.graceTimeout = .milliseconds(200)
        let model = ChatCompletionsModel(
            configuration, transport: CurlTransport(group.next()), world: SystemWorld(threads: 1), probes: ContinuationProbes(),
            habits: EndpointHabits())
        let sink = WaitingSink()
        let call = model.start(example.request, sink)
        defer { withExtendedLifetime(call) {} }
        let events = try sink.end()
        #expect(example.heard(events, requests: upstream.records.map(\.body)).canonical.text == example.expectation)
        if example.answers.last!.staysOpen { try upstream.wait("the connection is closed") { $0.last?.outcome == .abandoned } }
    }
}
