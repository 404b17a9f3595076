internal import Glibc

/// How much memory does a reader cost that waits and gets nothing?
struct Idle {
    private let program: String
    private let folder: String
    private let redis: (port: UInt16, pid: Int32)?
    private let readers: Int
    /// The extra costs of the first ones are there before anything is counted.
    private static let first = 100

    init(_ options: Options) {
        program = options.text("program") ?? ""
        folder = options.text("folder") ?? ""
        redis = options.server("redis")
        readers = options.integer("readers", 10_000)
        if program.isEmpty || folder.isEmpty { fail("--program and --folder are needed") }
    }

    func run() {
        print("\(readers) connections that are open and quiet, beside \(Idle.first) that were there before")
        var table = Table("", "server's own memory, B each", "opened a second")
        table.add(
            ["Parley, connection after a GET"]
                + parley { connection, path in
                    connection.request(Array("GET \(path)?offset=now HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8), HTTPAnswer.length)
                })
        table.add(
            ["Parley, reader (live=sse)"]
                + parley { connection, path in Requests.open("\(path)?offset=now&live=sse", on: connection) })
        if let redis {
            table.add(
                ["Redis, XREAD BLOCK"]
                    + measure(redis.port, redis.pid) {
                        $0.send(RedisWire.command("XREAD", "BLOCK", "0", "STREAMS", "idle", "$"))
                    })
        }
        table.show()
    }

    private func parley(_ ask: (Connection, String) -> Void) -> [String] {
        let server = Server([
            program, "serve", "--listen", "127.0.0.1:0", "--data", "\(folder)/idle-\(Clock.now)", "--agents", folder,
            // All come from one address, whose share is half of the server's readers.
            "--max-readers-per-account", "\(2 * readers)",
        ])
        defer { server.stop(SIGKILL) }
        let path = "/v1/stream/load/idle"
        Requests.send(1, to: server.port) { _ in Requests.stream("PUT", path) }
        return measure(server.port, server.pid) { ask($0, path) }
    }

    private func measure(_ port: UInt16, _ pid: Int32, _ ask: (Connection) -> Void) -> [String] {
        var connections: [Connection] = []
        func open(_ count: Int) {
            for _ in 0..<count {
                let connection = Connection(port: port)
                ask(connection)
                connections.append(connection)
            }
            usleep(300_000)
        }
        defer { for connection in connections { connection.close() } }
        open(Idle.first)
        let (memory, begun) = (Memory(of: pid).anonymous, Clock.now)
        open(readers)
        let seconds = Double(Clock.now - begun) / 1e9 - 0.3
        let grown = Double(Memory(of: pid).anonymous - memory) / Double(readers)
        return [grown.text(), (Double(readers) / seconds).text()]
    }
}
