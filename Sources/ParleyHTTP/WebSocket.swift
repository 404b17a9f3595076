package import ParleySystem

/// The server's end of a WebSocket (RFC 6455, version 13): text messages both ways, without extensions.
///
/// Belongs to the connection's loop. Messages sent in one tick leave in one write. Only the sender bounds what is queued: it checks ``bufferedBytes``
/// and, when that is too much, waits for ``onDrain``. The peer's messages are not read while more than a megabyte waits to be sent to it, or anything
/// worth mentioning while all peers together have much to take, or ``isBusy`` is set.
package final class WebSocket: @unchecked Sendable {  // Guard: used on the loop only.
    package let loop: EventLoop
    /// Called with each message.
    package var onMessage: ((Bytes) -> Void)?
    /// Called when the peer has taken enough for more to be sent.
    package var onDrain: (() -> Void)?
    /// Called once, when the peer has ended its side without a close frame and all its messages have been given. It may still read, and is owed
    /// ``close(_:_:)`` behind its answers; where this is not set, it gets that at once.
    package var onHalfClose: (() -> Void)?
    /// Called once, when nothing comes any more and nothing can be sent, whichever side ended it.
    package var onClose: (() -> Void)?
    /// While it is set the peer's messages wait in the connection.
    package var isBusy = false {
        didSet { updatePause() }
    }
    /// When bytes last came from the peer: the loop's time.
    package private(set) var lastInput: Duration

    private let stream: HTTPStream
    private let reader: WebSocketReader
    /// The memory of an incomplete message, with the account whose share that is.
    private var reservation: MemoryReservation?
    private let account: String
    private var peerHasFinished = false
    private var isClosed = false

    /// From here on the peer must take something before it is listened to.
    private static let outputBytesMax = 1 << 20
    /// The beginning of a message that is not counted.
    private static let uncountedBytesMax = 1 << 10

    private init(_ stream: HTTPStream, messageBytesMax: Int, account: String) {
        self.account = account
        self.stream = stream
        loop = stream.loop
        lastInput = loop.now
        reader = WebSocketReader(messageBytesMax: messageBytesMax)
        stream.onInput = { [unowned self] in received($0) }  // The stream lets go of these when it ends.
        stream.onDrain = { [unowned self] in drained() }
        stream.onHalfClose = { [unowned self] in halfClosed() }
        stream.onClose = { [self] in ended() }
    }

    package var isOpen: Bool { !isClosed }

    /// Bytes sent and not yet taken by the socket.
    package var bufferedBytes: Int { stream.bufferedBytes }

    /// Whether all peers of the loop together have so much to take that each may have little waiting.
    package var isCrowded: Bool { stream.isCrowded }

    /// Sends a message, which is one JSON text or another text in UTF-8.
    package func send(_ text: Bytes) { send(head: [], text) }

    /// Sends `head` and `rest` as one message; `rest` is shared, not copied, when it is large.
    ///
    /// - Parameter room: The share of `rest` in the server's memory until it has been sent.
    package func send(head: Bytes, _ rest: Bytes, room: MemoryReservation? = nil) {
        guard !isClosed else { return }
        stream.write(rest, room) { output in
            WebSocketFrame.writeHead(.text, byteCount: head.count + rest.count, to: &output)
            output.append(contentsOf: head)
        }
    }

    /// Asks the peer for a sign of life, which shows in ``lastInput``.
    package func ping() { sendControl(.ping, []) }

    /// Ends the connection behind what is queued, with a code of RFC 6455, section 7.4. Idempotent.
    package func close(_ code: Int, _ reason: String) {
        guard !isClosed else { return }
        sendClose(code, reason)
        finish()
    }

    /// Ends the connection at once, for a peer that does not answer. Idempotent.
    package func abort() {
        guard !isClosed else { return }
        stream.abort()
        ended()
    }

    // MARK: The peer

    /// - Returns: How much was taken: input behind a message that makes the peer's output too much waits.
    private func received(_ input: UnsafeRawBufferPointer) -> Int {
        if !input.isEmpty { lastInput = loop.now }
        var (used, isAll) = (input.count, true)
        do throws(WebSocketError) {
            used = try reader.feed(input) { event in
                answer(event)
                updatePause()
                isAll = mayHearMore
                return isAll
            }
        } catch {
            close(error.code, error.reason)
        }
        if !isClosed, !holds(reader.heldBytes) {
            close(1_013, "the messages that are being read hold as much of the server's memory as they may; try again later")
        }
        if peerHasFinished, isAll, !isClosed { inputEnded() }
        return used
    }

    /// Whether another message may be read now; if not, the rest is given again.
    private var mayHearMore: Bool {
        guard !isClosed, !stream.isInputPaused else { return false }
        guard stream.mustYield else { return true }
        stream.resumeInputLater()
        return false
    }

    private func halfClosed() {
        peerHasFinished = true
        // The waiting input is processed first.
        if !stream.isInputPaused { _ = received(UnsafeRawBufferPointer(start: nil, count: 0)) }
    }

    private func inputEnded() {
        guard let onHalfClose else { return close(1_000, "your side of the connection has ended") }
        self.onHalfClose = nil
        onHalfClose()
    }

    /// - Returns: false when there is no room for so much of a message.
    private func holds(_ count: Int) -> Bool {
        guard count > WebSocket.uncountedBytesMax else {
            reservation = nil
            return true
        }
        if reservation == nil { reservation = stream.budget.map { MemoryReservation($0, account: account) } }
        return reservation?.resize(to: count) ?? true
    }

    private func answer(_ event: WebSocketReader.Event) {
        switch event {
        case .text(let message): onMessage?(message)
        case .ping(let payload): sendControl(.pong, payload)
        case .pong: break
        case .close(let code):
            stream.inputEnded()
            sendClose(code, "")
            finish()
        }
    }

    private func drained() {
        updatePause()
        onDrain?()
    }

    private func updatePause() {
        guard !isClosed else { return }
        let isFull = bufferedBytes > (isCrowded ? HTTPConnection.crowdedOutputBytesMax : WebSocket.outputBytesMax)
        if isFull { stream.awaitDrain() }
        stream.isInputPaused = isBusy || isFull
    }

    // MARK: Sending

    private func sendControl(_ opcode: WebSocketFrame.Opcode, _ payload: Bytes) {
        guard !isClosed else { return }
        var frame = Bytes()
        WebSocketFrame.writeHead(opcode, byteCount: payload.count, to: &frame)
        stream.write(frame + payload)
    }

    /// - Parameter code: `nil` answers a close frame without one.
    private func sendClose(_ code: Int?, _ reason: String) {
        var payload = Bytes()
        if let code {
            payload.append(bigEndian: UInt16(code))
            payload.append(contentsOf: WebSocketFrame.reason(reason))
        }
        sendControl(.close, payload)
    }

    private func finish() {
        guard !isClosed else { return }
        stream.onClose = nil
        stream.finish()
        ended()
    }

    private func ended() {
        guard !isClosed else { return }
        isClosed = true
        let onClose = onClose
        (self.onClose, onMessage, onDrain, onHalfClose) = (nil, nil, nil, nil)
        onClose?()
    }
}

