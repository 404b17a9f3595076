import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"

/// Passes calls on to a scripted model, and remembers what it was asked.
final class RecordingModel: Model {
    struct Seen: Sendable {
        var key: String
        var messages: [JSON]
        var continuing: String?
        var maxTokens: Int?
    }

    let name = "scripted:"
    let continues = Continuation.prefix
    let seen = Mutex<[Seen]>([])
    private let model: ScriptedModel
    private let fails: @Sendable (Int) -> Bool

    init(_ model: ScriptedModel, fails: @escaping @Sendable (Int) -> Bool = { _ in false }) { (self.model, self.fails) = (model, fails) }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        let messages = request.messages.map { message in
            JSON.compact(
                ("role", .string(message.role.rawValue)), ("text", .string(message.text)),
                ("tool_calls", message.toolCalls.isEmpty ? nil : try? JSON(encoding: message.toolCalls)),
                ("tool_call_id", message.toolCallID.map { .string($0) }))
        }
        let seen = Seen(
            key: request.idempotencyKey ?? "", messages: messages, continuing: request.continuing, maxTokens: request.options.maxTokens)
        let count = self.seen.withLock { calls in
            calls.append(seen)
            return calls.count
        }
        var request = request
        if fails(count) { request.messages.append(.user("fail: model_unavailable")) }
        return model.start(request, sink)
    }
}

/// Says the same each time, without a look at what it is asked.
struct QuickModel: Model {
    let name = "quick"
    let continues = Continuation.no
    let world: SimulatedWorld
    let started: @Sendable () -> Void

    private final class Call: ModelCall {
        func cancel() {}
    }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        started()
        world.schedule(at: world.now.advanced(by: .milliseconds(1))) {
            sink.received(.text("All is well."))
            sink.received(.finished(reason: "stop"))
        }
        return Call()
    }
}

func scripted(_ world: SimulatedWorld, rate: Int = 0) -> ScriptedModel {
    var options = ScriptedModel.Options()
    (options.tokens, options.rate) = (8, rate)
    return ScriptedModel(options, name: "scripted:", world: world)
}

/// A turn that asks a model `count` times, each time with everything that was said before.
private func talker(_ model: any Model, count: Int, saying bytes: Int, maxTokens: Int? = nil) -> AnyAgent {
    agent { _, turn in
        let filler = String(repeating: "x", count: bytes)
        var conversation: [ModelMessage] = [.system("Be brief.")]
        for number in 0..<count {
            conversation.append(.user("say: ok \(number)\n\(filler)"))
            let answer = try await turn.generate("answer", model, conversation, options: ModelOptions(maxTokens: maxTokens))
            conversation += answer.steers.map { .user($0) }
            conversation.append(
                .assistant(answer.text, calls: number % 5 == 4 ? [ToolCall(id: "c\(number)", name: "t", arguments: "{}")] : []))
            if number % 5 == 4 { conversation.append(.result("done", of: ToolCall(id: "c\(number)", name: "t", arguments: "{}"))) }
        }
        return .integer(Int64(conversation.count))
    }
}

/// The calls that the requests of a journal do not show as they were made.
func notShown(_ seen: [RecordingModel.Seen], _ requests: [(key: String, answer: JSON)]) -> [RecordingModel.Seen] {
    var rest = seen
    for (key, answer) in requests {
        let shown = answer["messages"]!.array!.map { message in
            JSON.compact(
                ("role", message["role"]), ("text", message["text"]), ("tool_calls", message["tool_calls"]),
                ("tool_call_id", message["tool_call_id"]))
        }
        let (continuing, limit) = (answer["continuing"]?.string, answer["options"]?["max_tokens"]?.integer)
        let place = rest.firstIndex { seen in
            guard seen.key == key, seen.continuing == continuing, seen.maxTokens.map({ Int64($0) }) == limit else { return false }
            return seen.messages == shown
        }
        // A start that was durable when its process ended may not have got to its model.
        if let place { rest.remove(at: place) }
    }
    return rest
}

