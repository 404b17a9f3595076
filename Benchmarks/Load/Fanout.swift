/// How many deliveries a second, from one channel to many readers, when the producer sends as fast as they come along?
struct Fanout {
    private let wires: [any Wire]
    private let seconds: Double
    private let rounds: Int
    private let readers: Int
    private let bytes: Int
    private let batch: Int
    private let window: Int

    init(_ options: Options) {
        seconds = options.number("seconds", 4)
        rounds = options.integer("rounds", 5)
        readers = options.integer("readers", 1_000)
        bytes = options.integer("bytes", 256)
        batch = options.integer("batch", 16)
        window = options.integer("window", 8)
        wires = options.wires()
    }

    private struct Round {
        var rate = 0.0
        var p50 = 0.0
        var p99 = 0.0
        var serverMicroseconds = 0.0
        var clientCores = 0.0
        var messagesPerSync = Double.nan
    }

    func run() {
        print(
            "\(readers) readers of one channel; \(bytes) B messages, \(batch) at a time over one connection, \(window) of those on their way until all readers have them; \(rounds) rounds of \(seconds.text(1)) s, in turns; medians"
        )
        let results = inTurns(wires, rounds: rounds, seconds: seconds, measure)
        var table = Table("", "deliveries/s", "p50 ms", "p99 ms", "server us/delivery", "client cores", "messages/sync", "Parley is x")
        for (wire, rounds) in zip(wires, results) {
            let ratio = median(zip(results[0], rounds).map { $0.rate / $1.rate })
            func middle(_ value: KeyPath<Round, Double>) -> Double { median(rounds.map { $0[keyPath: value] }) }
            table.add([
                wire.name, middle(\.rate).text(), middle(\.p50).text(2), middle(\.p99).text(2), middle(\.serverMicroseconds).text(2),
                middle(\.clientCores).text(2), middle(\.messagesPerSync).text(1), ratio.text(2),
            ])
        }
        table.show()
    }

    private func measure(_ wire: any Wire, _ seconds: Double) -> Round {
        wire.prepare(channels: 1)
        let loop = Loop()
        var samples = Samples()
        for _ in 0..<readers { loop.add(wire.follow(0) { samples.add(Clock.now - $0) }) }
        let producer = wire.connect()
        var (sent, unanswered, output) = (0, 0, [UInt8]())
        producer.onInput = { connection in
            while let length = wire.answerLength(connection.unread) {
                connection.take(length)
                unanswered -= 1
            }
        }
        loop.add(producer)
        let log = wire.logCounters
        let (usage, own, start) = (wire.usage, Clock.ownProcessor, Clock.now)
        let (deadline, limit) = (start + seconds.nanoseconds, start + seconds.nanoseconds + 20_000_000_000)
        loop.run { now in
            // A message is in flight until all readers have it, on average.
            while now < deadline, (sent - samples.count / readers) / batch < window {
                output.removeAll(keepingCapacity: true)
                unanswered += wire.append((0..<batch).map { _ in wire.payload(Clock.now, bytes: bytes) }, to: 0, &output)
                producer.send(output)
                sent += batch
            }
            if now > limit { fail("\(wire.name): \(sent * readers - samples.count) of \(sent * readers) messages have not come") }
            return now >= deadline && samples.count == sent * readers && unanswered == 0 ? nil : min(limit, now + 100_000_000)
        }
        let elapsed = Double(Clock.now - start) / 1e9
        let ranks = samples.milliseconds(0.5, 0.99)
        let count = Double(samples.count)
        var round = Round(
            rate: count / elapsed, p50: ranks[0], p99: ranks[1],
            serverMicroseconds: Double((wire.usage - usage).processor) / 1e3 / count,
            clientCores: Double(Clock.ownProcessor - own) / 1e9 / elapsed)
        if let log, let after = wire.logCounters { round.messagesPerSync = Double(sent) / (after.syncs - log.syncs) }
        loop.removeAll()
        loop.end()
        return round
    }
}
