internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// How a step ends that no entry from outside ended: with a result, a failure, a timer or an entry of a followed channel.
///
/// A step has one end. In this process whatever claims it first writes it (`TurnCore.claimEnd`). Between what is in the log and what is on its
/// way there the order of the log decides: an end yields to every undecided entry before it that might have stopped the step.
extension Activation {
    /// What may stop a step or a turn.
    static let stopping: Set<EntryKind> = [.interrupt, .cancel]

    /// Claims the end of a step and commits it. Any thread; for a step that needs no memory while it waits, see ``writeRestingEnd(_:)``.
    func writeEnd(_ end: StepEnd) {
        guard end.core.mayWrite, end.core.claimEnd(end.request.path) else { return }
        write(
            AgentBatch(
                entries: end.entries, epoch: .holds(end.core.epoch), yieldsTo: end.yieldsTo, considered: end.considered, rows: end.rows),
            for: .stepEnded(end))
    }

    /// The same for a step that needs no memory while it waits: its end also says that the turn runs again. On the lane.
    func writeRestingEnd(_ end: StepEnd) {
        guard !end.core.hasEnd(end.request.path) else { return }
        var end = end
        end.isResting = true
        end.hasTakenMark = state.isMarkedWaiting
        end.rows = removal(end.core, [end.request]) + takeWaitingMark(end.core)
        writeEnd(end)
    }

    func stepEnded(_ end: StepEnd, at: Timestamp) {
        isOver(end.request.path)
        over(end.core, [end.request])
        if isCurrent(end.core) { end.core.resume(end.request.path, end.outcome, at: at) }
        // A decision or a signal that came too late waits for this.
        if end.yieldsTo.count > Activation.stopping.count { lane.deliver(parts: [{ [self] in perform {} }]) }
    }

    func stepEndYielded(_ end: StepEnd) {
        end.core.withdrawEnd(end.request.path)
        // Nothing was written: what ends the step instead has to say that the turn runs.
        if end.hasTakenMark { state.isMarkedWaiting = true }
        afterReaction(end)
    }

    /// Tries again once everything that is there has been decided or left alone.
    private func afterReaction(_ end: StepEnd) {
        react()
        guard isCurrent(end.core) else { return }
        guard state.hasMoreToScan else {
            var end = end
            end.considered = upToSeen
            return end.isResting ? writeRestingEnd(end) : writeEnd(end)
        }
        lane.deliver { [self] in
            if isCurrent(end.core) { afterReaction(end) }
        }
    }
}
