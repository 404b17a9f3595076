internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// What an agent appends at once, as data: entries, the input that they decide, and the rows that go with them.
struct AgentBatch: Sendable {
    var entries: [NewEntry]
    var epoch: EpochClaim
    var decides: [UInt64] = []
    /// It closes the channel.
    var closes = false
    /// It gives way to undecided entries of these kinds that stand behind `considered`.
    var yieldsTo: Set<EntryKind> = []
    /// Highest inbox offset that has been decided or left alone with this batch in view; `nil`: all that the agent has seen.
    var considered: UInt64?
    var rows: [AgentRow] = []
}

/// A row that stands or falls with the entries of a batch.
enum AgentRow: Sendable {
    /// What the log says of the agent, and its open turn.
    case status(AgentStatus, turn: UInt64?)
    case timer(DueTimer)
    case noTimer(DueTimer)
    case follow(Follow)
    /// By its key in the index.
    case noFollow(Bytes)
    /// The agent's state as of the entry with that number in the batch.
    case state(Bytes, entry: Int)
    /// What entries refer to by its digest.
    case content(Bytes, digest: Bytes)
    /// The batch begins with the first start of a model step.
    case modelStarted(path: String)
    /// The text that a model step has streamed stands in its result, the batch's last entry, and may go in its time.
    case textSealed(path: String, turn: UInt64)
}

extension Activation {
    /// Appends as the agent's owner. On the lane, once it is durable, ``committed(_:_:)`` goes on from there. Any thread.
    ///
    /// It gives way to undecided entries that come first: they are taken in, and ``yielded(_:)`` says how to try again. Refused, the agent leaves
    /// memory: somebody else owns it.
    func write(_ batch: AgentBatch, for purpose: WritePurpose = .record) {
        appendsInFlight.add(1, ordering: .relaxed)
        let append = Append(runtime.channels, to: channel.name, batch.entries) { [self] result in
            lane.deliver { [self] in
                appendsInFlight.subtract(1, ordering: .relaxed)
                switch result {
                case .success(let appended):
                    if case .takes(let epoch) = batch.epoch { state.epoch = epoch + 1 }
                    worked(batch.entries, appended)
                    committed(purpose, appended)
                    parkIfOverworked()
                case .failure(let error) where error.code == ChannelError.undecided:
                    perform {
                        try takeInput(upTo: channel.tail.head)
                        yielded(purpose)
                    }
                case .failure(let error): refused(error, batch.epoch)
                }
            }
        }
        append.epoch = batch.epoch
        append.id = channel.id
        append.decides = batch.decides
        append.closes = batch.closes
        append.yieldsTo = batch.yieldsTo
        append.yieldsAfter = batch.considered ?? upToSeen
        append.rows = { [self] stage, channel, offsets in
            for row in batch.rows { put(row, of: channel, offsets, in: &stage) }
        }
        append.submit()
    }

    /// On the writer's thread.
    private func put(_ row: AgentRow, of channel: Channel, _ offsets: [UInt64], in stage: inout Stage) {
        switch row {
        case .status(let status, let turn): channel.move(to: status, turn: turn, in: &stage)
        case .timer(let timer): stage.put(.timers, timer.key(channel.id), Bytes(channel.name.utf8))
        case .noTimer(let timer): stage.delete(.timers, timer.key(channel.id))
        case .follow(let follow): stage.put(.index, follow.key(channel.id), follow.row)
        case .noFollow(let key): stage.delete(.index, key)
        case .state(let state, let entry): stage.put(.states, channel.id.key(offsets[entry]), state)
        case .content(let content, let digest): stage.put(.big, channel.id.key(digest), content)
        case .modelStarted(let path): startedAt.withLock { $0[path] = offsets[0] }
        case .textSealed(let path, let turn):
            let from = startedAt.withLock { $0.removeValue(forKey: path) } ?? turn
            let text = SealedText(channelName: channel.name, turn: turn, step: path, from: from, upTo: offsets.last!)
            runtime.trims.seal(text, of: channel, in: &stage)
        }
    }

    private func refused(_ error: ChannelError, _ claimed: EpochClaim) {
        guard !state.isGone else { return }
        // What is left of a turn that was halted meanwhile is of no use, and no sign that somebody else owns the agent.
        if case .holds(let claimed) = claimed, claimed != state.epoch { return }
        // What could not be read may be readable soon.
        if error.code == LogError.Code.damaged.text { return stopped(error) }
        // The log going down is said once, by the server.
        if error.code != LogError.Code.closed.text {
            Diagnostics.log(.warning, "agent fenced", ["channel": channel.name, "code": error.code])
        }
        leave()
    }
}
