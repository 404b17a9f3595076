internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// How an agent leaves memory: when nothing needs it, or when it has lost its right to be there.
extension Activation {
    func leave() {
        state.isGone = true
        state.core?.fence(Fenced())
        stopSteps()
        runtime.forget(self)
        for timer in state.deferredTimers { runtime.timerDue(channel.name, channel.id, timer) }
        state.deferredTimers = []
    }

    func scheduleIdleCheck() {
        guard !state.isIdleCheckScheduled, !state.isGone else { return }
        state.isIdleCheckScheduled = true
        runtime.world.schedule(at: runtime.world.now.advanced(by: runtime.idleAfter)) { [self] in
            lane.deliver { self.checkIdle() }
        }
    }

    /// Leaves memory when nothing has happened for a while and nothing needs it: no turn, or one that only waits.
    private func checkIdle() {
        state.isIdleCheckScheduled = false
        guard !state.isGone else { return }
        let quietFor = state.lastActive.duration(to: runtime.world.now)
        let resting = state.core?.restingSteps
        guard !state.isBusy, state.isLoaded, quietFor >= runtime.idleAfter, state.core == nil || resting != nil else {
            return scheduleIdleCheck()
        }
        guard let core = state.core else {
            if runtime.forget(self, unlessNeeded: true) { state.isGone = true } else { scheduleIdleCheck() }
            return
        }
        state.isBusy = true
        state.isMarkedWaiting = true
        append([], epoch: .holds(core.epoch)) { stage, channel, _ in
            channel.move(to: .waiting, turn: core.turn, in: &stage)
        } then: { [self] _ in
            state.isBusy = false
            guard core.restingSteps != nil, runtime.forget(self, unlessNeeded: true) else { return scheduleIdleCheck() }
            state.isGone = true
            core.fence(Passivated())
        }
    }

    /// What to write with the end of a sleep: a turn that was marked as waiting, and whose timer is gone, is one to recover.
    func takeWaitingMark(_ core: TurnCore) -> @Sendable (inout Stage, Channel) -> Void {
        guard state.isMarkedWaiting else { return { _, _ in } }
        state.isMarkedWaiting = false
        return { stage, channel in channel.move(to: .running, turn: core.turn, in: &stage) }
    }
}
