internal import Glibc

/// How fast does a reader get a long channel that it has not seen?
struct Catchup {
    private let program: String
    private let folder: String
    private let bytes: Int
    private let messageBytes: Int
    private let rounds: Int
    private let floor: UInt16
    private let redis: (port: UInt16, pid: Int32)?

    init(_ options: Options) {
        program = options.text("program") ?? ""
        folder = options.text("folder") ?? ""
        bytes = options.integer("megabytes", 1_000) * 1_000_000
        messageBytes = options.integer("bytes", 1_000)
        rounds = options.integer("rounds", 3)
        floor = UInt16(options.integer("floor", 0))
        redis = options.server("redis")
        if program.isEmpty || folder.isEmpty { fail("--program and --folder are needed") }
    }

    private var count: Int { bytes / messageBytes }
    private static let perAppend = 64
    private static let path = "/v1/stream/load/long"

    func run() {
        print(
            "a channel of \(count) JSON messages of \(messageBytes) B, read from its start over one connection; \(rounds) rounds, medians")
        fill()
        var table = Table("", "MB/s", "server cores", "client cores", "before MiB", "grown by MiB", "peak MiB")
        for isCold in [false, true] {
            for way in ways {
                table.add(["\(way.name), \(isCold ? "cold" : "warm")"] + measure(way, isCold: isCold))
            }
        }
        table.show()
    }

    /// A way to read everything: a server, and a function that reads it and returns the bytes that were received.
    private struct Way {
        var name: String
        /// A server that has to be started, with nothing in its memory.
        var isParley = false
        var folder: String
        var read: (_ port: UInt16) -> Int
    }

    private var ways: [Way] {
        var ways = [
            Way(name: "Parley, live=sse", isParley: true, folder: data) { readEvents($0) },
            Way(name: "Parley, page by page", isParley: true, folder: data) { readPages($0) },
            Way(name: "sendfile of a file", folder: file) { _ in readFile() },
        ]
        if let redis { ways.append(Way(name: "Redis, XRANGE", folder: "") { _ in readRange(redis.port) }) }
        return ways
    }

    private var data: String { "\(folder)/catchup" }
    private var file: String { "\(folder)/www" }

    private func start() -> Server { Server([program, "serve", "--listen", "127.0.0.1:0", "--data", data, "--agents", folder]) }

    private func fill() {
        let server = start()
        Requests.send(1, to: server.port) { _ in Requests.stream("PUT", Catchup.path) }
        let (begun, appends) = (Clock.now, (count + Catchup.perAppend - 1) / Catchup.perAppend)
        // Over one connection, so that the messages keep their order.
        Requests.send(appends, to: server.port, connections: 1, inFlight: 16) { index in
            var body: [UInt8] = []
            for number in index * Catchup.perAppend..<min(count, (index + 1) * Catchup.perAppend) {
                body.append(body.isEmpty ? 91 : 44)
                body.append(34)
                body += TimeMark.payload(UInt64(number), bytes: messageBytes - 2)
                body.append(34)
            }
            return Requests.stream("POST", Catchup.path, body + [93])
        }
        let rate = Double(bytes) / 1e6 / (Double(Clock.now - begun) / 1e9)
        print("written in appends of \(Catchup.perAppend) messages, \(rate.text()) MB/s")
        server.stop()
        if let redis { fillRedis(redis.port) }
    }

    private func measure(_ way: Way, isCold: Bool) -> [String] {
        if isCold && way.folder.isEmpty { return Array(repeating: "-", count: 6) }  // Has everything in memory.
        var (rates, cores, own) = ([Double](), [Double](), [Double]())
        var (before, grown, peaks) = ([Double](), [Double](), [Double]())
        for round in 0...rounds where round > 0 || !isCold {
            let server = way.isParley ? start() : nil
            defer { server?.stop() }
            let memory = server.map { Memory(of: $0.pid) }
            if isCold { PageCache.drop(way.folder) } else if round == 0 { _ = way.read(server?.port ?? 0) }
            let (used, client, begun) = (server.map { Usage(of: $0.pid) }, Clock.ownProcessor, Clock.now)
            let received = way.read(server?.port ?? 0)
            let seconds = Double(Clock.now - begun) / 1e9
            if round == 0 { continue }  // Warms up.
            rates.append(Double(received) / 1e6 / seconds)
            own.append(Double(Clock.ownProcessor - client) / 1e9 / seconds)
            guard let server, let used, let memory else { continue }
            cores.append(Double((Usage(of: server.pid) - used).processor) / 1e9 / seconds)
            let after = Memory(of: server.pid)
            before.append(Double(memory.anonymous) / 1_048_576)
            grown.append(Double(after.anonymous - memory.anonymous) / 1_048_576)
            peaks.append(Double(after.peak) / 1_048_576)
        }
        return [
            median(rates).text(), median(cores).text(2), median(own).text(2), median(before).text(1), median(grown).text(1),
            median(peaks).text(1),
        ]
    }

