internal import Glibc

/// How much do agents cost that only wait, and how fast do they wake?
struct Waiting {
    private let program: String
    private let folder: String
    private let agents: Int
    private let rounds: Int
    private let quiet: Double
    private let wakes: Int
    private let seed: Int

    init(_ options: Options) {
        program = options.text("program") ?? ""
        folder = options.text("folder") ?? ""
        agents = options.integer("agents", 100_000)
        rounds = options.integer("rounds", 3)
        quiet = options.number("quiet", 10)
        wakes = options.integer("wakes", 2_000)
        seed = options.integer("seed", 1)
        if program.isEmpty || folder.isEmpty { fail("--program and --folder are needed") }
    }

    private static let kinds = ["signal", "sleep", "approval"]

    func run() {
        print(
            "\(agents) agents, a third each waiting for a signal, for the end of a month, for an approval; \(rounds) starts each, medians; seed \(seed)"
        )
        var table = Table("", "start after SIGTERM ms", "start after kill -9 ms", "resident MiB", "processor ms a second, quiet")
        start("empty").stop()  // Makes the folder.
        table.add(["no agents"] + measure("empty"))
        create()
        table.add(["\(agents) waiting"] + measure("full"))
        table.show()
        wake()
    }

    private func start(_ name: String, idle: String = "30") -> Server {
        Server([program, "--listen", "127.0.0.1:0", "--data", "\(folder)/\(name)", "--agents", folder, "--idle", idle])
    }

    /// Times of starts, and what the last process has and uses when nothing happens.
    private func measure(_ name: String) -> [String] {
        var after: [Int32: [Double]] = [:]
        for _ in 0..<rounds {
            for signal in [SIGTERM, SIGKILL] {
                start(name).stop(signal)
                let server = start(name)
                after[signal, default: []].append(server.startMilliseconds)
                server.stop()
            }
        }
        let server = start(name)
        defer { server.stop() }
        usleep(1_000_000)  // For work that a start leaves for later.
        let used = Usage(of: server.pid)
        usleep(UInt32(quiet * 1e6))
        let processor = Double((Usage(of: server.pid) - used).processor) / 1e6 / quiet
        return [
            median(after[SIGTERM]!).text(), median(after[SIGKILL]!).text(), server.residentMegabytes.text(1), processor.text(2),
        ]
    }

    // MARK: Making them

    /// One message an agent, over 64 connections with one request in flight each.
    private func create() {
        let server = start("full", idle: "1")
        let begun = Clock.now
        Requests.send(agents, to: server.port) { index in
            post("{\"type\":\"message\",\"data\":\"\(Waiting.kinds[index % 3])\"}", to: "waiter/w\(index)")
        }
        let answered = Clock.now
        var inMemory = server.metric("parley_agents_in_memory")
        while inMemory > 0 || server.metric("parley_submissions_queued") > 0 {
            if Clock.now > answered + 300_000_000_000 { fail("\(inMemory.text()) agents do not leave memory") }
            usleep(100_000)
            inMemory = server.metric("parley_agents_in_memory")
        }
        let seconds = Double(answered - begun) / 1e9
        print(
            "made in \(seconds.text(1)) s (\((Double(agents) / seconds).text()) a second), all out of memory \((Double(Clock.now - answered) / 1e9).text(1)) s later; resident then \(server.residentMegabytes.text(1)) MiB"
        )
        server.stop(SIGKILL)
    }

    // MARK: Waking them

    /// One after the other: a reader is attached, the signal is sent, and the reader waits for what the turn writes next.
    private func wake() {
        let server = start("full")
        defer { server.stop() }
        var random = SeededRandom(seed: seed)
        let signalled = stride(from: 0, to: agents, by: 3).shuffled(using: &random).prefix(wakes)
        var (fromSend, fromAnswer, appends) = (Samples(), Samples(), Samples())
        let sender = Connection(port: server.port)
        for agent in signalled {
            let reader = Connection(port: server.port)
            reader.request(
                Array("GET /v1/stream/agents/waiter/w\(agent)?offset=now&live=sse HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8),
                HTTPAnswer.headLength)
            let loop = Loop()
            var (answered, woken): (Nanoseconds?, Nanoseconds?)
            sender.onInput = { connection in
                guard let length = HTTPAnswer.length(connection.unread) else { return }
                connection.take(length)
                answered = Clock.now
            }
            reader.onInput = { connection in
                if woken == nil, HTTPAnswer.find("\"step.completed\"", connection.unread) != nil { woken = Clock.now }
            }
            loop.add(sender)
            loop.add(reader)
            let sent = Clock.now
            sender.send(post("{\"type\":\"signal\",\"name\":\"go\"}", to: "waiter/w\(agent)"))
            loop.run { now in
                if now > sent + 10_000_000_000 { fail("agent w\(agent) does not wake") }
                return answered == nil || woken == nil ? now + 1_000_000_000 : nil
            }
            fromSend.add(woken! - sent)
            fromAnswer.add(woken! - min(answered!, woken!))
            appends.add(answered! - sent)
            loop.remove(reader)
            loop.end()
        }
        var table = Table("\(fromSend.count) wakes by a signal", "p50 ms", "p90 ms", "p99 ms", "max ms")
        for (name, samples) in [
            ("from the signal's answer to what the turn writes next", fromAnswer), ("from its sending", fromSend),
            ("the append alone", appends),
        ] {
            table.add([name] + samples.milliseconds(0.5, 0.9, 0.99, 1).map { $0.text(2) })
        }
        table.show()
    }
}
