/// Redis Streams: XADD, followed with XREAD BLOCK.
final class RedisWire: Wire {
    let name = "Redis Streams"
    let pid: Int32
    private let port: UInt16
    private var keys: [String] = []
    private var generation = 0

    init(port: UInt16, pid: Int32) { (self.port, self.pid) = (port, pid) }

    func prepare(channels count: Int) {
        // Everything of Redis is in memory: the data of an earlier round would only make it slower.
        let connection = connect()
        defer { connection.close() }
        connection.request(RedisWire.command("FLUSHALL"), answerLength)
        generation += 1
        keys = (0..<count).map { "load:\(generation):\($0)" }
    }

    func connect() -> Connection { Connection(port: port) }

    func append(_ payload: [UInt8], to channel: Int, _ output: inout [UInt8]) {
        let key = keys[channel]
        output.append(contentsOf: "*5\r\n$4\r\nXADD\r\n$\(key.utf8.count)\r\n\(key)\r\n$1\r\n*\r\n$1\r\nd\r\n$\(payload.count)\r\n".utf8)
        output.append(contentsOf: payload)
        output.append(13)
        output.append(10)
    }

    func answerLength(_ bytes: UnsafeRawBufferPointer) -> Int? { RESP.length(bytes) }

    func follow(_ channel: Int, _ found: @escaping (Nanoseconds) -> Void) -> Connection {
        let connection = connect()
        let key = keys[channel]
        var last = "$"
        func ask() {
            connection.send(RedisWire.command("XREAD", "COUNT", "1000", "BLOCK", "0", "STREAMS", key, last))
        }
        connection.onInput = { connection in
            var id = last
            // The id of an entry is the only string at depth 4.
            while let length = RESP.length(
                connection.unread, { depth, text in if depth == 4 { id = String(decoding: text, as: UTF8.self) } })
            {
                _ = TimeMark.scan(UnsafeRawBufferPointer(rebasing: connection.unread[..<length]), found)
                connection.take(length)
                last = id
                ask()
            }
        }
        ask()
        return connection
    }

    static func command(_ words: String...) -> [UInt8] {
        Array(("*\(words.count)\r\n" + words.map { "$\($0.utf8.count)\r\n\($0)\r\n" }.joined()).utf8)
    }
}

/// The replies of Redis, as far as they occur here.
enum RESP {
    /// The bytes of the first whole reply; `string` gets each bulk string with the number of arrays around it.
    static func length(_ bytes: UnsafeRawBufferPointer, _ string: (Int, UnsafeRawBufferPointer) -> Void = { _, _ in }) -> Int? {
        var position = 0
        return reply(bytes, &position, depth: 0, string) ? position : nil
    }

    private static func reply(
        _ bytes: UnsafeRawBufferPointer, _ position: inout Int, depth: Int, _ string: (Int, UnsafeRawBufferPointer) -> Void
    ) -> Bool {
        guard position < bytes.count else { return false }
        let kind = bytes[position]
        var end = position + 1
        while end < bytes.count, bytes[end] != 13 { end += 1 }
        guard end + 1 < bytes.count else { return false }
        let line = UnsafeRawBufferPointer(rebasing: bytes[(position + 1)..<end])
        position = end + 2
        switch kind {
        case UInt8(ascii: "+"), UInt8(ascii: ":"): return true
        case UInt8(ascii: "$"):
            let count = number(line)
            guard count >= 0 else { return true }
            guard position + count + 2 <= bytes.count else { return false }
            string(depth, UnsafeRawBufferPointer(rebasing: bytes[position..<(position + count)]))
            position += count + 2
            return true
        case UInt8(ascii: "*"):
            for _ in 0..<max(0, number(line)) {
                guard reply(bytes, &position, depth: depth + 1, string) else { return false }
            }
            return true
        default: fail("Redis answered: \(String(decoding: bytes, as: UTF8.self))")
        }
    }

    private static func number(_ line: UnsafeRawBufferPointer) -> Int { Int(String(decoding: line, as: UTF8.self)) ?? -1 }
}
