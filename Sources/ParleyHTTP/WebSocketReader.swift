internal import CWslay
internal import ParleySystem

/// Reads what a client sends over a WebSocket (RFC 6455): wslay parses and unmasks the frames; here they become messages and are checked.
///
/// Holds at most one message of the size it takes.
final class WebSocketReader {
    enum Event: Equatable {
        case text(Bytes)
        case ping(Bytes)
        case pong
        /// - Parameter code: `nil` when the frame has none.
        case close(code: Int?)
    }

    let messageBytesMax: Int
    private let context: OpaquePointer
    /// The input that wslay has not taken yet; it reads from here through its callback.
    private let input: UnsafeMutablePointer<UnsafeRawBufferPointer>
    private var message = Bytes()
    /// Whether the first frame of a message has come, and the last has not.
    private var isInMessage = false
    private var control = Bytes()
    /// Bytes of the current frame that are still to come; `nil` between frames.
    private var remaining: UInt64?
    private var heads = WebSocketHeads()

    /// Bytes of a message that is not complete.
    var heldBytes: Int { message.count }

    init(messageBytesMax: Int) {
        self.messageBytesMax = messageBytesMax
        input = .allocate(capacity: 1)
        input.initialize(to: UnsafeRawBufferPointer(start: nil, count: 0))
        var callbacks = wslay_frame_callbacks()
        callbacks.recv_callback = { buffer, count, _, input in
            let input = input!.assumingMemoryBound(to: UnsafeRawBufferPointer.self)
            let taken = min(count, input.pointee.count)
            guard taken > 0 else { return -1 }
            buffer!.update(from: input.pointee.baseAddress!.assumingMemoryBound(to: UInt8.self), count: taken)
            input.pointee = UnsafeRawBufferPointer(rebasing: input.pointee[taken...])
            return taken
        }
        var made: OpaquePointer?
        let status = wslay_frame_context_init(&made, &callbacks, input)
        guard status == 0, let made else { preconditionFailure("wslay_frame_context_init failed: \(status)") }
        context = made
    }

    deinit {
        wslay_frame_context_free(context)
        input.deallocate()
    }

    /// Takes the next bytes and calls `visit` for each message and control frame that they complete, until it returns false.
    ///
    /// - Returns: how many were taken; the rest must be given again before others.
    /// - Throws: why the connection must be closed. The reader is of no use after that.
    @discardableResult
    func feed(_ bytes: UnsafeRawBufferPointer, _ visit: (Event) -> Bool) throws(WebSocketError) -> Int {
        input.pointee = bytes
        defer { input.pointee = UnsafeRawBufferPointer(start: nil, count: 0) }
        while true {
            var piece = wslay_frame_iocb()
            let count = wslay_frame_recv(context, &piece)
            if count == Int(WSLAY_ERR_WANT_READ.rawValue) {
                heads.pass(bytes[...])
                // wslay reports a frame only with the byte behind its head, for which a peer could make us wait.
                if remaining == nil, let head = heads.open { try begin(head) }
                return bytes.count
            }
            guard count >= 0 else {
                throw .violation(
                    "the frame's head breaks RFC 6455: a control frame in pieces or above 125 bytes, or a length not in its shortest form")
            }
            if let event = try take(piece), !visit(event) {
                let used = bytes.count - input.pointee.count
                heads.pass(bytes.prefix(used))
                return used
            }
        }
    }

    /// - Returns: the event that the piece completes.
    private func take(_ piece: wslay_frame_iocb) throws(WebSocketError) -> Event? {
        if remaining == nil { try begin(WebSocketHead(piece)) }
        let bytes = UnsafeRawBufferPointer(start: piece.data, count: piece.data_length)
        let isControl = piece.opcode & 8 != 0
        if isControl { control.append(contentsOf: bytes) } else { message.append(contentsOf: bytes) }
        remaining! -= UInt64(bytes.count)
        guard remaining == 0 else { return nil }
        remaining = nil
        if isControl {
            defer { control = [] }
            return try controlEvent(piece.opcode)
        }
        guard piece.fin != 0 else { return nil }
        isInMessage = false
        defer { message = [] }
        guard WebSocketReader.isUTF8(message) else { throw .illFormedText("the message is not well-formed UTF-8") }
        return .text(message)
    }

    /// Checks the head of a frame.
    private func begin(_ head: WebSocketHead) throws(WebSocketError) {
        guard head.isMasked else { throw .violation("a frame is not masked; a client masks each one") }
        guard !head.hasReservedBits else { throw .violation("a reserved bit is set, but no extension was agreed on") }
        switch head.opcode {
        case 0: guard isInMessage else { throw .violation("a continuation comes without a message to continue") }
        case 1, 2:
            guard !isInMessage else { throw .violation("a message begins inside another") }
            guard head.opcode == 1 else { throw .unsupported("the message is binary; expected JSON text") }
            isInMessage = true
        case 8, 9, 10: return remaining = head.byteCount
        default: throw .violation("opcode \(head.opcode) means nothing")
        }
        guard head.byteCount <= UInt64(messageBytesMax - message.count) else {
            throw .tooLarge("the message has more than \(messageBytesMax) bytes")
        }
        remaining = head.byteCount
    }

    private func controlEvent(_ opcode: UInt8) throws(WebSocketError) -> Event {
        if opcode == 9 { return .ping(control) }
        if opcode == 10 { return .pong }
        if control.isEmpty { return .close(code: nil) }
        guard control.count >= 2 else { throw .violation("the close frame's code is cut off") }
        let code = Int(control.readBigEndian(at: 0, as: UInt16.self))
        guard WebSocketReader.isCloseCode(code) else { throw .violation("close code \(code) is none to be sent") }
        guard WebSocketReader.isUTF8(Bytes(control[2...])) else {
            throw .illFormedText("the close frame's reason is not well-formed UTF-8")
        }
        return .close(code: code)
    }

    /// The codes that RFC 6455, section 7.4, and the registry let a peer send.
    private static func isCloseCode(_ code: Int) -> Bool {
        switch code {
        case 1_000...1_003, 1_007...1_014, 3_000...4_999: true
        default: false
        }
    }

    private static func isUTF8(_ bytes: Bytes) -> Bool {
        do { _ = try UTF8Span(validating: bytes.span) } catch { return false }
        return true
    }
}

extension WebSocketHead {
    fileprivate init(_ piece: wslay_frame_iocb) {
        (opcode, hasReservedBits, isMasked, byteCount) = (piece.opcode, piece.rsv != 0, piece.mask != 0, piece.payload_length)
    }
}

/// Why a WebSocket must be closed.
struct WebSocketError: Error, Equatable {
    /// The code of the close frame: RFC 6455, section 7.4.
    var code: Int
    var reason: String

    static func violation(_ reason: String) -> WebSocketError { WebSocketError(code: 1_002, reason: reason) }
    static func unsupported(_ reason: String) -> WebSocketError { WebSocketError(code: 1_003, reason: reason) }
    static func illFormedText(_ reason: String) -> WebSocketError { WebSocketError(code: 1_007, reason: reason) }
    static func tooLarge(_ reason: String) -> WebSocketError { WebSocketError(code: 1_009, reason: reason) }
}
