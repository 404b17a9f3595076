import ParleyChannels
import ParleySystem
import Synchronization
import Testing

@testable import ParleyAgents

@Suite struct `A model that writes faster than the log` {
    /// A writer that commits when it is told to.
    private final class Writer: Sendable {
        let entries = Mutex<[TextDelta]>([])
        let waiting = Mutex<[@Sendable () -> Void]>([])

        func commit() {
            let all = waiting.withLock { waiting in
                defer { waiting = [] }
                return waiting
            }
            for committed in all { committed() }
        }
    }

    @Test(arguments: [true, false]) func `waits with a bounded number of entries, and loses nothing of its text`(reasons: Bool) throws {
        let writer = Writer()
        let ends = Mutex<[ModelAttempt.End]>([])
        let attempt = ModelAttempt(position: Position(turn: 1, step: "g", attempt: 1), saved: SavedText()) { entries, committed in
            let deltas = entries.compactMap(\.textDelta)
            writer.entries.withLock { $0 += deltas }
            writer.waiting.withLock { $0.append(committed) }
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

@Suite struct `A model's answer that is continued` {
    @Test func `says with its first piece where it continues, also when that is the call of a tool`() throws {
        let texts = Mutex<[TextDelta]>([])
        var saved = SavedText()
        saved.add(TextDelta(index: 0, delta: Bytes("half a line".utf8)))
        let attempt = ModelAttempt(position: Position(turn: 1, step: "g", attempt: 2), saved: saved) { entries, _ in
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