@Suite struct `A long turn` {
    @Test func `of a thousand calls costs as much for each, in the log and in its journal`() throws {
        struct Found: Sendable {
            var written: [Int] = []
            var last: JSON?
            var journals: [Int] = []
            var contents = 0
        }
        let count = 1_000
        let found = try SimulatedNode.simulate {
            let written = Mutex(0)
            let log = SimulatedLog(outcome: { _, batches in
                let count = batches.reduce(0) { $0 + $1.bytes.count }
                written.withLock { $0 += count }
                return .acknowledged
            })
            let atCall = Mutex<[Int]>([])
            let world = SimulatedWorld(seed: 1)
            let model = QuickModel(world: world) {
                let bytes = written.withLock { $0 }
                atCall.withLock { $0.append(bytes) }
            }
            let node = try SimulatedNode(world, log, agents: [talker(model, count: count, saying: 200)])
            node.send("x", to: name)
            var found = Found()
            for half in 1...2 {
                world.run(deadline: world.now.advanced(by: .seconds(10_000))) { atCall.withLock { $0.count } >= half * count / 2 }
                let journal = try Journal(node.channels, try node.channels.find(name)!, turn: 1)
                found.journals.append(bytes(journal))
            }
            world.run(deadline: world.now.advanced(by: .seconds(10_000)))
            found.written = atCall.withLock { $0 }
            found.last = try node.entries(name).last
            found.contents = try node.rows(.big)
            return found
        }
        #expect(found.last?["type"] == "turn.completed")
        #expect(found.written.count == count)
        let first = found.written[120] - found.written[20]
        let last = found.written[count - 1] - found.written[count - 101]
        #expect(last * 2 <= first * 3, "the last 100 calls wrote \(last) bytes, the first \(first)")
        #expect(found.journals[1] <= found.journals[0] * 5 / 2, "at half and at the end: \(found.journals)")
        // The user's message, the model's answers, and the additions of two in ten rounds: each once.
        #expect(found.contents <= count * 5 / 2)
    }

    /// The bytes that a journal holds in memory, without those of each value's own layout.
    private func bytes(_ journal: Journal) -> Int {
        let starts = journal.starts.reduce(0) { $0 + $1.path.utf8.count + ($1.digest?.utf8.count ?? 0) + 64 }
        return journal.completions.reduce(starts) { sum, completion in
            guard case .completed(let body) = completion.outcome else { return sum + 64 }
            return sum + completion.path.utf8.count + body.bytes.count + 64
        }
    }

