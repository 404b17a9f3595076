internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// How an agent leaves memory: when nothing needs it, or when it has lost its right to be there.
extension Activation {
    func leave() {
        state.isGone = true
        (state.share, state.answers) = (nil, [])
        state.core?.fence(Fenced())
        stopSteps()
        runtime.forget(self)
        for timer in state.deferredTimers { runtime.timerDue(channel.name, channel.id, timer) }
        state.deferredTimers = []
    }

    func scheduleIdleCheck() {
        if runtime.directory.isCrowded, state.core == nil, canRest { makeRoomSoon() }
        guard !state.isIdleCheckScheduled, !state.isGone else { return }
        state.isIdleCheckScheduled = true
        runtime.world.schedule(at: runtime.world.now.advanced(by: runtime.idleAfter)) { [self] in
            lane.deliver {
                self.state.isIdleCheckScheduled = false
                self.restIfIdle()
            }
        }
    }

    /// Others wait for room: leaves now if it can. Any thread.
    func makeRoom() { lane.deliver { self.restIfIdle() } }

    /// The same from the lane, at most one at a time: whatever is delivered keeps the agent in memory.
    private func makeRoomSoon() {
        guard !state.isMakingRoom else { return }
        state.isMakingRoom = true
        lane.deliver { [self] in
            state.isMakingRoom = false
            restIfIdle()
        }
    }

    /// Passivates the agent when nothing has happened for a while and nothing needs it: no turn, or one that only waits.
    private func restIfIdle() {
        guard !state.isGone else { return }
        let quietFor = state.lastActive.duration(to: runtime.world.now)
        guard runtime.directory.isCrowded || quietFor >= runtime.idleAfter, canRest else { return scheduleIdleCheck() }
        guard let core = state.core else { return rest() }
        markWaiting(core, isLeaving: true)
    }

    /// Whether nothing would be lost with the memory: all that was submitted is durable, and the turn, if there is one, only waits.
    private var canRest: Bool {
        !state.isBusy && state.isLoaded && !state.waitsForMemory && state.halt?.status != .running
            && appendsInFlight.load(ordering: .relaxed) == 0
            && (state.core == nil || isResting && !runtime.keepsInMemory(agent.kind))
    }

    /// Whether the turn only waits, and its log says for what: while the process drains, steps that were asked for have not begun.
    private var isResting: Bool {
        guard let core = state.core, core.restingSteps != nil else { return false }
        return !runtime.isDraining && !runtime.hasStrayed(channel.name, turn: core.turn)
    }

    /// Leaves memory, unless something has been delivered. What is delivered from here on reaches the next activation, see ``wake(upTo:)``.
    private func rest() {
        guard !state.isGone, runtime.forget(self, unlessNeeded: true) else { return scheduleIdleCheck() }
        state.isGone = true
        (state.share, state.answers) = (nil, [])
        state.core?.fence(Passivated())
    }

    /// Has whoever looks know soon that the turn only waits; not for a pause of a moment, which would cost two more commits.
    func scheduleWaitingMark() {
        guard !state.isMarkedWaiting, !state.isMarkScheduled else { return }
        state.isMarkScheduled = true
        runtime.world.schedule(at: runtime.world.now.advanced(by: Activation.waitingMarkDelay)) { [self] in
            lane.deliver {
                self.state.isMarkScheduled = false
                // Of whatever turn there is by now.
                guard let core = self.core, self.isCurrent(core), !self.state.isMarkedWaiting, !self.state.isBusy, self.isResting else {
                    return
                }
                self.markWaiting(core, isLeaving: false)
            }
        }
    }

    private static let waitingMarkDelay = Duration.milliseconds(200)

    /// The log says from here on that the turn only waits: a process that starts leaves it alone until something comes for it.
    private func markWaiting(_ core: TurnCore, isLeaving: Bool) {
        let rows = state.isMarkedWaiting ? [] : [AgentRow.status(.waiting, turn: core.turn)]
        state.isMarkedWaiting = true
        write(AgentBatch(entries: [], epoch: .holds(core.epoch), rows: rows), for: .turnWaits(core, isLeaving: isLeaving))
    }

    func turnWaits(_ core: TurnCore, isLeaving: Bool) {
        guard isLeaving else {
            if runtime.directory.isCrowded { restIfIdle() }
            return
        }
        // What came while the mark was written is decided first. If that decides something, the agent stays.
        perform {}
        if isCurrent(core), canRest { rest() } else { scheduleIdleCheck() }
    }

    /// What to write with whatever has the turn run again: a turn that is marked as waiting is taken up after a crash only when something comes
    /// for it.
    func takeWaitingMark(_ core: TurnCore) -> [AgentRow] {
        guard state.isMarkedWaiting else { return [] }
        state.isMarkedWaiting = false
        return [.status(.running, turn: core.turn)]
    }
}
