/// How much does a token cost, from a model to a reader, while many agents stream at once?
struct Tokens {
    private let parley: ParleyWire?
    private let postgres: (port: UInt16, pid: Int32)?
    private let rounds: Int
    private let seconds: Double
    private let rate: Int
    private let agents: Int

    init(_ options: Options) {
        rounds = options.integer("rounds", 3)
        seconds = options.number("seconds", 5)
        rate = options.integer("rate", 50)
        agents = options.integer("agents", 100)
        parley = options.server("parley").map { ParleyWire(port: $0.port, pid: $0.pid) }
        postgres = options.server("postgres")
    }

    private var tokensEach: Int { Int(seconds * Double(rate)) }

    private struct Round {
        var p50 = 0.0
        var p99 = 0.0
        var missing = 0.0
        var syncs = 0.0
        var bytes = 0.0
        var microseconds = 0.0
    }

    func run() {
        print(
            "\(rate) tokens a second each, \(tokensEach) tokens an agent, one reader each; \(rounds) rounds, in turns; medians; per token")
        for agents in agents == 1 ? [1] : [1, agents] {
            let cases = self.cases(agents)
            var results = cases.map { _ in [Round]() }
            for _ in 0..<rounds {
                for (index, entry) in cases.enumerated() { results[index].append(entry.measure()) }
            }
            var table = Table(
                "\(agents) agents", "syncs", "log bytes", "server us", "p50 ms", "p99 ms", "not received", "its us / Parley's",
                "its p50 / Parley's")
            for (entry, rounds) in zip(cases, results) {
                func middle(_ value: KeyPath<Round, Double>) -> Double { median(rounds.map { $0[keyPath: value] }) }
                func ratio(_ value: KeyPath<Round, Double>) -> String {
                    median(zip(results[0], rounds).map { $1[keyPath: value] / $0[keyPath: value] }).text(2)
                }
                table.add([
                    entry.name, middle(\.syncs).text(3), middle(\.bytes).text(), middle(\.microseconds).text(1), middle(\.p50).text(2),
                    middle(\.p99).text(2), rounds.reduce(0) { $0 + $1.missing }.text(), ratio(\.microseconds), ratio(\.p50),
                ])
            }
            table.show()
        }
    }

    private func cases(_ agents: Int) -> [(name: String, measure: () -> Round)] {
        var cases: [(name: String, measure: () -> Round)] = []
        if let parley { cases.append(("Parley, agents", { stream(parley, agents) })) }
        if let postgres {
            let notifying = PostgresWire(port: postgres.port, pid: postgres.pid, notifies: true)
            let silent = PostgresWire(port: postgres.port, pid: postgres.pid)
            cases.append(("PostgreSQL row, NOTIFY", { rows(notifying, agents, polls: false) }))
            cases.append(("PostgreSQL row, polled each 100 ms", { rows(silent, agents, polls: true) }))
        }
        return cases
    }

