internal import ParleyChannels
internal import ParleySystem

/// The consequences of a written batch.
extension AgentMachine {
    /// It is durable.
    mutating func committed(_ purpose: WritePurpose, _ appended: Appended, _ view: any AgentView) {
        switch purpose {
        case .record: break
        case .turnStarted(let start): turnStarted(start, appended, view)
        case .turnTakenUp(let start):
            isWriting = false
            actions.append(.noteTakenUp)
            perform(view) { try $0.run(start, view) }
        case .turnEnded(let end): turnEnded(end, appended, view)
        case .turnWaits(let epoch, let isLeaving): turnWaits(epoch, isLeaving: isLeaving, view)
        case .stepStarted(let epoch, let request, let attempt): stepStarted(epoch, request, attempt, at: appended.offsets[0], view)
        case .waitStarted(let epoch, let timer, let isFollow): waitStarted(epoch, timer, isFollow: isFollow, view)
        case .attemptFailed(let failed): attemptFailed(failed, view)
        case .stepEnded(let end): stepEnded(end, at: appended.at, view)
        case .stepsEnded(let ends): stepsEnded(ends, at: appended.at, view)
        case .decided:
            isWriting = false
            perform(view) { _ in }
        case .rejected: break
        case .turnHalted(let turn):
            isWriting = false
            actions.append(.turnEnded(turn))
            perform(view) { _ in }
        case .haltedApprovalDecided(let timers):
            isWriting = false
            actions += timers.map { .timerSettled($0) }
            perform(view) { _ in }
        case .haltedTurnEnded(let end):
            haltedTurnEnded(end, at: appended.offsets.last!)
            perform(view) { _ in }
        case .agentClosed: leave()
        }
    }

    /// It gave way to input that came first, which has been taken in: tries again.
    mutating func yielded(_ purpose: WritePurpose, _ view: any AgentView) {
        switch purpose {
        case .turnEnded(let end): turnEndYielded(end, view)
        case .stepEnded(let end): stepEndYielded(end, view)
        case .agentClosed(let before):
            // Input that came meanwhile must get its receipt too.
            isWriting = false
            for offset in before.offsets { inbox.insert(before[offset]!) }
        default: preconditionFailure("a batch for \(purpose) yields to nothing")
        }
    }
}
