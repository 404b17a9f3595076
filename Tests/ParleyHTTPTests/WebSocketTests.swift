import Glibc
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyHTTP

@Suite struct `A WebSocket` {
    // MARK: The handshake

    @Test func `the example of RFC 6455 is answered as it stands there`() throws {
        let client = try Echo().connect()
        try client.send(handshake(["Sec-WebSocket-Protocol: chat, parley.v1"]))
        let answer = try client.answer()
        #expect(answer.status == 101)
        #expect(answer.headers["upgrade"] == "websocket")
        #expect(answer.headers["connection"] == "Upgrade")
        #expect(answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        #expect(answer.headers["sec-websocket-protocol"] == "parley.v1")
        #expect(answer.headers["sec-websocket-extensions"] == nil)
        #expect(answer.headers["content-length"] == nil)
        #expect(answer.headers["transfer-encoding"] == nil)
    }

    /// A key shows that the server has understood, and is no secret: any 16 bytes will do, and clients write them in every way.
    @Test(arguments: ["AQIDBAUGBwgJCgsMDQ4PEB==", "AQIDBAUGBwgJCgsMDQ4PEC", "__79_Pv6-fj39vX08_Lx8A==", "//79/Pv6+fj39vX08/Lx8A=="])
    func `a key may be written in any Base64`(_ key: String) throws {
        let client = try Echo().connect()
        try client.send(handshake(replacing: "dGhlIHNhbXBsZSBub25jZQ==", with: key))
        #expect(try client.answer().status == 101)
    }

    @Test(arguments: [
        "AQIDBAUGBwgJCgsMDQ4PEBE=", "AQIDBAUGBwgJCgsMDQ4P", "AQIDBAUGBwgJCgsMDQ4P====", "AQIDBAUGBwgJCgsMDQ4PEA=",
        "-+IDBAUGBwgJCgsMDQ4PEA==",
    ])
    func `a key has 16 bytes`(_ key: String) throws {
        let client = try Echo().connect()
        try client.send(handshake(replacing: "dGhlIHNhbXBsZSBub25jZQ==", with: key))
        #expect(try client.answer().status == 400)
    }

