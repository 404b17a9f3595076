internal import Glibc

/// How long from an interrupt until the model's connection is closed?
struct Interrupts {
    private let program: String
    private let folder: String
    private let agents: Int
    private let waves: Int
    private let rounds: Int
    private let rate: Int
    private let seed: Int

    init(_ options: Options) {
        program = options.text("program") ?? ""
        folder = options.text("folder") ?? ""
        agents = options.integer("agents", 20)
        waves = options.integer("waves", 20)
        rounds = options.integer("rounds", 3)
        rate = options.integer("rate", 50)
        seed = options.integer("seed", 1)
        if program.isEmpty || folder.isEmpty { fail("--program and --folder are needed") }
    }

    /// Everything that was seen of one kind of client.
    private struct Seen {
        var fromSend = Samples()
        var fromAnswer = Samples()
        /// Tokens generated after the sending, and after the answer.
        var tokensAfter: [(send: Int, answer: Int)] = []

        mutating func add(_ other: Seen) {
            fromSend.add(other.fromSend)
            fromAnswer.add(other.fromAnswer)
            tokensAfter += other.tokensAfter
        }
    }

    func run() {
        print(
            "answers at \(rate) tokens a second, \(agents) at once, each stopped after 5 to 40 tokens; \(rounds) rounds of \(waves * agents), in turns; seed \(seed)"
        )
        let loop = Loop()
        let upstream = Upstream(loop, rate: rate)
        setenv("OPENAI_BASE_URL", "http://127.0.0.1:\(upstream.port)/v1", 1)
        setenv("PARLEY_MODEL", "openai:any", 1)
        setenv("PARLEY_MODEL_CONTINUES", "prefix", 1)
        let server = Server([program, "serve", "--listen", "127.0.0.1:0", "--data", "\(folder)/interrupts", "--agents", "\(folder)/agents"])
        defer { server.stop() }
        var random = SeededRandom(seed: seed)
        var (parley, plain) = (Seen(), Seen())
        for round in 0...rounds {
            // The first one warms up.
            for wave in 0..<(round == 0 ? 1 : waves) {
                var (a, b) = (Seen(), Seen())
                interrupt("\(round)-\(wave)", server, loop, upstream, &random, &a)
                close("\(round)-\(wave)", loop, upstream, &random, &b)
                guard round > 0 else { continue }
                parley.add(a)
                plain.add(b)
            }
        }
        var table = Table("until the upstream sees the end", "p50 ms", "p90 ms", "p99 ms", "max ms", "tokens after, most")
        func add(_ name: String, _ samples: Samples, _ tokens: [Int]) {
            table.add([name] + samples.milliseconds(0.5, 0.9, 0.99, 1).map { $0.text(2) } + [String(tokens.max() ?? 0)])
        }
        add("Parley, from the interrupt's sending", parley.fromSend, parley.tokensAfter.map(\.send))
        add("Parley, from its 2xx (0: before it)", parley.fromAnswer, parley.tokensAfter.map(\.answer))
        add("a client that closes its own connection", plain.fromSend, plain.tokensAfter.map(\.send))
        table.show()
    }

    private final class Slot {
        let connection: Connection
        let target: Int
        let key: String
        var sentAt: Nanoseconds?
        var answeredAt: Nanoseconds?
        var tokensThen = 0
        var tokensAtAnswer = 0

        init(_ connection: Connection, target: Int, key: String) { (self.connection, self.target, self.key) = (connection, target, key) }
    }

    private func interrupt(
        _ name: String, _ server: Server, _ loop: Loop, _ upstream: Upstream, _ random: inout SeededRandom, _ seen: inout Seen
    ) {
        let slots = (0..<agents).map { index in
            let connection = Connection(port: server.port)
            let agent = "writer/\(name)-\(index)"
            let answer = connection.request(post("{\"type\":\"message\",\"text\":\"Write.\"}", to: agent), HTTPAnswer.length)
            guard answer.starts(with: "HTTP/1.1 202".utf8) else { fail("answered: \(String(decoding: answer, as: UTF8.self))") }
            let slot = Slot(connection, target: Int.random(in: 5...40, using: &random), key: agent)
            connection.onInput = { connection in
                guard let length = HTTPAnswer.length(connection.unread) else { return }
                connection.take(length)
                slot.answeredAt = Clock.now
                slot.tokensAtAnswer = upstream.call(of: slot.key)!.sent
            }
            loop.add(connection)
            return slot
        }
        drive(slots, loop, upstream) { slot in
            slot.connection.send(post("{\"type\":\"interrupt\"}", to: slot.key))
        } isAnswered: {
            $0.answeredAt != nil
        }
        take(slots, upstream, &seen)
    }

    private func close(_ name: String, _ loop: Loop, _ upstream: Upstream, _ random: inout SeededRandom, _ seen: inout Seen) {
        let slots = (0..<agents).map { index in
            let connection = Connection(port: upstream.port)
            let slot = Slot(connection, target: Int.random(in: 5...40, using: &random), key: "plain/\(name)-\(index)")
            connection.onInput = { $0.take($0.unread.count) }
            loop.add(connection)
            connection.send(Upstream.request(slot.key))
            return slot
        }
        drive(slots, loop, upstream) { slot in
            (slot.answeredAt, slot.tokensAtAnswer) = (slot.sentAt, slot.tokensThen)
            loop.remove(slot.connection)
        } isAnswered: { _ in
            true
        }
        take(slots, upstream, &seen)
    }

    /// Stops each slot when its time has come, and waits until the upstream has seen the end of all.
    private func drive(
        _ slots: [Slot], _ loop: Loop, _ upstream: Upstream, stop: (Slot) -> Void, isAnswered: (Slot) -> Bool
    ) {
        let begun = Clock.now
        loop.run { now in
            let next = upstream.tick(now)
            var isOver = true
            for slot in slots {
                let call = upstream.call(of: slot.key)
                if slot.sentAt == nil, let call, call.sent >= slot.target {
                    slot.tokensThen = call.sent
                    slot.sentAt = Clock.now
                    stop(slot)
                }
                if call?.closedAt == nil || !isAnswered(slot) { isOver = false }
            }
            if now > begun + 30_000_000_000 { fail("not all answers were stopped within 30 s") }
            return isOver ? nil : next
        }
    }

    private func take(_ slots: [Slot], _ upstream: Upstream, _ seen: inout Seen) {
        for slot in slots {
            let call = upstream.call(of: slot.key)!
            seen.fromSend.add(call.closedAt! - slot.sentAt!)
            seen.fromAnswer.add(call.closedAt! - min(call.closedAt!, slot.answeredAt!))
            seen.tokensAfter.append((call.sent - slot.tokensThen, call.sent - slot.tokensAtAnswer))
        }
        upstream.forgetCalls()
        for slot in slots { slot.connection.close() }
    }
}
