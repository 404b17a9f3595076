internal import Glibc

/// PostgreSQL: a row per message, by a prepared statement and a commit each; followed by LISTEN, or by polling.
final class PostgresWire: Wire {
    let name: String
    let pid: Int32
    private let port: UInt16
    private let notifies: Bool

    /// - Parameter notifies: Whether each insert also notifies the listeners, with the message itself.
    init(port: UInt16, pid: Int32, notifies: Bool = false) {
        (self.port, self.pid, self.notifies) = (port, pid, notifies)
        name = notifies ? "PostgreSQL NOTIFY" : "PostgreSQL"
    }

    func prepare(channels count: Int) {
        let connection = open()
        defer { connection.close() }
        query("DROP TABLE IF EXISTS log", connection)
        // The key in the order in which a reader of one channel needs it.
        query("CREATE TABLE log (channel int, id bigserial, body text, PRIMARY KEY (channel, id))", connection)
        query("CHECKPOINT", connection)
    }

    func connect() -> Connection {
        let connection = open()
        let insert = "INSERT INTO log (channel, body) VALUES ($1, $2)"
        let statement = notifies ? "WITH row AS (\(insert) RETURNING channel) SELECT pg_notify('c' || channel, $2) FROM row" : insert
        prepare("append", statement, connection)
        return connection
    }

    func append(_ payload: [UInt8], to channel: Int, _ output: inout [UInt8]) {
        execute("append", [Array(String(channel).utf8), payload], &output)
    }

    func answerLength(_ bytes: UnsafeRawBufferPointer) -> Int? { PostgresAnswer.length(bytes) }

    func follow(_ channel: Int, _ found: @escaping (Nanoseconds) -> Void) -> Connection {
        let connection = open()
        query("LISTEN c\(channel)", connection)
        connection.onInput = { $0.take(TimeMark.scan($0.unread, found)) }
        return connection
    }

    /// A connection that gets the rows of a channel since it last asked, whenever the returned closure is called.
    func poll(_ channel: Int, _ found: @escaping (Nanoseconds) -> Void) -> (connection: Connection, ask: () -> Void) {
        let connection = open()
        prepare("poll", "SELECT id, body FROM log WHERE channel = $1 AND id > $2 ORDER BY id", connection)
        var last = "0"
        var isWaiting = false
        connection.onInput = { connection in
            guard
                let length = PostgresAnswer.length(
                    connection.unread,
                    { columns in
                        last = columns[0]
                        _ = Array(columns[1].utf8).withUnsafeBytes { TimeMark.scan($0, found) }
                    })
            else { return }
            isWaiting = false
            connection.take(length)
        }
        return (
            connection,
            {
                guard !isWaiting else { return }
                isWaiting = true
                var output: [UInt8] = []
                self.execute("poll", [Array(String(channel).utf8), Array(last.utf8)], &output)
                connection.send(output)
            }
        )
    }

    var logCounters: LogCounters? {
        usleep(300_000)  // A backend's counts show once it has ended.
        let connection = open()
        defer { connection.close() }
        var counters: LogCounters?
        let message = PostgresWire.message("Q", Array("SELECT wal_sync, wal_bytes FROM pg_stat_wal".utf8) + [0])
        connection.request(message) {
            PostgresAnswer.length($0) { counters = LogCounters(syncs: Double($0[0]) ?? .nan, bytes: Double($0[1]) ?? .nan) }
        }
        return counters
    }

    // MARK: The protocol, version 3

    private func open() -> Connection {
        let connection = Connection(port: port)
        var body = PostgresWire.bytes(UInt32(196_608))
        for text in ["user", "postgres", "database", "postgres", "application_name", "load"] { body += Array(text.utf8) + [0] }
        body.append(0)
        connection.request(PostgresWire.bytes(UInt32(body.count + 4)) + body) { PostgresAnswer.length($0) }
        return connection
    }

    private func query(_ text: String, _ connection: Connection) {
        connection.request(PostgresWire.message("Q", Array(text.utf8) + [0])) { PostgresAnswer.length($0) }
    }

    private func prepare(_ name: String, _ statement: String, _ connection: Connection) {
        let parse = PostgresWire.message("P", Array(name.utf8) + [0] + Array(statement.utf8) + [0] + [0, 0])
        connection.request(parse + PostgresWire.message("S", [])) { PostgresAnswer.length($0) }
    }

    /// Bind, Execute and Sync in one piece: one round trip, one commit.
    private func execute(_ statement: String, _ values: [[UInt8]], _ output: inout [UInt8]) {
        var bind: [UInt8] = [0] + Array(statement.utf8) + [0, 0, 0] + PostgresWire.bytes(UInt16(values.count))
        for value in values { bind += PostgresWire.bytes(UInt32(value.count)) + value }
        bind += [0, 0]
        output += PostgresWire.message("B", bind) + PostgresWire.message("E", [0, 0, 0, 0, 0]) + PostgresWire.message("S", [])
    }

    private static func message(_ kind: Unicode.Scalar, _ body: [UInt8]) -> [UInt8] {
        [UInt8(ascii: kind)] + bytes(UInt32(body.count + 4)) + body
    }

    private static func bytes<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
        withUnsafeBytes(of: number.bigEndian) { Array($0) }
    }
}

enum PostgresAnswer {
    /// The bytes up to and with the first ReadyForQuery; `row` gets the columns of each row, once the answer is whole.
    static func length(_ bytes: UnsafeRawBufferPointer, _ row: (([String]) -> Void)? = nil) -> Int? {
        var position = 0
        var rows: [Int] = []
        while position + 5 <= bytes.count {
            let kind = bytes[position]
            let end = position + 1 + integer(bytes, position + 1)
            guard end <= bytes.count else { return nil }
            switch kind {
            case UInt8(ascii: "E"): fail("PostgreSQL answered: \(String(decoding: bytes[(position + 5)..<end], as: UTF8.self))")
            case UInt8(ascii: "D"): rows.append(position)
            case UInt8(ascii: "Z"):
                if let row { for start in rows { row(columns(bytes, start)) } }
                return end
            default: break
            }
            position = end
        }
        return nil
    }

    private static func columns(_ bytes: UnsafeRawBufferPointer, _ start: Int) -> [String] {
        let count = Int(bytes[start + 5]) << 8 | Int(bytes[start + 6])
        var position = start + 7
        return (0..<count).map { _ in
            let length = integer(bytes, position)
            defer { position += 4 + length }
            return String(decoding: bytes[(position + 4)..<(position + 4 + length)], as: UTF8.self)
        }
    }

    private static func integer(_ bytes: UnsafeRawBufferPointer, _ position: Int) -> Int {
        bytes[position..<(position + 4)].reduce(0) { $0 << 8 | Int($1) }
    }
}