    struct Refusal: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var status: Int
        var request: String
        var code: String
    }

    static let refusals: [Refusal] = [
        .init(testDescription: "no upgrade", status: 426, request: get("/"), code: "upgrade_required"),
        .init(
            testDescription: "another protocol", status: 426, request: handshake(replacing: "websocket", with: "h2c"),
            code: "upgrade_required"),
        .init(
            testDescription: "an older version", status: 426, request: handshake(replacing: "Version: 13", with: "Version: 8"),
            code: "unsupported_websocket_version"),
        .init(
            testDescription: "two versions", status: 426, request: handshake(["Sec-WebSocket-Version: 13"]),
            code: "unsupported_websocket_version"),
        .init(
            testDescription: "no key", status: 400, request: handshake(replacing: "Sec-WebSocket-Key", with: "X-Key"),
            code: "invalid_handshake"),
        .init(
            testDescription: "a short key", status: 400, request: handshake(replacing: "dGhlIHNhbXBsZSBub25jZQ==", with: "c2hvcnQ="),
            code: "invalid_handshake"),
        .init(
            testDescription: "a key that is no Base64", status: 400, request: handshake(replacing: "dGhl", with: "d!hl"),
            code: "invalid_handshake"),
        .init(
            testDescription: "two keys", status: 400, request: handshake(["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]),
            code: "invalid_handshake"),
        .init(
            testDescription: "no Connection", status: 400, request: handshake(replacing: "Connection: keep-alive, Upgrade", with: "X: y"),
            code: "invalid_handshake"),
        .init(
            testDescription: "a connection that closes", status: 400,
            request: handshake(replacing: "keep-alive, Upgrade", with: "close, Upgrade"), code: "invalid_handshake"),
        .init(testDescription: "a body", status: 400, request: handshake(["Content-Length: 2"]) + "{}", code: "invalid_handshake"),
        .init(
            testDescription: "HTTP/1.0", status: 400,
            request: handshake(replacing: "HTTP/1.1", with: "HTTP/1.0").replacing("keep-alive, ", with: "keep-alive, "),
            code: "invalid_handshake"),
        .init(
            testDescription: "another method", status: 405, request: handshake(replacing: "GET", with: "PUT"), code: "method_not_allowed"),
    ]

    @Test(arguments: refusals) func `a handshake that is not quite one is refused`(_ row: Refusal) throws {
        let client = try Echo().connect()
        try client.send(row.request)
        let answer = try client.answer()
        #expect(answer.status == row.status)
        #expect(answer.text.contains("\"code\":\"\(row.code)\""))
        if answer.status == 426 { #expect(answer.headers["upgrade"] == "websocket") }
        if row.code == "unsupported_websocket_version" { #expect(answer.headers["sec-websocket-version"] == "13") }
    }

    // MARK: Messages

    @Test func `messages come back, of every length in its own form`() throws {
        let client = try Echo().open()
        for count in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
            let text = Bytes(repeating: UInt8(ascii: "x"), count: count)
            try client.send(frame(1, text))
            #expect(try client.message() == text)
        }
    }

    @Test func `a frame that comes right behind the handshake, or in the same packet, is read`() throws {
        let client = try Echo().connect()
        try client.send(handshake().latin1 + frame(1, "first"))
        #expect(try client.answer().status == 101)
        #expect(try client.message().text == "first")
    }

    @Test func `a handshake behind an unanswered request waits for its turn, and its first frames with it`() throws {
        let responders = Arrivals<HTTPResponder>()
        let server = try TestServer { request, responder in
            if request.path == "/slow" { return responders.add(responder) }
            Echo.answer(request, responder)
        }
        let client = try server.connect()
        try client.send(get("/slow").latin1 + handshake().latin1 + frame(1, "behind"))
        let slow = try responders.next("the slow request")
        slow.loop.execute { slow.respond(status: 200, body: Bytes("now".utf8)) }
        #expect(try client.answer().text == "now")
        #expect(try client.answer().status == 101)
        #expect(try client.message().text == "behind")
    }

    @Test func `a message in pieces is one, with control frames in between`() throws {
        let client = try Echo().open()
        let text = Bytes("pieces of grün".utf8)
        try client.send(frame(1, text[..<5], fin: false) + frame(9, "are you there?") + frame(0, text[5..<12], fin: false))
        try client.send(frame(10, "") + frame(0, [], fin: false) + frame(0, text[12...]))
        #expect(try client.frame() == .init(opcode: 10, payload: Bytes("are you there?".utf8)))
        #expect(try client.message() == text)
    }

    @Test func `the cut of the bytes into packets changes nothing`() throws {
        var random = SeededRandom(seed: Seed.value)
        let client = try Echo().open()
        var expected: [Bytes] = []
        var bytes = Bytes()
        for number in 0..<60 {
            let text = Bytes("\(number)-".utf8) + Bytes(repeating: UInt8(ascii: "y"), count: Int.random(in: 0...400, using: &random))
            let cut = Int.random(in: 0...text.count, using: &random)
            bytes += frame(1, text[..<cut], fin: false)
            if Bool.random(using: &random) { bytes += frame(10, "") }
            bytes += frame(0, text[cut...])
            expected.append(text)
        }
        var sent = 0
        while sent < bytes.count {
            let count = min(bytes.count - sent, Int.random(in: 1...300, using: &random))
            try client.send(Bytes(bytes[sent..<sent + count]))
            sent += count
        }
        for text in expected { #expect(try client.message() == text, "seed \(Seed.value)") }
    }

    @Test func `whatever comes, in whatever pieces, is read the same way`() throws {
        var random = SeededRandom(seed: Seed.value)
        for _ in 0..<2_000 {
            var bytes = Bytes()
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let opcode = [0, 1, 1, 1, 2, 8, 9, 10, 11].randomElement(using: &random)! as UInt8
                let payload = (0..<Int.random(in: 0...140, using: &random)).map { _ in UInt8.random(in: 32..<127, using: &random) }
                bytes += frame(opcode, payload, fin: Int.random(in: 0..<3, using: &random) > 0)
            }
            for _ in 0..<Int.random(in: 0...2, using: &random) {
                bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            let (whole, cut) = (outcome([bytes]), outcome(bytes.map { [$0] }))
            #expect(whole.events == cut.events && whole.code == cut.code, "seed \(Seed.value): \(bytes)")
        }
    }

    /// A reader's result for pieces of bytes: the events, and the code that it closes with.
    private func outcome(_ pieces: [Bytes]) -> (events: [String], code: Int) {
        let reader = WebSocketReader(messageBytesMax: 300)
        var events: [String] = []
        var isClosed = false
        for piece in pieces where !isClosed {
            do {
                _ = try piece.withUnsafeBytes { bytes in
                    try reader.feed(bytes) { event in
                        events.append("\(event)")
                        if case .close = event { isClosed = true }
                        return !isClosed
                    }
                }
            } catch {
                return (events, (error as? WebSocketError)?.code ?? -1)
            }
        }
        return (events, 0)
    }

    // MARK: Breaches of the rules

    struct Violation: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var bytes: Bytes
        var code: UInt16
    }

    static let violations: [Violation] = [
        .init(testDescription: "a frame without a mask", bytes: frame(1, "x", masked: false), code: 1_002),
        .init(testDescription: "a reserved bit", bytes: [frame(1, "x")[0] | 0x40] + frame(1, "x").dropFirst(), code: 1_002),
        .init(testDescription: "an unknown opcode", bytes: frame(3, "x"), code: 1_002),
        .init(testDescription: "an unknown control opcode", bytes: frame(11, "x"), code: 1_002),
        .init(testDescription: "a continuation of nothing", bytes: frame(0, "x"), code: 1_002),
        .init(testDescription: "a message inside a message", bytes: frame(1, "x", fin: false) + frame(1, "y"), code: 1_002),
        .init(testDescription: "a ping in pieces", bytes: frame(9, "x", fin: false), code: 1_002),
        .init(testDescription: "a ping above 125 bytes", bytes: frame(9, Bytes(repeating: 1, count: 126)), code: 1_002),
        .init(testDescription: "a length not in its shortest form", bytes: [0x81, 0xfe, 0, 1, 0, 0, 0, 0, 0x41], code: 1_002),
        .init(testDescription: "a close with half a code", bytes: frame(8, [3]), code: 1_002),
        .init(testDescription: "a close with a code that is not to be sent", bytes: frame(8, [3, 0xee]), code: 1_002),
        .init(testDescription: "a binary message", bytes: frame(2, "x"), code: 1_003),
        .init(testDescription: "text that is not UTF-8", bytes: frame(1, [0x61, 0xff]), code: 1_007),
        .init(testDescription: "text that ends inside a character", bytes: frame(1, [0xe2, 0x82]), code: 1_007),
        .init(testDescription: "a reason that is not UTF-8", bytes: frame(8, [3, 0xe8, 0xff]), code: 1_007),
        .init(
            testDescription: "a message that is too long", bytes: [0x81, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0x41], code: 1_009),
        .init(
            testDescription: "pieces that are too long together",
            bytes: frame(1, Bytes(repeating: 65, count: 200_000), fin: false) + frame(0, Bytes(repeating: 65, count: 100_000)), code: 1_009),
    ]

    @Test(arguments: violations) func `what breaks the rules closes the connection with the code for it`(_ row: Violation) throws {
        let client = try Echo(messageBytesMax: row.testDescription.contains("pieces that") ? 262_144 : 1 << 20).open()
        try client.send(row.bytes)
        let close = try client.frame()
        #expect(close.opcode == 8)
        #expect(close.payload.count > 2 && close.payload.readBigEndian(at: 0, as: UInt16.self) == row.code, "\(close.payload)")
        #expect(try client.readToEnd("the end").isEmpty)
    }

    /// A peer that announces much and sends none of it does not keep a connection that is lost already.
    @Test(arguments: [
        Violation(testDescription: "a message", bytes: [0x81, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0], code: 1_009),
        Violation(testDescription: "a message of 4 GB", bytes: [0x81, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], code: 1_009),
        Violation(
            testDescription: "the rest of a message",
            bytes: frame(9, "x") + frame(1, "abc", fin: false) + [0x80, 0xff, 0, 0, 0, 0, 0, 0x0f, 0xff, 0xfe, 0, 0, 0, 0], code: 1_009),
        Violation(testDescription: "a frame without a mask", bytes: [0x81, 1], code: 1_002),
        Violation(testDescription: "a binary message", bytes: [0x82, 0x81, 0, 0, 0, 0], code: 1_003),
    ])
    func `a frame is refused by its head`(_ row: Violation) throws {
        let client = try Echo().open()
        try client.send(row.bytes)
        var close = try client.frame()
        if close.opcode == 10 { close = try client.frame() }
        #expect(close.opcode == 8)
        #expect(close.payload.count > 2 && close.payload.readBigEndian(at: 0, as: UInt16.self) == row.code, "\(close.payload)")
    }

    @Test func `control frames come between the pieces of a message that is as long as it may be`() throws {
        let reader = WebSocketReader(messageBytesMax: 4)
        var events: [WebSocketReader.Event] = []
        for byte in frame(1, "abcd", fin: false) + frame(9, "are you there?") + frame(0, "") {
            _ = try [byte].withUnsafeBytes { bytes in
                try reader.feed(bytes) {
                    events.append($0)
                    return true
                }
            }
        }
        #expect(events == [.ping(Bytes("are you there?".utf8)), .text(Bytes("abcd".utf8))])
    }

    // MARK: Closing

    @Test func `a close is answered with its code, and then the connection ends`() throws {
        let closed = Arrivals<String>()
        let client = try Echo(closed: closed).open()
        try client.send(frame(8, [0x0f, 0xa1] + Bytes("bye".utf8)) + frame(1, "after the end"))
        #expect(try client.frame() == .init(opcode: 8, payload: [0x0f, 0xa1]))
        #expect(try client.readToEnd("the end").isEmpty)
        try closed.next("the end")
        #expect(closed.all.count == 1)
    }

    @Test func `a close without a code is answered without one`() throws {
        let client = try Echo().open()
        try client.send(frame(8, []))
        #expect(try client.frame() == .init(opcode: 8, payload: []))
        #expect(try client.readToEnd("the end").isEmpty)
    }

    @Test func `a peer that goes away, wholly or by half, is noticed`() throws {
        for half in [false, true] {
            let closed = Arrivals<String>()
            let client = try Echo(closed: closed).open()
            try client.send(frame(1, "x", fin: false))
            if half { client.finishSending() } else { client.close() }
            try closed.next("the end")
        }
    }

    @Test func `a close frame behind which the peer stops sending is still answered`() throws {
        let client = try Echo().open()
        try client.send(frame(1, "last words") + frame(8, [3, 0xe8]))
        client.finishSending()
        #expect(try client.message().text == "last words")
        #expect(try client.frame() == .init(opcode: 8, payload: [3, 0xe8]))
    }

    @Test func `a peer that stops sending without a close frame gets the answers to all that it sent, and then a close`() throws {
        let client = try Echo().open()
        let texts = (0..<500).map { "message \($0)" }
        try client.send(texts.flatMap { frame(1, Bytes($0.utf8)) } + frame(1, "half of one", fin: false))
        client.finishSending()
        for text in texts { #expect(try client.message().text == text) }
        let close = try client.frame()
        #expect(close.opcode == 8 && close.payload.readBigEndian(at: 0, as: UInt16.self) == 1_000)
        #expect(try client.readToEnd("the end").isEmpty)
    }

    @Test func `a peer that stops sending is told so once what it sent was heard, also where that had to wait`() throws {
        let (sockets, heard) = (Arrivals<WebSocket>(), Arrivals<String>())
        let server = try TestServer { request, responder in
            guard let socket = try? WebSocket.accept(request, responder, messageBytesMax: 1_000) else { return }
            socket.onMessage = { [unowned socket] in
                heard.add($0.text)
                socket.isBusy = true
            }
            socket.onHalfClose = { heard.add("the end") }
            sockets.add(socket)
        }
        let client = try SocketClient(server, receiveBuffer: nil)
        try client.send(handshake())
        #expect(try client.answer().status == 101)
        try client.send(frame(1, "one") + frame(1, "two"))
        client.finishSending()
        let socket = try sockets.next("the socket")
        for count in 1...2 {
            try heard.wait("message \(count)") { $0.count == count }
            socket.loop.execute { socket.isBusy = false }
        }
        try heard.wait("the end") { $0 == ["one", "two", "the end"] }
        socket.loop.execute {
            socket.send(Bytes("late".utf8))
            socket.close(1_000, "")
        }
        #expect(try client.message().text == "late")
        #expect(try client.frame() == .init(opcode: 8, payload: [3, 0xe8]))
        #expect(try client.readToEnd("the end").isEmpty)
    }

    @Test func `a peer that sends and takes nothing is not listened to for ever`() throws {
        let client = try Echo().connect(receiveBuffer: 4_096)
        try client.send(handshake())
        #expect(try client.answer().status == 101)
        let text = Bytes(repeating: UInt8(ascii: "z"), count: 60_000)
        // Messages that the server does not read fill the buffers between, so the client has to stop sending at some point.
        var sent = 0
        while sent < 400, (try? client.send(frame(1, text), patience: 1)) != nil { sent += 1 }
        #expect(sent < 400)
    }

    /// Requests that the peer sends at once are answered as it takes the answers, and all of them.
    @Test func `peers that take nothing have little waiting, however much they ask for at once`() throws {
        let server = try TestServer { configuration in
            configuration.waitingBytesMax = 64 << 10
        } handle: { request, responder in
            guard let socket = try? WebSocket.accept(request, responder, messageBytesMax: 1_000) else { return }
            socket.onMessage = { [unowned socket] in socket.send($0 + Bytes(repeating: UInt8(ascii: "x"), count: 2_000)) }
        }
        let clients = try (0..<20).map { _ in try SocketClient(server, receiveBuffer: 4_096) }
        for client in clients { try client.send(handshake()) }
        for client in clients { #expect(try client.answer().status == 101) }
        let questions = (0..<1_000).flatMap { frame(1, "\($0);") }
        for client in clients { try client.send(questions + frame(9, "ping")) }
        var waiting = 0
        for _ in 0..<50 {
            waiting = max(waiting, server.server.waitingBytes)
            RealTime.pass(.milliseconds(10))
        }
        #expect(waiting < 1 << 20)
        for client in clients {
            for number in 0..<1_000 { #expect(try client.message().text.hasPrefix("\(number);")) }
            #expect(try client.frame() == .init(opcode: 10, payload: Bytes("ping".utf8)))
        }
        #expect(server.server.waitingBytes == 0)
    }

    @Test func `a peer that is busy is not listened to in the middle of what has come`() throws {
        let (sockets, messages) = (Arrivals<WebSocket>(), Arrivals<String>())
        let server = try TestServer { request, responder in
            guard let socket = try? WebSocket.accept(request, responder, messageBytesMax: 1_000) else { return }
            socket.onMessage = { [unowned socket] in
                messages.add($0.text)
                socket.isBusy = true
            }
            sockets.add(socket)
        }
        let client = try SocketClient(server, receiveBuffer: nil)
        try client.send(handshake())
        #expect(try client.answer().status == 101)
        try client.send(frame(1, "one") + frame(1, "two") + frame(1, "three"))
        let socket = try sockets.next("the socket")
        for count in 1...3 {
            try messages.wait("message \(count)") { $0.count == count }
            socket.loop.execute { socket.isBusy = false }
        }
        #expect(messages.all == ["one", "two", "three"])
    }
}

// MARK: - Support

/// A server that sends each message back.
private struct Echo {
    let server: TestServer

    init(messageBytesMax: Int = 1 << 20, closed: Arrivals<String>? = nil) throws {
        server = try TestServer { Echo.answer($0, $1, messageBytesMax: messageBytesMax, closed: closed) }
    }

    static func answer(_ request: HTTPRequest, _ responder: HTTPResponder, messageBytesMax: Int = 1 << 20, closed: Arrivals<String>? = nil)
    {
        do throws(Problem) {
            let socket = try WebSocket.accept(request, responder, protocols: ["parley.v1"], messageBytesMax: messageBytesMax)
            socket.onMessage = { [unowned socket] in socket.send($0) }
            socket.onClose = { closed?.add("closed") }
        } catch {
            responder.respond(error)
        }
    }

    func connect(receiveBuffer: Int32? = nil) throws -> SocketClient { try SocketClient(server, receiveBuffer: receiveBuffer) }

    func open() throws -> SocketClient {
        let client = try connect()
        try client.send(handshake())
        #expect(try client.answer().status == 101)
        return client
    }
}

/// A connection that keeps its server.
private final class SocketClient {
    private let server: TestServer
    private let client: TestClient

    init(_ server: TestServer, receiveBuffer: Int32?) throws {
        self.server = server
        client = try server.connect(receiveBuffer: receiveBuffer)
    }

    func send(_ text: String) throws { try client.send(text) }
    func send(_ bytes: Bytes) throws { try client.send(bytes) }
    func send(_ bytes: Bytes, patience: Int) throws {
        client.setSendTimeout(seconds: patience)
        try client.send(bytes)
    }
    func answer() throws -> TestClient.Answer { try client.answer() }
    func readToEnd(_ phase: String) throws -> Bytes { try client.readToEnd(phase) }
    func close() { client.close() }
    func finishSending() { client.finishSending() }
    func frame() throws -> TestClient.Frame { try client.frame() }
    func message() throws -> Bytes { try client.message() }
}

extension TestClient {
    struct Frame: Equatable {
        var opcode: UInt8
        var payload: Bytes
    }

    /// The next frame of a server: unmasked, whole.
    func frame() throws -> Frame {
        let head = try read(count: 2, "a frame")
        guard head[0] & 0xf0 == 0x80, head[1] & 0x80 == 0 else { throw TestFailure("the frame begins with \(head)") }
        var count = Int(head[1])
        switch count {
        case 126: count = Int(try read(count: 2, "a frame").readBigEndian(at: 0, as: UInt16.self))
        case 127: count = Int(try read(count: 8, "a frame").readBigEndian(at: 0, as: UInt64.self))
        default: break
        }
        return Frame(opcode: head[0] & 15, payload: try read(count: count, "a frame"))
    }

    func message() throws -> Bytes {
        let frame = try frame()
        guard frame.opcode == 1 else { throw TestFailure("expected a text frame, got \(frame)") }
        return frame.payload
    }
}

private func handshake(_ fields: [String] = []) -> String {
    get(
        "/",
        """
        Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n
        """ + fields.map { $0 + "\r\n" }.joined())
}

private func handshake(replacing part: String, with other: String) -> String { handshake().replacing(part, with: other) }

private func frame(_ opcode: UInt8, _ text: String, fin: Bool = true, masked: Bool = true) -> Bytes {
    frame(opcode, Bytes(text.utf8), fin: fin, masked: masked)
}

/// A frame as a client sends it.
private func frame(_ opcode: UInt8, _ payload: some Collection<UInt8>, fin: Bool = true, masked: Bool = true) -> Bytes {
    var bytes: Bytes = [(fin ? 0x80 : 0) | opcode]
    let mark: UInt8 = masked ? 0x80 : 0
    if payload.count < 126 {
        bytes.append(mark | UInt8(payload.count))
    } else if payload.count <= 65_535 {
        bytes.append(mark | 126)
        bytes.append(bigEndian: UInt16(payload.count))
    } else {
        bytes.append(mark | 127)
        bytes.append(bigEndian: UInt64(payload.count))
    }
    guard masked else { return bytes + payload }
    let mask: Bytes = [0x37, 0xfa, 0x21, 0x3d]
    bytes += mask
    for (index, byte) in payload.enumerated() { bytes.append(byte ^ mask[index % 4]) }
    return bytes
}