// MARK: - The handshake

extension WebSocket {
    /// Answers a request for a WebSocket with 101. To be called while the request is handled.
    ///
    /// - Parameters:
    ///   - headers: Further fields of the answer.
    ///   - protocols: Subprotocols that a client may ask for; the first it asks for that is among them is agreed on.
    ///   - messageBytesMax: A longer message closes the connection with 1009.
    ///   - account: Whose share of the memory for requests its unfinished messages count against; beyond that it is closed with 1013.
    /// - Throws: 405; 426 `upgrade_required` or `unsupported_websocket_version`; 400 `invalid_handshake` naming the field.
    package static func accept(
        _ request: HTTPRequest, _ responder: HTTPResponder, headers: [(name: String, value: String)] = [], protocols: [String] = [],
        messageBytesMax: Int, account: String = ""
    ) throws(Problem) -> WebSocket {
        let key = try checkHandshake(request)
        var fields: [(name: String, value: String)] = [
            ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", acceptance(of: key)),
        ]
        let wanted = tokens(request, "Sec-WebSocket-Protocol")
        if let agreed = wanted.first(where: protocols.contains) { fields.append(("Sec-WebSocket-Protocol", agreed)) }
        return WebSocket(responder.upgrade(headers: fields + headers), messageBytesMax: messageBytesMax, account: account)
    }