    /// Agents stream from a model in the server; each has a reader.
    private func stream(_ wire: ParleyWire, _ agents: Int) -> Round {
        let log = wire.logCounters!
        let run = String(Clock.now, radix: 36)
        let loop = Loop()
        var samples = Samples()
        for agent in 0..<agents {
            let path = "/v1/stream/agents/talker/\(run)-\(agent)"
            let connection = wire.connect()
            connection.request(
                Array("PUT \(path) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n".utf8),
                wire.answerLength)
            connection.close()
            // A sealed entry carries the whole text again: only the first sight of a token counts.
            var seen: Nanoseconds = 0
            loop.add(
                wire.followEvents(path) { time in
                    guard time > seen else { return }
                    seen = time
                    samples.add(Clock.now - time)
                })
        }
        return measured(wire, log, agents, loop, { samples }) {
            let body = "{\"type\":\"message\",\"data\":{\"tokens\":\(tokensEach),\"rate\":\(rate)}}"
            let connection = wire.connect()
            for agent in 0..<agents {
                connection.request(
                    Array(
                        ("POST /v1/agents/talker/\(run)-\(agent) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                            + "Content-Length: \(body.utf8.count)\r\n\r\n" + body).utf8), wire.answerLength)
            }
            connection.close()
            return { now in now + 100_000_000 }
        }
    }

    /// A row and a commit a token, by a connection for each agent, and a reader for each.
    private func rows(_ wire: PostgresWire, _ agents: Int, polls: Bool) -> Round {
        wire.prepare(channels: agents)
        let log = wire.logCounters!
        let loop = Loop()
        var samples = Samples()
        var asks: [() -> Void] = []
        for agent in 0..<agents {
            if polls {
                let (connection, ask) = wire.poll(agent) { samples.add(Clock.now - $0) }
                loop.add(connection)
                asks.append(ask)
            } else {
                loop.add(wire.follow(agent) { samples.add(Clock.now - $0) })
            }
        }
        let writers = (0..<agents).map { agent in
            let writer = Writer(wire, channel: agent)
            loop.add(writer.connection)
            return writer
        }
        return measured(wire, log, agents, loop, { samples }) {
            let start = Clock.now
            let interval = 1_000_000_000 / UInt64(rate)
            // Agents and pollers are spread over the interval, as they would be.
            var due = writers.indices.map { start + interval + interval * UInt64($0) / UInt64(agents) }
            var pollDue = asks.indices.map { start + 100_000_000 * UInt64($0) / UInt64(agents) }
            return { now in
                var next = now + 100_000_000
                for index in writers.indices {
                    if due[index] <= now, writers[index].made < tokensEach {
                        writers[index].make(due[index])
                        due[index] += interval
                    }
                    if writers[index].made < tokensEach { next = min(next, due[index]) }
                }
                for index in asks.indices {
                    if pollDue[index] <= now {
                        asks[index]()
                        pollDue[index] += 100_000_000
                    }
                    next = min(next, pollDue[index])
                }
                return next
            }
        }
    }

    private func measured(
        _ wire: any Wire, _ log: LogCounters, _ agents: Int, _ loop: Loop, _ samples: () -> Samples,
        _ start: () -> (Nanoseconds) -> Nanoseconds
    ) -> Round {
        let usage = wire.usage
        let expected = agents * tokensEach
        let tick = start()
        let end = Clock.now + (seconds + 5).nanoseconds
        var received = 0
        loop.run { now in
            received = samples().count
            return received < expected && now < end ? tick(now) : nil
        }
        let used = wire.usage - usage
        let count = Double(expected)
        let ranks = samples().milliseconds(0.5, 0.99)
        loop.removeAll()
        let after = wire.logCounters ?? LogCounters(syncs: .nan, bytes: .nan)
        return Round(
            p50: ranks[0], p99: ranks[1], missing: count - Double(received), syncs: (after.syncs - log.syncs) / count,
            bytes: (after.bytes - log.bytes) / count, microseconds: Double(used.processor) / 1e3 / count)
    }

    /// Writes the tokens of one agent, in order: the next one waits until the one before is durable.
    private final class Writer {
        let connection: Connection
        private(set) var made = 0
        private let wire: PostgresWire
        private let channel: Int
        private var waiting: [Nanoseconds] = []
        private var isBusy = false

        init(_ wire: PostgresWire, channel: Int) {
            (self.wire, self.channel) = (wire, channel)
            connection = wire.connect()
            connection.onInput = { [unowned self] connection in
                guard let length = wire.answerLength(connection.unread) else { return }
                connection.take(length)
                isBusy = false
                if !waiting.isEmpty { send(waiting.removeFirst()) }
            }
        }

        func make(_ time: Nanoseconds) {
            made += 1
            if isBusy { waiting.append(time) } else { send(time) }
        }

        private func send(_ time: Nanoseconds) {
            isBusy = true
            var output: [UInt8] = []
            wire.append(TimeMark.payload(time, bytes: TimeMark.byteCount), to: channel, &output)
            connection.send(output)
        }
    }
}
