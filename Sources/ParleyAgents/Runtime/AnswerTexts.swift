internal import Synchronization

/// The memory for the answers of models in flight, all together. An answer that finds no room is paused, which its endpoint notices as a slow reader;
/// it continues when another one has ended.
///
/// One answer at a time, the first that had to wait, gets all that it asks for: so there is always one that comes to its end.
package final class AnswerTexts: Sendable {
    /// The share of one answer.
    final class Share: Sendable {
        private let texts: AnswerTexts
        fileprivate let bytes = Atomic<Int>(AnswerTexts.freeBytes)

        fileprivate init(_ texts: AnswerTexts) { self.texts = texts }

        deinit { texts.release(self) }

        /// Whether it is more than any answer may hold.
        var isCounted: Bool { bytes.load(ordering: .relaxed) > AnswerTexts.freeBytes }

        /// Room for an answer of so many bytes.
        ///
        /// - Parameter resume: Called once, on any thread, when there is room after all.
        /// - Returns: whether there is.
        func grow(to count: Int, _ resume: @escaping @Sendable () -> Void) -> Bool {
            count <= bytes.load(ordering: .relaxed) || texts.grow(self, resume)
        }

        /// The answer has ended: its memory still counts, but it is no longer the one that gets everything, and no longer waits.
        func end() { texts.end(self) }
    }

    private struct Waiting {
        let share: ObjectIdentifier
        /// - Returns: whether it is still there.
        let grant: @Sendable () -> Bool
        let resume: @Sendable () -> Void
    }

    private struct State {
        var used = 0
        /// The one that gets what it asks for.
        var favoured: ObjectIdentifier?
        var waiting: [Waiting] = []
    }

    private let bytesMax: Int
    private let state = Mutex(State())

    /// The memory that any answer may take: nearly all are shorter.
    static let freeBytes = 64 << 10
    /// The step by which an answer's share grows.
    private static let stepBytes = 256 << 10

    package init(bytesMax: Int = 8 << 20) { self.bytesMax = bytesMax }

    var usedBytes: Int { state.withLock { $0.used } }
    var waitingCount: Int { state.withLock { $0.waiting.count } }

    func share() -> Share { Share(self) }

    private func grow(_ share: Share, _ resume: @escaping @Sendable () -> Void) -> Bool {
        state.withLock { state in
            let id = ObjectIdentifier(share)
            let grant = { @Sendable [weak share] in share?.bytes.add(AnswerTexts.stepBytes, ordering: .relaxed) != nil }
            guard hasRoom(for: id, &state) else {
                state.waiting.append(Waiting(share: id, grant: grant, resume: resume))
                return false
            }
            state.used += AnswerTexts.stepBytes
            return grant()
        }
    }

    private func hasRoom(for share: ObjectIdentifier, _ state: inout State) -> Bool {
        if state.used + AnswerTexts.stepBytes <= bytesMax { return true }
        if state.favoured == nil { state.favoured = share }
        return state.favoured == share
    }

    private func end(_ share: Share) { free(0, ObjectIdentifier(share)) }

    private func release(_ share: Share) {
        free(share.bytes.load(ordering: .relaxed) - AnswerTexts.freeBytes, ObjectIdentifier(share))
    }

    private func free(_ bytes: Int, _ share: ObjectIdentifier) {
        let found = state.withLock { state in
            state.used -= bytes
            if state.favoured == share { state.favoured = nil }
            if state.waiting.isEmpty { return [Waiting]() }
            state.waiting.removeAll { $0.share == share }
            var found: [Waiting] = []
            while let first = state.waiting.first, hasRoom(for: first.share, &state) {
                state.waiting.removeFirst()
                guard first.grant() else { continue }
                state.used += AnswerTexts.stepBytes
                found.append(first)
            }
            return found
        }
        for one in found { one.resume() }
    }
}
