/// How long from a producer's send until a reader has it, at a steady rate?
struct Latency {
    private let wires: [any Wire]
    private let seconds: Double
    private let rounds: Int
    private let rate: Double
    private let readers: Int
    private let bytes: Int

    init(_ options: Options) {
        seconds = options.number("seconds", 4)
        rounds = options.integer("rounds", 5)
        rate = options.number("rate", 1_000)
        readers = options.integer("readers", 1)
        bytes = options.integer("bytes", 256)
        wires = options.wires(notifies: true)
    }

    private struct Round {
        var p50 = 0.0
        var p99 = 0.0
        var missing = 0
        var serverCores = 0.0
        var clientCores = 0.0
    }

    func run() {
        print(
            "\(bytes) B messages at \(rate.text()) a second to one channel, \(readers) readers; \(rounds) rounds of \(seconds.text(1)) s, in turns; medians"
        )
        let results = inTurns(wires, rounds: rounds, seconds: seconds, measure)
        var table = Table("", "p50 ms", "p99 ms", "not received", "server cores", "client cores", "its p50 / Parley's")
        for (wire, rounds) in zip(wires, results) {
            let ratio = median(zip(results[0], rounds).map { $1.p50 / $0.p50 })
            func middle(_ value: KeyPath<Round, Double>) -> Double { median(rounds.map { $0[keyPath: value] }) }
            table.add([
                wire.name, middle(\.p50).text(2), middle(\.p99).text(2), String(rounds.reduce(0) { $0 + $1.missing }),
                middle(\.serverCores).text(2), middle(\.clientCores).text(2), ratio.text(2),
            ])
        }
        table.show()
    }

    private func measure(_ wire: any Wire, _ seconds: Double) -> Round {
        wire.prepare(channels: 1)
        let loop = Loop()
        var samples = Samples()
        for _ in 0..<readers { loop.add(wire.follow(0) { samples.add(Clock.now - $0) }) }
        let producers = Producers(wire, loop, rate: rate, count: Int(seconds * rate), bytes: bytes)
        let (usage, own, start) = (wire.usage, Clock.ownProcessor, Clock.now)
        let end = start + seconds.nanoseconds + 10_000_000_000
        let expected = producers.count * readers
        loop.run { now in samples.count < expected && now < end ? producers.tick(now, end) : nil }
        let elapsed = Double(Clock.now - start) / 1e9
        let ranks = samples.milliseconds(0.5, 0.99)
        let round = Round(
            p50: ranks[0], p99: ranks[1], missing: expected - samples.count,
            serverCores: Double((wire.usage - usage).processor) / 1e9 / elapsed,
            clientCores: Double(Clock.ownProcessor - own) / 1e9 / elapsed)
        loop.removeAll()
        return round
    }
}

/// Sends one message after the other to channel 0, each at its time, over a few connections.
final class Producers {
    let count: Int
    private let wire: any Wire
    private let interval: Double
    private let bytes: Int
    private let start = Clock.now
    private var sent = 0
    private var idle: [Connection] = []
    private var output: [UInt8] = []

    init(_ wire: any Wire, _ loop: Loop, rate: Double, count: Int, bytes: Int) {
        (self.wire, self.count, self.bytes) = (wire, count, bytes)
        interval = 1e9 / rate
        for _ in 0..<16 {
            let connection = wire.connect()
            connection.onInput = { [unowned self] connection in
                guard let length = wire.answerLength(connection.unread) else { return }
                connection.take(length)
                idle.append(connection)
            }
            loop.add(connection)
            idle.append(connection)
        }
    }

    private func due(_ index: Int) -> Nanoseconds { start + UInt64(Double(index + 1) * interval) }

    /// Sends what is due; a message that has to wait for a connection counts from when it was due.
    func tick(_ now: Nanoseconds, _ end: Nanoseconds) -> Nanoseconds {
        while sent < count, due(sent) <= now, let connection = idle.popLast() {
            output.removeAll(keepingCapacity: true)
            wire.append(wire.payload(due(sent), bytes: bytes), to: 0, &output)
            sent += 1
            connection.send(output)
        }
        // While every connection is busy, an answer wakes the loop.
        return sent < count && !idle.isEmpty ? due(sent) : min(end, now + 1_000_000_000)
    }
}
