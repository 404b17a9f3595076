internal import Glibc

/// Parley: plain streams over HTTP/1.1, followed as server-sent events.
final class ParleyWire: Wire {
    let name = "Parley"
    let pid: Int32
    private let port: UInt16
    private let contentType: String
    private var heads: [[UInt8]] = []
    /// Streams of an earlier round stay out of the way.
    private var generation = 0

    /// - Parameter contentType: The type of the streams: bytes are opaque, JSON is checked message by message.
    init(port: UInt16, pid: Int32, contentType: String = "application/octet-stream") {
        (self.port, self.pid, self.contentType) = (port, pid, contentType)
    }

    func prepare(channels count: Int) {
        // The same in every round: a million of them take a minute to make.
        guard heads.count != count else { return }
        generation += 1
        heads = (0..<count).map {
            Array("POST \(path($0)) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: \(contentType)\r\nContent-Length: ".utf8)
        }
        // Side by side: one after the other, a million would take ten minutes.
        let connections = (0..<min(count, 64)).map { _ in connect() }
        defer { for connection in connections { connection.close() } }
        for first in stride(from: 0, to: count, by: connections.count) {
            let batch = zip(first..<count, connections)
            for (channel, connection) in batch {
                let head = "PUT \(path(channel)) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: \(contentType)\r\nContent-Length: 0\r\n\r\n"
                connection.send(Array(head.utf8))
            }
            for (_, connection) in batch { connection.answer(answerLength) }
        }
    }

    func connect() -> Connection { Connection(port: port) }

    func append(_ payload: [UInt8], to channel: Int, _ output: inout [UInt8]) {
        output.append(contentsOf: heads[channel])
        output.append(contentsOf: "\(payload.count)\r\n\r\n".utf8)
        output.append(contentsOf: payload)
    }

    /// One request with a JSON array.
    func append(_ payloads: [[UInt8]], to channel: Int, _ output: inout [UInt8]) -> Int {
        append([91] + Array(payloads.joined(separator: [44])) + [93], to: channel, &output)
        return 1
    }

    func answerLength(_ bytes: UnsafeRawBufferPointer) -> Int? { HTTPAnswer.length(bytes) }

    func follow(_ channel: Int, _ found: @escaping (Nanoseconds) -> Void) -> Connection {
        followEvents(path(channel), found)
    }

    /// Follows any stream of the server from its tail.
    func followEvents(_ path: String, _ found: @escaping (Nanoseconds) -> Void) -> Connection {
        let connection = connect()
        let request = "GET \(path)?offset=now&live=sse HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        let answer = connection.request(Array(request.utf8)) { HTTPAnswer.headLength($0) }
        guard answer.starts(with: "HTTP/1.1 200".utf8) else { fail("\(name) answered: \(String(decoding: answer, as: UTF8.self))") }
        connection.onInput = { $0.take(TimeMark.scan($0.unread, found)) }
        return connection
    }

    func payload(_ time: Nanoseconds, bytes: Int) -> [UInt8] {
        guard contentType == "application/json" else { return TimeMark.payload(time, bytes: bytes) }
        return [34] + TimeMark.payload(time, bytes: bytes - 2) + [34]
    }

    var logCounters: LogCounters? {
        let connection = connect()
        defer { connection.close() }
        let answer = connection.request(Array("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8), answerLength)
        let lines = String(decoding: answer, as: UTF8.self).split(whereSeparator: \.isNewline)
        func value(_ name: String) -> Double {
            lines.first { $0.hasPrefix(name + " ") }.flatMap { Double($0.dropFirst(name.count + 1)) } ?? .nan
        }
        return LogCounters(syncs: value("parley_commits_total"), bytes: value("parley_commit_bytes_total"))
    }

    func path(_ channel: Int) -> String { "/v1/stream/load/\(Clock.runID)-\(generation)-\(channel)" }
}

extension Clock {
    /// Tells the channels of this run from those of another.
    static let runID = String(now, radix: 36)
}

/// Just enough of HTTP/1.1: the head, and a body of announced length.
enum HTTPAnswer {
    static func length(_ bytes: UnsafeRawBufferPointer) -> Int? {
        guard let head = headLength(bytes) else { return nil }
        guard bytes[9] == UInt8(ascii: "2") else { fail("answered: \(String(decoding: bytes, as: UTF8.self))") }
        let length = head + (contentLength(UnsafeRawBufferPointer(rebasing: bytes[..<head])) ?? 0)
        return bytes.count >= length ? length : nil
    }

    /// The bytes of a whole request, and of its head.
    static func request(_ bytes: UnsafeRawBufferPointer) -> (head: Int, length: Int)? {
        guard let head = headLength(bytes) else { return nil }
        let length = head + (contentLength(UnsafeRawBufferPointer(rebasing: bytes[..<head])) ?? 0)
        return bytes.count >= length ? (head, length) : nil
    }

    static func headLength(_ bytes: UnsafeRawBufferPointer) -> Int? {
        find("\r\n\r\n", bytes).map { $0 + 4 }
    }

    /// The text behind `name` up to the end of its line.
    static func field(_ name: StaticString, _ head: UnsafeRawBufferPointer) -> String? {
        guard let start = find(name, head).map({ $0 + name.utf8CodeUnitCount }) else { return nil }
        return String(decoding: head[start...].prefix { $0 != 13 }, as: UTF8.self)
    }

    private static func contentLength(_ head: UnsafeRawBufferPointer) -> Int? {
        guard var index = find("\r\nContent-Length: ", head).map({ $0 + 18 }) else { return nil }
        var value = 0
        while index < head.count, (48...57).contains(head[index]) {
            value = value * 10 + Int(head[index] - 48)
            index += 1
        }
        return value
    }

    static func find(_ text: StaticString, _ bytes: UnsafeRawBufferPointer) -> Int? {
        let count = text.utf8CodeUnitCount
        var index = 0
        while index + count <= bytes.count {
            guard let found = memchr(bytes.baseAddress! + index, Int32(text.utf8Start[0]), bytes.count - index - count + 1) else {
                return nil
            }
            if memcmp(found, text.utf8Start, count) == 0 { return UnsafeRawPointer(found) - bytes.baseAddress! }
            index = UnsafeRawPointer(found) - bytes.baseAddress! + 1
        }
        return nil
    }
}
