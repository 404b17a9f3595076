/// How many durable appends a second, with one request in flight on each connection?
struct Appends {
    private let wires: [any Wire]
    private let seconds: Double
    private let rounds: Int
    private let connections: Int
    private let channels: Int
    private let bytes: Int
    /// Messages of one request.
    private let batch: Int

    init(_ options: Options) {
        seconds = options.number("seconds", 4)
        rounds = options.integer("rounds", 5)
        connections = options.integer("connections", 64)
        channels = options.integer("channels", 1_000)
        bytes = options.integer("bytes", 256)
        batch = options.integer("batch", 1)
        wires = options.wires(contentType: batch == 1 ? "application/octet-stream" : "application/json")
    }

    private struct Round {
        var rate = 0.0
        var p50 = 0.0
        var p99 = 0.0
        var serverCores = 0.0
        var clientCores = 0.0
        var serverMicroseconds = 0.0
        var appendsPerSync = Double.nan
    }

    func run() {
        print(
            "\(bytes) B appends, \(batch) a request, \(connections) connections with one request in flight each, \(channels) channels; \(rounds) rounds of \(seconds.text(1)) s, in turns; medians"
        )
        let results = inTurns(wires, rounds: rounds, seconds: seconds, measure)
        var table = Table(
            "", "appends/s", "p50 ms", "p99 ms", "server cores", "client cores", "server us/append", "appends/sync", "Parley is x")
        for (wire, rounds) in zip(wires, results) {
            // A ratio of each round, beside the reference of the same round.
            let ratio = median(zip(results[0], rounds).map { $0.rate / $1.rate })
            func middle(_ value: KeyPath<Round, Double>) -> Double { median(rounds.map { $0[keyPath: value] }) }
            table.add([
                wire.name, middle(\.rate).text(), middle(\.p50).text(2), middle(\.p99).text(2), middle(\.serverCores).text(2),
                middle(\.clientCores).text(2), middle(\.serverMicroseconds).text(1), middle(\.appendsPerSync).text(1), ratio.text(2),
            ])
        }
        table.show()
    }

    private func measure(_ wire: any Wire, _ seconds: Double) -> Round {
        wire.prepare(channels: channels)
        let log = wire.logCounters
        let loop = Loop()
        var samples = Samples()
        var inFlight = 0
        let clients = (0..<connections).map { index in (connection: wire.connect(), client: Client(channel: index % channels)) }
        var isOver = false
        // Made once: making them would take as much of the processor as sending them.
        let payloads = (0..<batch).map { wire.payload(Clock.now + UInt64($0), bytes: bytes) }
        func send(_ connection: Connection, _ client: Client) {
            client.output.removeAll(keepingCapacity: true)
            client.sentAt = Clock.now
            if batch == 1 {
                wire.append(wire.payload(client.sentAt, bytes: bytes), to: client.channel, on: connection, &client.output)
                client.answers = 1
            } else {
                client.answers = wire.append(payloads, to: client.channel, &client.output)
            }
            // Each connection has channels of its own, one after the other.
            client.channel += connections
            if client.channel >= channels { client.channel %= connections }
            if client.channel >= channels { client.channel %= channels }
            connection.send(client.output)
        }
        for (connection, client) in clients {
            connection.onInput = { connection in
                while client.answers > 0 {
                    guard let length = wire.answerLength(connection.unread) else { return }
                    connection.take(length)
                    client.answers -= 1
                }
                samples.add(Clock.now - client.sentAt)
                if isOver { inFlight -= 1 } else { send(connection, client) }
            }
            loop.add(connection)
        }
        let (usage, own, start) = (wire.usage, Clock.ownProcessor, Clock.now)
        for (connection, client) in clients { send(connection, client) }
        inFlight = connections
        let deadline = start + seconds.nanoseconds
        loop.run { now in
            if now >= deadline { isOver = true }
            guard inFlight > 0 else { return nil }
            if now > deadline + 10_000_000_000 { fail("\(wire.name) leaves \(inFlight) requests without an answer") }
            return isOver ? now + 1_000_000_000 : deadline
        }
        let elapsed = Double(Clock.now - start) / 1e9
        let client = Double(Clock.ownProcessor - own) / 1e9
        let server = Double((wire.usage - usage).processor) / 1e9
        let count = Double(samples.count * batch)
        loop.removeAll()
        let ranks = samples.milliseconds(0.5, 0.99)
        var round = Round(
            rate: count / elapsed, p50: ranks[0], p99: ranks[1], serverCores: server / elapsed, clientCores: client / elapsed,
            serverMicroseconds: server / count * 1e6)
        if let log, let after = wire.logCounters { round.appendsPerSync = count / (after.syncs - log.syncs) }
        return round
    }

    private final class Client {
        var channel: Int
        var sentAt: Nanoseconds = 0
        var answers = 0
        var output: [UInt8] = []

        init(channel: Int) { self.channel = channel }
    }
}