    /// RFC 6455, section 4.2.1.
    /// - Returns: the client's key.
    private static func checkHandshake(_ request: HTTPRequest) throws(Problem) -> String {
        guard request.method == "GET" else {
            guard request.hasKnownMethod else {
                throw Problem(
                    status: 501, code: "unsupported_method", detail: "\(request.method) is no method that the server knows; expected GET.")
            }
            throw Problem(
                status: 405, code: "method_not_allowed", detail: "\(request.method) does not apply here; expected GET.",
                headers: [("Allow", "GET")])
        }
        guard tokens(request, "Upgrade").contains(where: { $0.lowercased() == "websocket" }) else {
            throw Problem(
                status: 426, code: "upgrade_required", detail: "this is a WebSocket; expected Upgrade: websocket.",
                headers: [("Upgrade", "websocket")])
        }
        guard request.head.minorVersion == 1, request.head.keepsAlive, !request.head.hasBody else {
            throw refusal("the handshake is a GET in HTTP/1.1 without a body, on a connection that stays open")
        }
        guard tokens(request, "Connection").contains(where: { $0.lowercased() == "upgrade" }) else {
            throw refusal("Connection is '\(request.header("Connection") ?? "")'; expected Upgrade")
        }
        let versions = request.headers("Sec-WebSocket-Version")
        guard versions == ["13"] else {
            throw Problem(
                status: 426, code: "unsupported_websocket_version",
                detail: "Sec-WebSocket-Version is '\(versions.joined(separator: ", "))'; expected 13.",
                headers: [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")])
        }
        let keys = request.headers("Sec-WebSocket-Key")
        guard keys.count == 1, isKey(keys[0]) else {
            throw refusal("Sec-WebSocket-Key is no Base64 of 16 bytes, given once")
        }
        return keys[0]
    }

    /// Whether it encodes 16 bytes, in either alphabet, with padding or without, and whatever the left-over bits are: it is no secret, but given back
    /// as it came.
    private static func isKey(_ text: String) -> Bool {
        var digits = Bytes(text.utf8)
        if digits.count == 24, digits.suffix(2).allSatisfy({ $0 == UInt8(ascii: "=") }) { digits.removeLast(2) }
        guard digits.count == 22 else { return false }
        let isPlain = Base64.decode(digits.dropLast().text + "A") != nil
        return isPlain && Base64.decode(digits.suffix(1).text + "AAA") != nil
            || Base64.decodeURL(digits.dropLast().text + "A") != nil && Base64.decodeURL(digits.suffix(1).text + "AAA") != nil
    }

    private static func refusal(_ detail: String) -> Problem { Problem(status: 400, code: "invalid_handshake", detail: detail + ".") }

    /// The elements of a field that is a list.
    private static func tokens(_ request: HTTPRequest, _ name: String) -> [String] {
        request.headers(name).flatMap { value in
            value.utf8.split(separator: UInt8(ascii: ",")).map { element in
                let isBlank = { (byte: UInt8) in byte == 0x20 || byte == 0x09 }
                let start = element.drop(while: isBlank)
                return String(Substring(start.prefix(start.count - start.reversed().prefix(while: isBlank).count)))
            }
        }
    }

    private static func acceptance(of key: String) -> String {
        var text = Bytes()
        Base64.encode(SHA1.digest(Bytes((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").utf8)), to: &text)
        return text.text
    }
}

/// Writes frames as a server does: unmasked, each message in one (RFC 6455, section 5.2).
enum WebSocketFrame {
    enum Opcode: UInt8 { case text = 1, close = 8, ping, pong }

    static func writeHead(_ opcode: Opcode, byteCount: Int, to output: inout Bytes) {
        output.append(0x80 | opcode.rawValue)
        if byteCount < 126 {
            output.append(UInt8(byteCount))
        } else if byteCount <= UInt16.max {
            output.append(126)
            output.append(bigEndian: UInt16(byteCount))
        } else {
            output.append(127)
            output.append(bigEndian: UInt64(byteCount))
        }
    }

    /// A close frame holds 123 bytes of reason; a character is not cut.
    static func reason(_ text: String) -> Bytes {
        var bytes = Bytes()
        for character in text {
            guard bytes.count + character.utf8.count <= 123 else { break }
            bytes.append(contentsOf: character.utf8)
        }
        return bytes
    }
}
