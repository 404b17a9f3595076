import ParleyChannels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

@Suite struct `A model that writes faster than the log` {
    /// A writer that commits when it is told to.
    private final class Writer: Sendable {
        let entries = Mutex<[TextDelta]>([])
        let waiting = Mutex<[ModelAttempt]>([])

        func commit() {
            let all = waiting.withLock { waiting in
                defer { waiting = [] }
                return waiting
            }
            for attempt in all { attempt.committed() }
        }
    }

    @Test(arguments: [true, false]) func `waits with a bounded number of entries, and loses nothing of its text`(reasons: Bool) throws {
        let writer = Writer()
        let ends = Mutex<[ModelAttempt.End]>([])
        let attempt = ModelAttempt(position: Position(turn: 1, step: "g", attempt: 1), saved: SavedText(), world: SimulatedWorld(seed: 1)) {
            attempt, entries in
            let deltas = entries.compactMap(\.textDelta)
            writer.entries.withLock { $0 += deltas }
            writer.waiting.withLock { $0.append(attempt) }
        } end: { end in
            ends.withLock { $0.append(end) }
        }
        func say(_ pieces: Range<Int>) { for piece in pieces { attempt.received(reasons ? .reasoning("\(piece) ") : .text("\(piece) ")) } }
        say(0..<100_000)
        #expect(writer.entries.withLock { $0.count } == ModelAttempt.uncommittedMax)
        writer.commit()
        say(100_000..<100_003)
        #expect(writer.entries.withLock { $0.count } == ModelAttempt.uncommittedMax + 3)
        attempt.received(.finished(reason: "stop"))
        guard case .finished(let members, let last)? = ends.withLock({ $0.first }) else { return #expect(Bool(false), "no end") }
        let deltas = writer.entries.withLock { $0 } + [try #require(last?.textDelta)]
        let whole = (0..<100_003).map { "\($0) " }.joined()
        #expect(deltas.flatMap(\.delta).text == whole)
        #expect(deltas.reduce(0) { $0 + Int($1.pieces) } == 100_003)
        #expect(zip(deltas, deltas.dropFirst()).allSatisfy { Int($0.index) + $0.delta.count == Int($1.index) })
        #expect(members.first { $0.0 == "text" }?.1?.string == (reasons ? "" : whole))
    }
}

@Suite struct `The newest piece of an answer` {
    /// An attempt, with what it has appended and how it ended.
    private final class Stage: Sendable {
        let world = SimulatedWorld(seed: 1)
        let shown = Mutex("")
        let end = Mutex<ModelAttempt.End?>(nil)

        func attempt() -> ModelAttempt {
            ModelAttempt(position: Position(turn: 1, step: "g", attempt: 1), saved: SavedText(), world: world) { attempt, entries in
                self.shown.withLock { shown in shown += entries.compactMap { $0.textDelta?.delta.text }.joined() }
                self.world.perform(lane: 1) { attempt.committed() }
            } end: { end in
                self.end.withLock { $0 = end }
            }
        }

        var last: TextDelta? { end.withLock { if case .finished(_, let last)? = $0 { last?.textDelta } else { nil } } }

        /// Lets `work` happen so much later, and stops at its end.
        func after(_ milliseconds: Int, _ work: @escaping @Sendable () -> Void) {
            world.schedule(at: world.now.advanced(by: .milliseconds(milliseconds)), work)
        }
    }

    @Test func `is shown and saved soon, though nothing follows it`() {
        let stage = Stage()
        let attempt = stage.attempt()
        let seen = Mutex<[String]>([])
        attempt.received(.text("Hello "))
        stage.after(100) { seen.withLock { seen in seen.append(stage.shown.withLock { $0 }) } }
        stage.after(200) {
            seen.withLock { seen in seen.append(stage.shown.withLock { $0 }) }
            attempt.received(.reasoning("hm"))
        }
        stage.after(60_000) { attempt.received(.finished(reason: "stop")) }
        stage.world.run()
        #expect(seen.withLock { $0 } == ["", "Hello "])
        #expect(stage.shown.withLock { $0 } == "Hello hm" && stage.last == nil)
    }

    @Test func `is one batch with the end of the answer when that comes right behind it`() {
        let stage = Stage()
        let attempt = stage.attempt()
        attempt.received(.text("Hello "))
        stage.after(140) { attempt.received(.text("world")) }
        // Held for its own time, not for the rest of that of the piece before it.
        stage.after(280) { attempt.received(.finished(reason: "stop")) }
        stage.world.run()
        #expect(stage.shown.withLock { $0 } == "Hello " && stage.last?.delta.text == "world")
    }

    @Test func `is not appended behind the end`() {
        let stage = Stage()
        let attempt = stage.attempt()
        attempt.received(.text("Hello"))
        _ = attempt.interrupt()
        stage.world.run()
        #expect(stage.shown.withLock { $0 } == "")
    }
}

@Suite struct `A model's answer that is continued` {
    @Test func `says with its first piece where it continues, also when that is the call of a tool`() throws {
        let texts = Mutex<[TextDelta]>([])
        var saved = SavedText()
        saved.add(TextDelta(index: 0, delta: Bytes("half a line".utf8)))
        let attempt = ModelAttempt(position: Position(turn: 1, step: "g", attempt: 2), saved: saved, world: SimulatedWorld(seed: 1)) {
            _, entries in
            texts.withLock { $0 += entries.compactMap(\.textDelta) }
        } end: { _ in
        }
        attempt.received(.toolCall(index: 0, id: "c", name: "look", arguments: "{}"))
        #expect(texts.withLock { $0 } == [TextDelta(index: 11, continuesAt: 11, pieces: 0, delta: [])])
    }
}

extension NewEntry {
    fileprivate var textDelta: TextDelta? { if case .text(let delta) = content { delta } else { nil } }
}
