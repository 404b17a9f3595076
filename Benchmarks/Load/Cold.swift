internal import Glibc

/// What do unused channels cost: at the start, in memory, and when one is read for the first time?
struct Cold {
    private let program: String
    private let folder: String
    private let channels: Int
    private let reads: Int
    private let rounds: Int
    private let seed: Int

    init(_ options: Options) {
        program = options.text("program") ?? ""
        folder = options.text("folder") ?? ""
        channels = options.integer("channels", 1_000_000)
        reads = options.integer("reads", 2_000)
        rounds = options.integer("rounds", 3)
        seed = options.integer("seed", 1)
        if program.isEmpty || folder.isEmpty { fail("--program and --folder are needed") }
    }

    func run() {
        print("\(channels) channels with one message of 200 B each; \(rounds) starts each, medians; seed \(seed)")
        create()
        var table = Table("", "start after SIGTERM ms", "start after kill -9 ms", "own memory MiB", "after \(reads) first reads MiB")
        start("none").stop()
        var samples: [(String, Samples)] = []
        table.add(["no channels"] + starts("none") + ["-"])
        var random = SeededRandom(seed: seed)
        let chosen = (0..<reads).map { _ in Int.random(in: 0..<channels, using: &random) }
        let row = starts("many")
        let server = start("many")
        PageCache.drop("\(folder)/many")
        samples.append(("first read, nothing of it in memory", read(chosen, server)))
        table.add(["\(channels) channels"] + row + [(Double(Memory(of: server.pid).anonymous) / 1_048_576).text(1)])
        samples.append(("the same again", read(chosen, server)))
        server.stop()
        let again = start("many")
        samples.append(("first read, files in the page cache", read(chosen, again)))
        again.stop()
        samples.append(("one pread of 4 KiB of the same files, not in memory", preads()))
        table.show()
        var times = Table("\(reads) reads at random, one after the other", "p50 ms", "p90 ms", "p99 ms", "max ms")
        for (name, samples) in samples { times.add([name] + samples.milliseconds(0.5, 0.9, 0.99, 1).map { $0.text(3) }) }
        times.show()
    }

    private func start(_ name: String) -> Server {
        Server([program, "serve", "--listen", "127.0.0.1:0", "--data", "\(folder)/\(name)", "--agents", folder])
    }

    private func path(_ index: Int) -> String { "/v1/stream/cold/\(index % 1_000)/\(index)" }

    /// A PUT with the first message each.
    private func create() {
        let server = start("many")
        defer { server.stop(SIGKILL) }
        let begun = Clock.now
        Requests.send(channels, to: server.port, connections: 16, inFlight: 16) { index in
            Requests.stream("PUT", path(index), TimeMark.payload(UInt64(index), bytes: 200), "text/plain")
        }
        let seconds = Double(Clock.now - begun) / 1e9
        let memory = Double(Memory(of: server.pid).anonymous) / 1_048_576
        print(
            "made in \(seconds.text(1)) s (\((Double(channels) / seconds).text()) a second, over 16 connections with 16 requests in flight each); own memory then \(memory.text(1)) MiB"
        )
    }

    /// Times of starts, and the own memory of the last one.
    private func starts(_ name: String) -> [String] {
        var after: [Int32: [Double]] = [:]
        var memory: [Double] = []
        for _ in 0..<rounds {
            for signal in [SIGTERM, SIGKILL] {
                start(name).stop(signal)
                let server = start(name)
                after[signal, default: []].append(server.startMilliseconds)
                memory.append(Double(Memory(of: server.pid).anonymous) / 1_048_576)
                server.stop()
            }
        }
        return [median(after[SIGTERM]!).text(), median(after[SIGKILL]!).text(), median(memory).text(1)]
    }

    private func read(_ chosen: [Int], _ server: Server) -> Samples {
        var samples = Samples()
        let connection = Connection(port: server.port)
        defer { connection.close() }
        for index in chosen {
            let begun = Clock.now
            let answer = connection.request(
                Array("GET \(path(index))?offset=-1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8), HTTPAnswer.length)
            samples.add(Clock.now - begun)
            var found: UInt64?
            _ = answer.withUnsafeBytes { TimeMark.scan($0) { found = $0 } }
            if found != UInt64(index) { fail("\(path(index)) is answered: \(String(decoding: answer.prefix(400), as: UTF8.self))") }
        }
        return samples
    }

    /// The disk's time for an unavoidable read.
    private func preads() -> Samples {
        PageCache.drop("\(folder)/many")
        let files = PageCache.files("\(folder)/many").filter { $0.hasSuffix(".sst") }
        var samples = Samples()
        guard let largest = files.max(by: { size($0) < size($1) }), size(largest) > 1 << 20 else { return samples }
        var random = SeededRandom(seed: seed)
        let descriptor = check(open(largest, O_RDONLY), "open \(largest)")
        defer { close(descriptor) }
        posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM)
        var buffer = [UInt8](repeating: 0, count: 4_096)
        for _ in 0..<reads {
            let place = Int.random(in: 0..<size(largest) / 4_096, using: &random) * 4_096
            let begun = Clock.now
            _ = pread(descriptor, &buffer, buffer.count, place)
            samples.add(Clock.now - begun)
        }
        return samples
    }

    private func size(_ path: String) -> Int {
        var status = stat()
        return stat(path, &status) == 0 ? Int(status.st_size) : 0
    }
}
