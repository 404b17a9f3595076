internal import ParleyAgents
internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// People who respond to an agent's entries: an approval that is asked for, a wait that begins, the end of a turn, each at the worst moment.
///
/// They observe the log, so that their actions are timed from the very commit.
final class SimulationReflexes: Sendable {
    private struct State {
        var random: SplitMix64
        var left = 24
        var number = 0
    }

    private let state: Mutex<State>
    private let record: SimulationRecord

    init(seed: UInt64, _ record: SimulationRecord) {
        state = Mutex(State(random: SplitMix64(seed: seed)))
        self.record = record
    }

    /// Watches what a process makes durable.
    func watch(_ process: SimulationProcess) {
        process.crash.observe { [weak process] batches, outcome in
            guard let process else { return }
            for (index, batch) in batches.enumerated() where outcome.isDurable(index) {
                _ = SimulationMatrix.kinds(of: batch) { channel, _, frame in self.saw(channel, frame, process) }
            }
        }
    }

    /// Milliseconds: at once, when the turn is marked as waiting, when the agent is about to be passivated, when it has left.
    private static let delays: [Int64] = [0, 1, 195, 200, 205, 1_995, 2_000, 2_000, 2_003, 2_005, 2_010, 2_200, 60_000]

    private func saw(_ channel: ChannelID, _ frame: Frame, _ process: SimulationProcess) {
        guard [.approvalRequested, .stepStarted, .turnCompleted].contains(frame.kind) else { return }
        let random: UInt64? = state.withLock { state in
            guard state.left > 0, state.random.next() % 2 == 0 else { return nil }
            state.left -= 1
            return state.random.next()
        }
        guard let random, let entries = answers(frame, random) else { return }
        let delay = SimulationReflexes.delays[Int(random % UInt64(SimulationReflexes.delays.count))]
        process.world.schedule(at: process.world.now.advanced(by: .milliseconds(delay))) { [weak process] in
            guard let process, let row = try? process.log.get(.channels, channel.key), let name = ChannelRow(row)?.name,
                name.hasPrefix("agents/sim")
            else { return }
            for entry in entries { SimulationReflexes.send(entry, to: name, process) }
        }
    }

    private func answers(_ frame: Frame, _ random: UInt64) -> [NewEntry]? {
        let by = ("by", "person") as (String, JSON?)
        switch frame.kind {
        case .approvalRequested:
            let answer = NewEntry(random % 4 == 0 ? .deny : .approve, members: NewEntry.join([by, ("approval", frame.body["approval"])]))
            return random % 8 == 0 ? [answer, answer] : [answer]
        case .stepStarted where frame.body["kind"] == "wait" && frame.body["request"]?["channel"] == nil:
            return [NewEntry(.signal, members: NewEntry.join([by, ("name", frame.body["name"])]))]
        case .turnCompleted where frame.body["output"]?["outputs"] != nil:
            let id = state.withLock { state in
                state.number += 1
                return "reflex\(state.number)"
            }
            let program = SimulationProgram(seed: random, palette: .all)
            let data: JSON = ["program": .string(program.text), "request": .string(id)]
            record.update {
                $0.requests.append(SimulationHistory.Request(id: id, channel: "", entries: [["data": data]], program: program))
            }
            return [NewEntry(.message, members: NewEntry.join([by, ("data", data)]))]
        default: return nil
        }
    }

    static func send(_ entry: NewEntry, to name: String, _ process: SimulationProcess) {
        var append = Append(to: name, [entry])
        append.isInput = true
        process.channels.submit(append)
    }
}

/// Gives turns that wait what they wait for, until all of them have ended.
enum SimulationNudge {
    /// - Returns: whether anything still waited.
    static func nudge(_ process: SimulationProcess, _ entries: [SimulationHistory.Life: [SimulationHistory.Entry]]) -> Bool {
        var isNeeded = false
        for (life, entries) in entries.sorted(by: { $0.key.name < $1.key.name }) where life.name.hasPrefix("agents/") {
            var state = SimulationAgentState()
            for entry in entries { state.take(entry) }
            guard let turn = state.turn else { continue }
            isNeeded = true
            for (path, step) in state.open.sorted(by: { $0.key < $1.key }) {
                let start = entries.last { $0.turn == turn && $0.step == path && $0.type == "step.started" }
                if step.isFollow, let followed = start?.body["request"]?["channel"]?.string {
                    end(followed, process)
                } else if step.kind == "wait" {
                    send(.signal, ("name", .string(step.name)), to: life.name, process)
                } else if step.kind == "approval" {
                    send(.approve, ("approval", .string("\(Offset(turn))/\(path)")), to: life.name, process)
                }
            }
        }
        return isNeeded
    }

    private static func send(_ kind: EntryKind, _ member: (String, JSON?), to name: String, _ process: SimulationProcess) {
        SimulationReflexes.send(NewEntry(kind, members: NewEntry.join([("by", "nudge"), member])), to: name, process)
    }

    private static func end(_ stream: String, _ process: SimulationProcess) {
        var append = Append(to: stream, [])
        append.closes = true
        process.channels.submit(append)
    }
}
