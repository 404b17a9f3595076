internal import Glibc

/// How many durable steps a second, for one agent alone and for many at once?
struct StepsBenchmark {
    private let parley: ParleyWire?
    private let postgres: PostgresWire?
    private let peers: [Peer]
    private let rounds: Int
    private let steps: Int
    private let turns: Int
    private let agents: Int

    /// A peer that is a program of its own: called with what to do, it prints the steps a second it reached.
    private struct Peer {
        let name: String
        let command: String
    }

    init(_ options: Options) {
        rounds = options.integer("rounds", 3)
        steps = options.integer("steps", 10)
        turns = options.integer("turns", 20)
        agents = options.integer("agents", 64)
        parley = options.server("parley").map { ParleyWire(port: $0.port, pid: $0.pid) }
        postgres = options.server("postgres").map { PostgresWire(port: $0.port, pid: $0.pid) }
        // name=command;name=command
        peers = (options.text("peers") ?? "").split(separator: ";").map { text in
            let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
            return Peer(name: parts[0], command: parts[1])
        }
    }

    func run() {
        print("turns of \(steps) trivial steps, \(turns) turns an agent, one after the other; \(rounds) rounds, in turns; medians")
        for agents in [1, agents] {
            var names: [String] = []
            var results: [[Double]] = []
            func note(_ round: Int, _ index: Int, _ name: String, _ rate: Double) {
                if names.count == index {
                    names.append(name)
                    results.append([])
                }
                if round > 0 { results[index].append(rate) }  // The first one warms up.
            }
            for round in 0...rounds {
                var index = 0
                func next(_ name: String, _ rate: Double) {
                    note(round, index, name, rate)
                    index += 1
                }
                if let parley { next("Parley", turnsOfParley(parley, agents)) }
                if let postgres { next("a PostgreSQL row a step", rows(postgres, agents)) }
                for peer in peers { next(peer.name, round > 0 ? run(peer, agents) : 0) }  // They warm up by themselves.
            }
            var table = Table("\(agents) at once", "steps/s", "Parley is x")
            for (name, rates) in zip(names, results) {
                table.add([name, median(rates).text(), median(zip(results[0], rates).map { $0 / $1 }).text(2)])
            }
            table.show()
        }
    }

    /// Each agent gets its next message when the turn before has been answered.
    private func turnsOfParley(_ wire: ParleyWire, _ agents: Int) -> Double {
        let body = "{\"type\":\"message\",\"data\":{\"count\":\(steps)}}"
        let run = String(Clock.now, radix: 36)
        return drive(
            agents, requests: turns, connect: wire.connect,
            answer: { bytes in
                guard let length = HTTPAnswer.length(bytes) else { return nil }
                guard bytes.starts(with: "HTTP/1.1 200".utf8) else {
                    fail("a turn was not answered in time: \(String(decoding: bytes, as: UTF8.self))")
                }
                return length
            }
        ) { agent, _ in
            Array(
                ("POST /v1/agents/stepper/\(run)-\(agent) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nPrefer: wait=30\r\n"
                    + "Content-Length: \(body.utf8.count)\r\n\r\n" + body).utf8)
        } * Double(steps)
    }

    /// The floor of what stores its steps in a database: one row and one commit a step, and nothing else.
    private func rows(_ wire: PostgresWire, _ agents: Int) -> Double {
        wire.prepare(channels: agents)
        let result = Array("{\"step\":\"step\",\"result\":7}".utf8)
        return drive(agents, requests: turns * steps, connect: wire.connect, answer: wire.answerLength) { agent, _ in
            var output: [UInt8] = []
            wire.append(result, to: agent, &output)
            return output
        }
    }

    /// - Returns: Answers a second.
    private func drive(
        _ agents: Int, requests: Int, connect: () -> Connection, answer: @escaping (UnsafeRawBufferPointer) -> Int?,
        request: @escaping (_ agent: Int, _ index: Int) -> [UInt8]
    ) -> Double {
        let loop = Loop()
        var left = agents * requests
        let connections = (0..<agents).map { _ in connect() }
        for (agent, connection) in connections.enumerated() {
            var index = 0
            connection.onInput = { connection in
                guard let length = answer(connection.unread) else { return }
                connection.take(length)
                left -= 1
                index += 1
                if index < requests { connection.send(request(agent, index)) }
            }
            loop.add(connection)
        }
        let start = Clock.now
        for (agent, connection) in connections.enumerated() { connection.send(request(agent, 0)) }
        loop.run { now in
            if now > start + 60_000_000_000 { fail("\(left) answers have not come within a minute") }
            return left > 0 ? now + 1_000_000_000 : nil
        }
        let elapsed = Double(Clock.now - start) / 1e9
        loop.removeAll()
        return Double(agents * requests) / elapsed
    }

    private func run(_ peer: Peer, _ agents: Int) -> Double {
        guard let pipe = popen("\(peer.command) \(agents) \(turns) \(steps)", "r") else { fail("cannot run \(peer.command)") }
        defer { pclose(pipe) }
        var buffer = [UInt8](repeating: 0, count: 4_096)
        let count = fread(&buffer, 1, buffer.count, pipe)
        let text = String(decoding: buffer.prefix(count), as: UTF8.self)
        guard let rate = text.split(whereSeparator: \.isWhitespace).last.flatMap({ Double($0) }) else {
            fail("\(peer.name) printed '\(text)'; expected its steps a second")
        }
        return rate
    }
}
