internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Follows a channel as a device does: from its cursor, live, away for a while, back again, through one process after another.
final class SimulationReader: ChannelWatcher, Sendable {
    private struct State {
        weak var process: SimulationProcess?  // Its channels hold the reader.
        var channel: Channel?
        /// The life the cursor belongs to.
        var life: SimulationHistory.Life?
        var cursor: UInt64 = 0
        var isReading = false
        var isAway = false
        var isTold = false
    }

    private let number: Int
    private let name: String
    private let state = Mutex(State())

    init(number: Int, name: String) {
        self.number = number
        self.name = name
    }

    /// Connects to a new process: at once when the channel is there, else when something was committed that may have made it.
    func resume(_ process: SimulationProcess) {
        state.withLock { state in
            state.process = process
            state.channel = nil
            state.isReading = false
            state.isAway = false
            state.isTold = false
        }
        // The channel notifies its readers in an order of its own; here all readers look in theirs, so that the run follows from its seed.
        process.writer.afterCommit { [weak self] in self?.committed() }
        look()
    }

    func channelChanged(_ tail: any Tail) { state.withLock { $0.isTold = true } }

    private func committed() {
        let mayRead = state.withLock { state in
            defer { state.isTold = false }
            return state.isTold || state.channel == nil
        }
        if mayRead { look() }
    }

    /// Reads soon, unless that is in flight.
    private func look() {
        let process: SimulationProcess? = state.withLock { state in
            guard !state.isReading, !state.isAway else { return nil }
            state.isReading = true
            return state.process
        }
        process?.world.perform(lane: 1 << 40 + UInt64(number)) { [self] in
            state.withLock { $0.isReading = false }
            if let process, process.record.isAlive, attach(process) { read(process) }
        }
    }

    private func attach(_ process: SimulationProcess) -> Bool {
        if state.withLock({ $0.channel != nil }) { return true }
        guard let channel = try? process.channels.find(name), channel.attach(self) else { return false }
        let life = SimulationHistory.Life(name: name, id: channel.id)
        state.withLock { state in
            state.channel = channel
            if state.life != life {
                state.life = life
                state.cursor = 0
            }
        }
        return true
    }

    private func read(_ process: SimulationProcess) {
        while true {
            let (channel, cursor, life) = state.withLock { ($0.channel!, $0.cursor, $0.life!) }
            switch channel.tail(after: cursor) {
            case .upToDate(let isEnded):
                if isEnded && channel.tail.isDeleted { leave(channel) } else if process.world.random() % 8 == 0 { goAway(process, channel) }
                return
            case .chunks(let chunks, _):
                for chunk in chunks {
                    take(chunk.page(of: channel, view: .raw), from: state.withLock { $0.cursor }, life, channel, process)
                }
            case .behind:
                guard
                    let page = try? process.channels.page(
                        channel, after: cursor, view: .raw, bytesMax: Int(process.world.random() % 2_000) + 1)
                else {
                    return
                }
                // Deleted between the two looks: the next one says so.
                if page.next == cursor { return }
                take(page, from: cursor, life, channel, process)
            }
        }
    }

    private func take(_ page: Page, from cursor: UInt64, _ life: SimulationHistory.Life, _ channel: Channel, _ process: SimulationProcess) {
        let bodies = (try? JSON.parse(page.body))?.array ?? []
        let sightings = bodies.enumerated().map { index, body in
            let offset = body["offset"]?.string.flatMap { Offset(token: $0)?.value } ?? cursor + UInt64(index) + 1
            return SimulationHistory.Sighting(reader: number, life: life, entry: SimulationHistory.Entry(offset, body))
        }
        process.record.update { $0.sightings += sightings }
        state.withLock { $0.cursor = page.next }
    }

    func channelLeft(_ tail: any Tail) {
        state.withLock { $0.channel = nil }
        look()
    }

    private func leave(_ channel: Channel) {
        channel.detach(self)
        state.withLock { $0.channel = nil }
    }

    /// Out of coverage for a while.
    private func goAway(_ process: SimulationProcess, _ channel: Channel) {
        leave(channel)
        state.withLock { $0.isAway = true }
        process.world.schedule(at: process.world.now.advanced(by: .milliseconds(Int(process.world.random() % 300)))) { [weak self] in
            guard let self else { return }
            state.withLock { $0.isAway = false }
            look()
        }
    }
}
