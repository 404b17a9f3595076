internal import Glibc

/// Do readers that have stopped reading hold up those that read, and what memory do they hold?
struct Stalled {
    private let program: String
    private let folder: String
    private let stalled: Int
    private let readers: Int
    private let rate: Double
    private let bytes: Int
    private let seconds: Double
    private let rounds: Int

    init(_ options: Options) {
        program = options.text("program") ?? ""
        folder = options.text("folder") ?? ""
        stalled = options.integer("stalled", 1_000)
        readers = options.integer("readers", 10)
        rate = options.number("rate", 2_000)
        bytes = options.integer("bytes", 1_000)
        seconds = options.number("seconds", 5)
        rounds = options.integer("rounds", 3)
        if program.isEmpty || folder.isEmpty { fail("--program and --folder are needed") }
    }

    private enum Others: String, CaseIterable {
        case none = "none"
        case atTail = "stalled from the tail on"
        case atStart = "stalled from the start on"
    }

    private struct Round {
        var p50 = 0.0
        var p99 = 0.0
        var missing = 0
        var fillingP99 = 0.0
        var grown = 0.0
        var kernel = 0.0
    }

    func run() {
        print(
            """
            \(readers) readers of a channel with \(rate.text()) messages of \(bytes) B a second, beside \(stalled) that have asked for it and \
            never read; \(rounds) rounds of \(seconds.text(1)) s, each with a server of its own; medians
            """
        )
        var results: [Others: [Round]] = [:]
        for _ in 0..<rounds {
            for others in Others.allCases { results[others, default: []].append(measure(others)) }
        }
        var table = Table(
            "the others", "p50 ms", "p99 ms", "p99 while they fill up", "not received", "server grows by MiB",
            "kernel's TCP grows by MiB", "p99 / that without")
        for others in Others.allCases {
            let rounds = results[others]!
            let ratio = median(zip(results[.none]!, rounds).map { $1.p99 / $0.p99 })
            func middle(_ value: KeyPath<Round, Double>) -> Double { median(rounds.map { $0[keyPath: value] }) }
            table.add([
                others.rawValue, middle(\.p50).text(2), middle(\.p99).text(2), middle(\.fillingP99).text(2),
                String(rounds.reduce(0) { $0 + $1.missing }),
                middle(\.grown).text(1), middle(\.kernel).text(1), ratio.text(2),
            ])
        }
        table.show()
    }

    private func measure(_ others: Others) -> Round {
        let server = Server([
            program, "serve", "--listen", "127.0.0.1:0", "--data", "\(folder)/stalled-\(Clock.now)", "--agents", folder,
        ])
        defer { server.stop(SIGKILL) }
        let wire = ParleyWire(port: server.port, pid: server.pid, contentType: "application/json")
        wire.prepare(channels: 1)
        // Memory that a working server has anyway, and a past for readers that begin at the start.
        _ = load(wire, seconds: max(1, seconds / 2))
        let (memory, kernel) = (Memory(of: server.pid).anonymous, Memory.sockets)
        var silent: [Connection] = []
        if others != .none {
            let offset = others == .atTail ? "now" : "-1"
            for _ in 0..<stalled {
                let connection = Connection(port: server.port)
                connection.send(
                    Array("GET \(wire.path(0))?offset=\(offset)&live=sse HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8))
                silent.append(connection)
            }
        }
        defer { for connection in silent { connection.close() } }
        // Until the kernel's buffers are full, the server cannot tell them from readers that read.
        let filling = load(wire, seconds: others == .none ? 1 : seconds)
        var round = load(wire, seconds: seconds)
        round.fillingP99 = filling.p99
        round.grown = Double(Memory(of: server.pid).anonymous - memory) / 1_048_576
        round.kernel = Double(Memory.sockets - kernel) / 1_048_576
        return round
    }

    /// Messages at a steady rate to readers that read.
    private func load(_ wire: ParleyWire, seconds: Double) -> Round {
        let loop = Loop()
        var samples = Samples()
        for _ in 0..<readers { loop.add(wire.follow(0) { samples.add(Clock.now - $0) }) }
        let producers = Producers(wire, loop, rate: rate, count: Int(seconds * rate), bytes: bytes)
        let end = Clock.now + seconds.nanoseconds + 10_000_000_000
        let expected = producers.count * readers
        loop.run { now in samples.count < expected && now < end ? producers.tick(now, end) : nil }
        let ranks = samples.milliseconds(0.5, 0.99)
        loop.removeAll()
        loop.end()
        return Round(p50: ranks[0], p99: ranks[1], missing: expected - samples.count)
    }
}
