import ParleyChannels
import ParleySystem

@testable import ParleyServer

/// A client of `/v1/socket`, written from RFC 6455 and docs/socket.md.
final class SocketClient {
    private let client: TestClient
    /// The close frame, once it has come: code and reason.
    private(set) var closing: (code: UInt16, reason: String)?

    convenience init(_ server: TestServer, receiveBuffer: Int32? = nil, headers: [(String, String)] = []) throws {
        try self.init(port: server.server.port, receiveBuffer: receiveBuffer, headers: headers)
    }

    init(port: Int, receiveBuffer: Int32? = nil, headers: [(String, String)] = []) throws {
        client = try TestClient(port: port, receiveBuffer: receiveBuffer)
        try client.send(
            "GET", "/v1/socket",
            [
                ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ] + headers)
        let answer = try client.head()
        guard answer.status == 101 else { throw TestFailure("the handshake is answered with \(answer.status)") }
    }

    /// Sends nothing more, and reads on.
    func finishSending() { client.finishSending() }

    func say(_ text: String) throws { try client.send(SocketClient.frame(1, Bytes(text.utf8))) }

    func say(_ members: (String, JSON?)...) throws {
        var output = Bytes("{".utf8)
        for (name, value) in members {
            guard let value else { continue }
            if output.count > 1 { output.append(",") }
            JSON.write(string: name, to: &output)
            output.append(":")
            output += value.bytes
        }
        try client.send(SocketClient.frame(1, output + Bytes("}".utf8)))
    }

    func follow(_ reference: Int64, _ channel: String, _ offset: String = "-1", view: String? = nil) throws {
        try say(
            ("op", "follow"), ("ref", .integer(reference)), ("channel", .string(channel)), ("offset", .string(offset)),
            ("view", view.map { .string($0) }))
    }

    /// The next message; `nil` when the server has closed.
    func hear() throws -> JSON? {
        while closing == nil {
            let head = try client.take(count: 2, "a frame")
            guard head[0] & 0x80 != 0, head[1] & 0x80 == 0 else { throw TestFailure("a frame begins with \(head)") }
            var count = Int(head[1])
            switch count {
            case 126: count = Int(try client.take(count: 2, "a frame").readBigEndian(at: 0, as: UInt16.self))
            case 127: count = Int(try client.take(count: 8, "a frame").readBigEndian(at: 0, as: UInt64.self))
            default: break
            }
            let payload = try client.take(count: count, "a frame")
            switch head[0] & 15 {
            case 1: return try JSON.parse(payload)
            case 8: closing = (payload.count < 2 ? 0 : payload.readBigEndian(at: 0), Bytes(payload.dropFirst(2)).text)
            case 9:
                pings += 1
                if answersPings { try client.send(SocketClient.frame(10, payload)) }
            default: break
            }
        }
        return nil
    }

    var answersPings = true
    private(set) var pings = 0

    /// Messages until one for which `isLast` holds.
    func hear(until isLast: (JSON) -> Bool) throws -> [JSON] {
        var messages: [JSON] = []
        while let message = try hear() {
            messages.append(message)
            if isLast(message) { return messages }
        }
        throw TestFailure("the server closed, \(String(describing: closing)), after \(messages.suffix(3))")
    }

    func next() throws -> JSON {
        guard let message = try hear() else { throw TestFailure("the server closed: \(String(describing: closing))") }
        return message
    }

    /// The entries that come under a reference until there are `count` of them.
    func entries(_ reference: Int64, _ count: Int) throws -> [JSON] {
        var entries: [JSON] = []
        while entries.count < count {
            let message = try next()
            if message["ref"]?.integer == reference { entries += message["entries"]?.array ?? [] }
        }
        return entries
    }

    static func frame(_ opcode: UInt8, _ payload: Bytes) -> Bytes {
        var bytes: Bytes = [0x80 | opcode]
        if payload.count < 126 {
            bytes.append(0x80 | UInt8(payload.count))
        } else if payload.count <= 65_535 {
            bytes.append(0x80 | 126)
            bytes.append(bigEndian: UInt16(payload.count))
        } else {
            bytes.append(0x80 | 127)
            bytes.append(bigEndian: UInt64(payload.count))
        }
        let mask: Bytes = [1, 2, 3, 4]
        bytes += mask
        for (index, byte) in payload.enumerated() { bytes.append(byte ^ mask[index % 4]) }
        return bytes
    }
}

extension TestServer {
    func socket(receiveBuffer: Int32? = nil) throws -> SocketClient { try SocketClient(self, receiveBuffer: receiveBuffer) }

    /// A JSON stream, by the name that the socket uses.
    func jsonStream(_ body: String = "") throws -> String {
        String(try stream("application/json", body).dropFirst("/v1/stream/".count))
    }

    /// Appends entries as an agent's owner would, and waits until they are durable.
    @discardableResult
    func stage(_ channel: String, _ entries: [NewEntry], closes: Bool = false) throws -> UInt64 {
        let done = Monitor<Result<Appended, ChannelError>?>(nil)
        var append = Append(to: channel, entries)
        append.creates = ChannelRow(name: channel, contentType: "application/json", isAgent: true, created: TestServer.world.now)
        append.closes = closes
        channels.submit(append) { result in done.withLock(signalAll: true) { $0 = result } }
        guard let result = done.wait(timeout: .seconds(10), { $0 }) else { throw TestFailure("an append to \(channel) is not answered") }
        return try result.get().tail
    }

    func emit(_ channel: String, _ text: String) throws { try stage(channel, [NewEntry(.emit, nil, ("name", .string(text)))]) }

    func startChild(_ channel: String, of parent: String) throws {
        try stage(parent, [NewEntry(.childStarted, nil, ("agent", .string(channel)))])
    }
}
