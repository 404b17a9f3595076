internal import ParleyChannels
internal import ParleySystem

/// How a step ends, with what that leaves outside the turn.
///
/// A step has one end: the first claim writes it (``TurnRun/claimEnd(_:)``). Between what is in the log and what is on its way there the order of the
/// log decides: an end that no entry from outside has asked for yields to every undecided entry before it that might have stopped the step.
extension AgentMachine {
    // MARK: Ends that no entry asked for: a result, a failure, a timer, an entry of a followed channel

    /// Claims the end of a step and commits it; for a step that needs no memory while it waits, see ``writeRestingEnd(_:)``.
    mutating func writeEnd(_ end: StepEnd) {
        guard isCurrent(end.epoch), run!.claimEnd(end.request.path) else { return }
        write(
            AgentBatch(
                entries: end.entries, epoch: .holds(end.epoch), yieldsTo: end.yieldsTo, considered: end.considered, rows: end.rows),
            for: .stepEnded(end))
    }

    /// The same for a step that needs no memory while it waits: its end also says that the turn runs again.
    mutating func writeRestingEnd(_ end: StepEnd) {
        guard let run, !run.hasEnd(end.request.path) else { return }
        var end = end
        end.wait = run.isMarkedWaiting ? .marked : .resting
        end.rows = removal(end.turn, [end.request]) + takeWaitingMark()
        writeEnd(end)
    }

    mutating func stepEnded(_ end: StepEnd, at: Timestamp, _ view: any AgentView) {
        over(end.turn, [end.request])
        guard isCurrent(end.epoch) else { return }
        carryOut(run?.machine.resume(end.request.path, end.outcome, at: at), view)
        mayOnlyWait(view)
        // A decision or a signal that came too late waits for this.
        if [.wait, .approval].contains(end.request.kind) { actions.append(.next([.look])) }
    }

    mutating func stepEndYielded(_ end: StepEnd, _ view: any AgentView) {
        guard isCurrent(end.epoch) else { return }
        run?.withdrawEnd(end.request.path)
        // Nothing was written: the batch that ends the step instead has to say that the turn runs.
        if end.wait == .marked { run?.isMarkedWaiting = true }
        afterReaction(end, view)
    }

    /// Tries again once everything that is there has been decided or left alone.
    mutating func afterReaction(_ end: StepEnd, _ view: any AgentView) {
        react(view)
        guard let run, run.epoch == end.epoch else { return }
        guard !run.hasMoreToScan else { return actions.append(.later(.turn(epoch: end.epoch, .tryEnd(end)))) }
        var end = end
        end.considered = seen
        if end.wait == .working { writeEnd(end) } else { writeRestingEnd(end) }
    }

    // MARK: Ends that entries from outside asked for

    /// Commits the ends of steps and what else happened with them, and has the program continue from all of them, in the order of the log.
    mutating func writeEnds(_ ends: StepEnds, _ entries: [NewEntry], decides: [UInt64]) {
        let models = ends.ends.filter { end in
            guard end.request.isModel, case .completed = end.outcome else { return false }
            return true
        }
        let rows =
            removal(ends.turn, ends.ends.map(\.request)) + takeWaitingMark()
            + models.map { .textSealed(path: $0.request.path, turn: ends.turn) }
        write(AgentBatch(entries: entries, epoch: .holds(ends.epoch), decides: decides, rows: rows), for: .stepsEnded(ends))
    }

    mutating func stepsEnded(_ ended: StepEnds, at: Timestamp, _ view: any AgentView) {
        over(ended.turn, ended.ends.map(\.request))
        let cancellation = ended.cancellation.map { [TurnEvent.cancelled($0, at: at)] } ?? []
        let resumptions = ended.ends.map { TurnEvent.resume(path: $0.request.path, $0.outcome, at: at) }
        // One at a time, with everything that can run in between, as on a replay, and before what later commits give.
        let events = (cancellation + resumptions).map { AgentEvent.turn(epoch: ended.epoch, $0) }
        // Other claims of the same end wait for this.
        actions.append(.next(events + [.look]))
        if isCurrent(ended.epoch) { mayOnlyWait(view) }
    }

    // MARK: Rows of a waiting step outside its turn

    /// Deletes the rows by which waiting steps are found.
    func removal(_ turn: UInt64, _ steps: [StepRequest]) -> [AgentRow] {
        let timers = steps.compactMap { $0.timer(turn) }
        let follows = steps.compactMap { follow(turn, $0) }
        return timers.map { .noTimer($0) } + follows.map { .follow(.ends($0.key(identity.id))) }
    }

    /// The rows are gone, and what was known of the steps with them.
    private mutating func over(_ turn: UInt64, _ steps: [StepRequest]) {
        for step in steps {
            actions.append(.forget(path: step.path))
            if let timer = step.timer(turn) { actions.append(.timerSettled(timer)) }
            if run?.turn == turn { run?.steps[step.path] = nil }
        }
    }

    // MARK: Following

    func follow(_ turn: UInt64, _ request: StepRequest) -> Follow? {
        guard case .follow(let followed, let after, let incarnation, _) = request.work else { return nil }
        return Follow(
            follower: identity.name, id: "\(Offset(turn))/\(request.path)", followed: followed, after: after,
            incarnation: run?.steps[request.path]?.followed ?? incarnation)
    }

    /// Gives the steps that follow a channel what there is.
    mutating func readFollowed(_ view: any AgentView) {
        // Behind the inbox: all input that may stop the steps has been decided, or cannot stop them.
        for step in run?.openFollows ?? [] { _ = hasRead(step, considered: run?.hasMoreToScan == true ? 0 : seen, view) }
    }

    /// Gives the step what there is.
    /// - Parameter isOver: Otherwise it ends, and needs no notice of further entries.
    /// - Returns: whether there was something, or the log could not be read.
    mutating func hasRead(_ step: StepRequest, considered: UInt64, isOver: Bool = false, _ view: any AgentView) -> Bool {
        guard let run, !run.hasEnd(step.path), let follow = follow(run.turn, step) else { return false }
        do {
            switch try view.read(follow) {
            case .outcome(let outcome): finish(run, step, outcome, considered)
            case .nothing(let offset, let channel):
                if !isOver { awaitNews(of: follow, step, in: channel, behind: offset) }
                return false
            }
        } catch {
            unreadable(error)
        }
        return true
    }

    /// Waits for further entries when the program can read none of those it was told of, or will be; or when the channel did not exist at the start
    /// of the follow, so that nothing watches the one that exists now.
    private mutating func awaitNews(of follow: Follow, _ step: StepRequest, in channel: ChannelID, behind offset: UInt64) {
        let known = run?.steps[step.path]?.read ?? follow.incarnation.map { (channel: $0, upTo: follow.after) }
        guard known?.channel != channel.text || offset > known!.upTo else { return }
        run?.steps[step.path, default: StepState()].read = (channel.text, offset)
        actions.append(.followAgain(follow.key(identity.id), of: channel, after: offset))
    }

    private mutating func finish(_ run: TurnRun, _ step: StepRequest, _ outcome: StepOutcome, _ considered: UInt64) {
        let entry =
            switch outcome {
            case .completed(let body): NewEntry(.stepCompleted, Position(turn: run.turn, step: step.path), ("result", body["result"]))
            case .failed(let failure): AgentMachine.failed(run.turn, step.path, failure)
            }
        writeRestingEnd(run.end(of: step, [entry], outcome: outcome, considered: considered))
    }
}

extension StepRequest {
    /// The timer that ends it.
    func timer(_ turn: UInt64) -> DueTimer? { due.map { DueTimer(turn: turn, path: path, due: $0) } }
}
