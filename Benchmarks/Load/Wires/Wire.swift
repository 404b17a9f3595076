internal import Glibc

/// How a server is talked to. One loop drives all of them, so that what differs is the server.
protocol Wire: AnyObject {
    var name: String { get }
    var pid: Int32 { get }

    /// Makes what the channels `0..<count` of this run need, before anything is measured.
    func prepare(channels count: Int)

    /// A connection that is ready for appends.
    func connect() -> Connection

    /// Adds the bytes of one append to `output`.
    func append(_ payload: [UInt8], to channel: Int, _ output: inout [UInt8])

    /// The same where an append must say which connection its answer goes to.
    func append(_ payload: [UInt8], to channel: Int, on connection: Connection, _ output: inout [UInt8])

    /// Adds the bytes that append several messages at once; returns how many answers will come.
    func append(_ payloads: [[UInt8]], to channel: Int, _ output: inout [UInt8]) -> Int

    /// The bytes of the first whole answer; `nil` while it is not whole. Ends the program when the server has refused.
    func answerLength(_ bytes: UnsafeRawBufferPointer) -> Int?

    /// A connection that follows a channel from now on; `found` gets the time that each message carries.
    func follow(_ channel: Int, _ found: @escaping (Nanoseconds) -> Void) -> Connection

    /// The bytes that put a message into the form this server takes: 256 of them, with the time in it.
    func payload(_ time: Nanoseconds, bytes: Int) -> [UInt8]

    /// The server's work on its log so far, by its own count; `nil` when it does not count.
    var logCounters: LogCounters? { get }
}

extension Wire {
    func append(_ payloads: [[UInt8]], to channel: Int, _ output: inout [UInt8]) -> Int {
        for payload in payloads { append(payload, to: channel, &output) }
        return payloads.count
    }

    func payload(_ time: Nanoseconds, bytes: Int) -> [UInt8] { TimeMark.payload(time, bytes: bytes) }

    func append(_ payload: [UInt8], to channel: Int, on connection: Connection, _ output: inout [UInt8]) {
        append(payload, to: channel, &output)
    }

    var usage: Usage { Usage(of: pid) }
    var logCounters: LogCounters? { nil }
}

/// Measures the servers in turns, round by round, so that what the machine does besides meets all of them alike.
/// - Returns: the rounds of each; not the first, which warms up and is a second long at most.
func inTurns<Round>(
    _ wires: [any Wire], rounds: Int, seconds: Double, _ measure: (_ wire: any Wire, _ seconds: Double) -> Round
) -> [[Round]] {
    var results = wires.map { _ in [Round]() }
    for round in 0...rounds {
        for (index, wire) in wires.enumerated() {
            let result = measure(wire, round == 0 ? min(seconds, 1) : seconds)
            if round > 0 { results[index].append(result) }
        }
    }
    return results
}

struct LogCounters {
    var syncs: Double
    var bytes: Double
}

/// A time inside a message: `@T` and 16 hexadecimal digits, which no protocol here escapes.
enum TimeMark {
    static let byteCount = 18

    static func append(_ time: Nanoseconds, to output: inout [UInt8]) {
        output.append(contentsOf: "@T".utf8)
        for shift in stride(from: 60, through: 0, by: -4) {
            let digit = UInt8(truncatingIfNeeded: time >> UInt64(shift)) & 15
            output.append(digit < 10 ? 48 + digit : 87 + digit)
        }
    }

    static func payload(_ time: Nanoseconds, bytes: Int) -> [UInt8] {
        var payload: [UInt8] = []
        payload.reserveCapacity(bytes)
        append(time, to: &payload)
        // Something like text, so that no server gains by compressing one letter.
        var state = time | 1
        while payload.count < bytes {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            payload.append(97 + UInt8(truncatingIfNeeded: state >> 40) % 26)
        }
        return payload
    }

    /// Calls `found` for every whole mark; returns how many bytes can be forgotten.
    static func scan(_ bytes: UnsafeRawBufferPointer, _ found: (Nanoseconds) -> Void) -> Int {
        var index = 0
        while index + byteCount <= bytes.count {
            guard let mark = memchr(bytes.baseAddress! + index, 64, bytes.count - index) else { return bytes.count }
            index = UnsafeRawPointer(mark) - bytes.baseAddress!
            guard index + byteCount <= bytes.count else { break }
            guard bytes[index + 1] == 84 else {
                index += 1
                continue
            }
            var time: Nanoseconds = 0
            for position in (index + 2)..<(index + byteCount) {
                let byte = bytes[position]
                time = time << 4 | UInt64(byte < 58 ? byte &- 48 : byte &- 87) & 15
            }
            found(time)
            index += byteCount
        }
        return index
    }
}
