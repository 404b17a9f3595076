internal import FoundationEssentials
internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// Steps that wait for entries of another channel.
extension Activation {
    private static let entriesMax = 64
    private static let bytesMax = 256 << 10

    func follow(_ core: TurnCore, _ request: StepRequest) -> Follow? {
        guard case .follow(let followed, let after, let incarnation, _) = request.work else { return nil }
        return Follow(
            follower: channel.name, id: "\(Offset(core.turn))/\(request.path)", followed: followed, after: after,
            incarnation: state.followed[request.path] ?? incarnation)
    }

    /// Which channel the step follows from here on: the one that has the name now, unless the program has read of one before.
    func bindFollow(_ request: inout StepRequest) throws(LogError) {
        guard case .follow(let followed, _, let known, _) = request.work else { return }
        let incarnation = if let known { known } else { try runtime.channels.find(followed)?.id.incarnation }
        state.followed[request.path] = incarnation
        if let incarnation { request.details.append(JSON.Member("incarnation", .string(incarnation))) }
    }

    /// Gives the steps that follow a channel what there is. A step that is over lets go of its channel.
    func readFollowed(_ core: TurnCore) {
        for step in core.openFollows where isCurrent(core) {
            guard let follow = follow(core, step), !core.hasEnd(step.path), let outcome = outcome(of: follow) else { continue }
            finish(core, step, follow, outcome)
        }
    }

    /// What the step gives; `nil` while there is nothing new.
    private func outcome(of follow: Follow) -> StepOutcome? {
        do throws(LogError) {
            guard let followed = try runtime.channels.find(follow.followed), follow.isOf(followed) else {
                let failure = StepFailure(
                    code: "channel_not_found", message: "there is no channel '\(follow.followed)' any more, or none yet", retryable: false)
                return .failed(failure)
            }
            let (head, isClosed, _) = followed.tail
            var (entries, bytes, last) = ([JSON](), 0, follow.after)
            try runtime.channels.walk(followed, after: follow.after, upTo: head) { offset, frame in
                last = offset
                if let value = frame.value(offset, of: followed) {
                    entries.append(["offset": .string(Offset(offset).token), "value": value])
                    bytes += frame.payload.count
                }
                return entries.count < Activation.entriesMax && bytes < Activation.bytesMax
            }
            let hasEnded = isClosed && last >= head
            guard !entries.isEmpty || hasEnded else { return nil }
            let result = JSON.compact(
                ("entries", .array(entries)), ("ended", hasEnded ? true : nil), ("incarnation", .string(followed.id.incarnation)))
            return .completed(["result": result])
        } catch {
            stopped(error)
            return nil
        }
    }

    private func finish(_ core: TurnCore, _ step: StepRequest, _ follow: Follow, _ outcome: StepOutcome) {
        let position = Position(turn: core.turn, step: step.path)
        let entry =
            switch outcome {
            case .completed(let body): NewEntry(.stepCompleted, position, ("result", body["result"]))
            case .failed(let failure): NewEntry(.stepFailed, position, ("error", failure.journal), ("final", true))
            }
        // Read behind the inbox: what may stop the step has been decided, or cannot stop it.
        let considered = state.hasMoreToScan ? 0 : upToSeen
        writeRestingEnd(StepEnd(core: core, request: step, entries: [entry], outcome: outcome, considered: considered))
    }

    // MARK: What a waiting step keeps outside its turn

    /// Deletes the rows by which waiting steps are found.
    func removal(_ core: TurnCore, _ steps: [StepRequest]) -> [AgentRow] {
        let timers = steps.compactMap { step in step.due.map { DueTimer(turn: core.turn, path: step.path, due: $0) } }
        let follows = steps.compactMap { follow(core, $0) }
        return timers.map { .noTimer($0) } + follows.map { .noFollow($0.key(channel.id)) }
    }

    /// The rows are gone.
    func over(_ core: TurnCore, _ steps: [StepRequest]) {
        for step in steps {
            if let due = step.due { runtime.timers.settled(DueTimer(turn: core.turn, path: step.path, due: due).key(channel.id)) }
            if let follow = follow(core, step) {
                runtime.follows.end(follow)
                state.followed[step.path] = nil
            }
        }
    }
}

extension Frame {
    /// The entry as whoever follows its channel gets it; `nil` for what is no entry any more.
    fileprivate func value(_ offset: UInt64, of channel: Channel) -> JSON? {
        guard kind != .hole else { return nil }
        var bytes = Bytes()
        writeJSON(offset: offset, owner: channel.name, to: &bytes)
        if channel.isJSON { return try? JSON.parse(bytes) }
        if ContentType.isText(channel.contentType) { return .string(bytes.text) }
        return .string(Data(bytes).base64EncodedString())
    }
}
