internal import ParleyChannels
internal import ParleyLog

/// How a step ends that no entry from outside ended: with a result, a failure, a timer or an entry of a followed channel.
///
/// A step has one end. In this process whatever claims it first writes it (`TurnCore.claimEnd`). Between what is in the log and what is on its
/// way there the order of the log decides: an end yields to every undecided entry before it that might have stopped the step.
extension Activation {
    /// What may stop a step or a turn.
    static let stopping: Set<EntryKind> = [.interrupt, .cancel]

    /// Claims the end of a step and commits it. Any thread.
    ///
    /// - Parameters:
    ///   - yieldsTo: Undecided entries of these kinds are decided first.
    ///   - considered: Highest inbox offset that has been decided, or left alone, with this step open. What was seen earlier may have met nothing
    ///     to stop, so the first try yields to all of it.
    func appendEnd(
        _ core: TurnCore, _ path: String, _ entries: [NewEntry], yieldsTo: Set<EntryKind> = Activation.stopping, considered: UInt64 = 0,
        rows: @escaping @Sendable (inout Stage, Channel, [UInt64]) -> Void, again: (@Sendable () -> Void)? = nil,
        then: @escaping @Sendable (Appended) -> Void
    ) {
        guard core.mayWrite, core.claimEnd(path) else { return }
        append(
            entries, epoch: .holds(core.epoch), yieldsTo: yieldsTo, yieldsAfter: considered, rows: rows,
            yield: { [self] in
                core.withdrawEnd(path)
                if let again { return again() }
                react()
                guard isCurrent(core) else { return }
                appendEnd(core, path, entries, yieldsTo: yieldsTo, considered: upToSeen, rows: rows, then: then)
            }, then: then)
    }

    /// The same for a step that needs no memory while it waits: its end also says that the turn runs again. On the lane.
    func appendRestingEnd(
        _ core: TurnCore, _ path: String, _ entries: [NewEntry], yieldsTo: Set<EntryKind> = Activation.stopping, considered: UInt64 = 0,
        rows: @escaping @Sendable (inout Stage, Channel, [UInt64]) -> Void, then: @escaping @Sendable (Appended) -> Void
    ) {
        guard !core.hasEnd(path) else { return }
        let wasMarked = state.isMarkedWaiting
        let mark = takeWaitingMark(core)
        appendEnd(core, path, entries, yieldsTo: yieldsTo, considered: considered) { stage, channel, offsets in
            rows(&stage, channel, offsets)
            mark(&stage, channel)
        } again: { [self] in
            // Nothing was written: what ends the step instead has to say that the turn runs.
            if wasMarked { state.isMarkedWaiting = true }
            afterReaction(core) { [self] in
                appendRestingEnd(core, path, entries, yieldsTo: yieldsTo, considered: upToSeen, rows: rows, then: then)
            }
        } then: {
            then($0)
        }
    }

    /// Does `body` once everything that is there has been decided or left alone.
    private func afterReaction(_ core: TurnCore, _ body: @escaping @Sendable () -> Void) {
        react()
        guard isCurrent(core) else { return }
        guard state.hasMoreToScan else { return body() }
        lane.deliver { [self] in
            if isCurrent(core) { afterReaction(core, body) }
        }
    }
}
