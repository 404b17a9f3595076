internal import ParleyChannels
internal import ParleySystem

/// Passivation: when nothing needs the agent, or when it has lost its right to be there.
extension AgentMachine {
    /// It has lost its right to be there, or cannot do anything.
    mutating func leave() {
        if let run { leaveProgram(run, Fenced()) } else { actions.append(.stopAll) }
        room = .none
        phase = .gone
        actions.append(.leave)
        actions += deferredTimers.map { .timerAgain($0) }
        deferredTimers = []
    }

    // MARK: With nothing to do

    mutating func scheduleIdleCheck(_ view: any AgentView) {
        if view.isCrowded, run == nil, canRest(view), rest.alarms.insert(.room).inserted { actions.append(.later(.alarm(.room))) }
        guard !isGone else { return }
        call(.idle, at: view.now.advanced(by: view.idleAfter))
    }

    /// Sets an alarm, unless it is set already.
    mutating func call(_ alarm: AgentAlarm, at instant: Timestamp) {
        if rest.alarms.insert(alarm).inserted { actions.append(.at(instant, .alarm(alarm))) }
    }

    mutating func rang(_ alarm: AgentAlarm, _ view: any AgentView) {
        rest.alarms.remove(alarm)
        switch alarm {
        case .idle, .room: restIfIdle(view)
        // Applies to the turn that is open by now.
        case .waitingMark: if run?.isMarkedWaiting == false, !isWriting, isResting(view) { markWaiting(isLeaving: false) }
        }
    }

    /// Passivates the agent after some idle time, or when others wait for room, provided that nothing needs it: it has no turn, or one that only
    /// waits.
    mutating func restIfIdle(_ view: any AgentView) {
        guard !isGone else { return }
        // The clock may have been set back since.
        rest.lastActive = min(rest.lastActive, view.now)
        let quietFor = rest.lastActive.duration(to: view.now)
        guard view.isCrowded || quietFor >= view.idleAfter, canRest(view) else { return scheduleIdleCheck(view) }
        if run == nil { actions.append(.rest) } else { markWaiting(isLeaving: true) }
    }

    /// Whether nothing would be lost with the memory: all that was submitted is durable, and the turn, if there is one, only waits.
    private func canRest(_ view: any AgentView) -> Bool {
        guard !isWriting, record != nil, room != .asked, rest.inFlight == 0, !view.isWritingText else { return false }
        switch phase {
        case .idle: return true
        // A task that waits outside the turn is thrown out with the rest of the program, and runs again; that is for when others need the room.
        case .running: return isResting(view) && !view.keepsWaiting && (view.isCrowded || !run!.hasOwnTasks)
        // It pauses after a crash, and is about to run again.
        case .halted(let halt): return halt.status != .running
        case .gone: return false
        }
    }

    /// Whether the turn only waits, and its log says for what: while the process drains, steps that were asked for have not begun.
    private func isResting(_ view: any AgentView) -> Bool {
        guard let run, run.restingSteps != nil else { return false }
        return !view.isDraining && !view.hasStrayed(turn: run.turn)
    }

    mutating func turnWaits(_ epoch: UInt64, isLeaving: Bool, _ view: any AgentView) {
        guard isLeaving else {
            if view.isCrowded { restIfIdle(view) }
            return
        }
        // Input that came while the mark was written is decided first. If that decides something, the agent stays.
        perform(view) { _ in }
        if isCurrent(epoch), canRest(view) { actions.append(.rest) } else { scheduleIdleCheck(view) }
    }

    /// The agent is passivated: deliveries from here on reach the next activation.
    mutating func rested() {
        if let run { actions.append(.fence(Passivated(), left: run.machine)) }
        phase = .gone
    }
}