    @Test func `shows the exact request of every call, over retries, steers, a crash and restarts`() throws {
        struct Checked: Sendable {
            var shown: [(key: String, answer: JSON)] = []
            var seen: [RecordingModel.Seen] = []
            var last: JSON?
            var based = 0
        }
        let count = 60
        let checked = try SimulatedNode.simulate {
            var checked = Checked()
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 1_000_000))
            for life in 0..<4 {
                let world = SimulatedWorld(seed: 1, now: now)
                // Each word takes its time, so that a process ends in the middle of an answer.
                let model = RecordingModel(scripted(world, rate: 20)) { $0 % 7 == 3 }
                let node = try SimulatedNode(world, log, agents: [talker(model, count: count, saying: 20, maxTokens: 50)])
                if life == 0 { node.send("x", to: name) }
                world.run(deadline: world.now.advanced(by: .seconds(1_000_000))) { life < 3 && model.seen.withLock { $0.count } >= 20 }
                if life < 3 {
                    node.send(NewEntry(.steer, nil, ("by", "ann"), ("text", .string("And \(life)."))), to: name)
                    world.run(deadline: world.now.advanced(by: .milliseconds(130 + 55 * life)))
                }
                now = world.now
                checked.seen += model.seen.withLock { $0 }
                log = log.reopen()
                guard life == 3 else { continue }
                let entries = try node.entries(name)
                checked.last = entries.last
                let channel = try node.channels.find(name)!
                for entry in entries where entry["type"] == "step.started" {
                    if entry["request"]?["base"] != nil { checked.based += 1 }
                    let offset = Offset(token: entry["offset"]!.string!)!.value
                    checked.shown.append((entry["idempotency_key"]!.string!, try AgentRequest(node.channels, channel).answer(offset)))
                }
            }
            return checked
        }
        #expect(checked.last?["type"] == "turn.completed")
        #expect(checked.shown.count >= checked.seen.count && checked.seen.count > count && checked.based > count)
        let rest = notShown(checked.seen, checked.shown)
        #expect(rest.isEmpty, "not shown as they were made: \(rest.map(\.key))")
        #expect(checked.shown.contains { $0.answer["continuing"] != nil })
    }

    @Test func `that began with an earlier version replays, and its requests are shown`() throws {
        let (output, calls, shown) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let before = try SimulatedNode(world, log, agents: [])
            before.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let asked = ModelRequest(messages: [.system("s"), .user("x")])
            let position = Position(turn: 1, step: "answer", attempt: 1)
            let hash = SHA256.digest(Bytes("s".utf8))
            let request: JSON = [
                "sha256": .string(asked.earlierDigest("scripted:")), "model": "scripted:",
                "parts": [["role": "system", "sha256": .string(hexadecimal(hash))], ["role": "user", "offset": "0000000000000001"]],
            ]
            let entries = [
                NewEntry(
                    .receipt, Position(turn: 1), members: NewEntry.join([("of", "0000000000000001"), ("state", "applied")]), hasID: false),
                NewEntry(.turnStarted, Position(turn: 1), ("input", "0000000000000001"), ("seed", "0000000000000001"), ("epoch", 1)),
                NewEntry(.stepStarted, position, ("kind", "model"), ("name", "answer"), ("request", request)),
                NewEntry(.stepCompleted, position, ("text", "old"), ("finish_reason", "stop"), ("recovered_tokens", 0)),
            ]
            var append = Append(to: name, entries)
            (append.owner.epoch, append.owner.decides) = (.takes(after: 0), [1])
            let id = try #require(try before.channels.find(name)).id
            append.owner.rows = [.status(.running, turn: 1), .put(.big, key: id.key(hash), value: Bytes("s".utf8))]
            before.channels.submit(append)
            world.run(deadline: world.now.advanced(by: .seconds(1)))

            let later = SimulatedWorld(seed: 1, now: world.now)
            let model = RecordingModel(scripted(later))
            let node = try SimulatedNode(
                later, log.reopen(),
                agents: [
                    agent { text, turn in .string(try await turn.generate("answer", model, .system("s"), turn.input(text)).text) }
                ])
            later.run(deadline: later.now.advanced(by: .seconds(10)))
            let channel = try node.channels.find(name)!
            return (
                try node.entries(name).last?["output"]?.string, model.seen.withLock { $0.count },
                try AgentRequest(node.channels, channel).answer(4)["messages"]
            )
        }
        #expect(output == "old" && calls == 0)
        #expect(shown == [["role": "system", "text": "s"], ["role": "user", "text": "x", "offset": "0000000000000001"]])
    }

    @Test func `has no request where no call of a model begins`() throws {
        let codes = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [agent { _, turn in .integer(Int64(try await turn.step("s") { _ in 1 })) }])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            let channel = try node.channels.find(name)!
            return (0..<10).map { (offset: UInt64) -> String? in
                do {
                    _ = try AgentRequest(node.channels, channel).answer(offset)
                    return nil
                } catch { return (error as? ChannelError)?.code }
            }
        }
        #expect(codes == Array(repeating: "step_not_found", count: 10))
    }
}

@Suite struct `What a request shares with those before it` {
    private func request(_ texts: [String]) -> ModelRequest { ModelRequest(messages: texts.map { .user($0) }) }
    private func texts(_ range: Range<Int>, _ prefix: String = "m") -> [String] { range.map { "\(prefix)\($0)" } }

    @Test func `is found by the messages, whatever hashes they were given before`() {
        var ledger = RequestLedger()
        ledger.note("a/answer", request(texts(0..<20)), at: 7)
        let found = ledger.base(of: request(texts(0..<15) + texts(15..<30, "other")), at: "a/answer#2")
        #expect(found?.offset == 7 && found?.keep == 15)
        #expect(ledger.base(of: request(texts(0..<20)), at: "a/answer#2")?.keep == 20)
        #expect(ledger.base(of: request(texts(0..<4)), at: "a/answer#2") == nil)
        #expect(ledger.base(of: request(texts(1..<20)), at: "a/answer#2") == nil)
    }

    @Test func `is looked for in its own conversation, however many there are`() {
        var ledger = RequestLedger()
        for number in 0..<100 { ledger.note("m/\(number)/answer#3", request(texts(0..<20, "c\(number) ")), at: UInt64(number + 1)) }
        for number in 0..<100 {
            #expect(ledger.base(of: request(texts(0..<22, "c\(number) ")), at: "m/\(number)/answer#4")?.offset == UInt64(number + 1))
        }
    }

    @Test func `follows what a message says when it is changed`() {
        var message = ModelMessage.user("a")
        let before = message.identity
        let copy = message
        message.text = "b"
        #expect(message.identity != before && copy.identity == before)
        message.text = "a"
        #expect(message.identity == before && message == copy)
        message.role = .assistant
        #expect(message.identity != before)
        message.role = .user
        message.toolCallID = "c"
        #expect(message.identity != before)
    }
}