    // MARK: Reading

    /// Checks that what comes is the channel, whole and in order.
    private struct Check {
        var next: UInt64 = 0

        mutating func take(_ bytes: UnsafeRawBufferPointer) -> Int {
            TimeMark.scan(bytes) { number in
                if number != next { fail("message \(number) has come, message \(next) was to come") }
                next += 1
            }
        }
    }

    private func readEvents(_ port: UInt16) -> Int {
        let connection = Connection(port: port)
        defer { connection.close() }
        Requests.open("\(Catchup.path)?offset=-1&live=sse", on: connection)
        var (check, isOver) = (Check(), false)
        let handle: (Connection) -> Void = { connection in
            if check.next < count {
                let used = check.take(connection.unread)
                if check.next < count { return connection.take(used) }
            }
            isOver = HTTPAnswer.find("\"upToDate\":true", connection.unread) != nil
        }
        connection.onInput = handle
        handle(connection)
        while !isOver { connection.receive() }
        return bytes
    }

    private func readPages(_ port: UInt16) -> Int {
        let connection = Connection(port: port)
        defer { connection.close() }
        var (check, offset, isOver) = (Check(), "-1", false)
        while !isOver {
            let request = "GET \(Catchup.path)?offset=\(offset) HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            connection.send(Array(request.utf8))
            var length: Int?
            connection.onInput = { length = HTTPAnswer.length($0.unread) }
            while length == nil { connection.receive() }
            let answer = UnsafeRawBufferPointer(rebasing: connection.unread[..<length!])
            let head = UnsafeRawBufferPointer(rebasing: answer[..<HTTPAnswer.headLength(answer)!])
            offset = HTTPAnswer.field("\r\nStream-Next-Offset: ", head) ?? offset
            isOver = HTTPAnswer.find("\r\nStream-Up-To-Date: true", head) != nil
            _ = check.take(answer)
            connection.take(length!)
        }
        if check.next != count { fail("\(check.next) of \(count) messages have come") }
        return bytes
    }

    private func readFile() -> Int {
        let connection = Connection(port: floor)
        defer { connection.close() }
        var received = 0
        connection.onClose = { _ in received = -received }
        connection.onInput = { connection in
            received += connection.unread.count
            connection.take(connection.unread.count)
        }
        while received >= 0 && received < bytes { connection.receive() }
        return received
    }

    // MARK: Redis

    private func fillRedis(_ port: UInt16) {
        let connection = Connection(port: port)
        defer { connection.close() }
        for first in stride(from: 0, to: count, by: Catchup.perAppend) {
            var output: [UInt8] = []
            let last = min(count, first + Catchup.perAppend)
            for number in first..<last {
                let text = TimeMark.payload(UInt64(number), bytes: messageBytes)
                output += RedisWire.command("XADD", "long", "*", "d", String(decoding: text, as: UTF8.self))
            }
            connection.request(output) { bytes in
                var (position, left) = (0, last - first)
                while left > 0, let length = RESP.length(UnsafeRawBufferPointer(rebasing: bytes[position...])) {
                    (position, left) = (position + length, left - 1)
                }
                return left == 0 ? position : nil
            }
        }
    }

    private func readRange(_ port: UInt16) -> Int {
        let connection = Connection(port: port)
        defer { connection.close() }
        var (check, last) = (Check(), "-")
        while check.next < count {
            connection.send(RedisWire.command("XRANGE", "long", last == "-" ? last : "(\(last)", "+", "COUNT", "256"))
            var length: Int?
            connection.onInput = { connection in
                length = RESP.length(connection.unread) { depth, text in if depth == 2 { last = String(decoding: text, as: UTF8.self) } }
            }
            while length == nil { connection.receive() }
            _ = check.take(UnsafeRawBufferPointer(rebasing: connection.unread[..<length!]))
            connection.take(length!)
        }
        return bytes
    }
}
