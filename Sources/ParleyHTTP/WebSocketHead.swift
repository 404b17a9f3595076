internal import ParleySystem

/// The head before a frame's payload (RFC 6455, section 5.2).
struct WebSocketHead {
    let opcode: UInt8
    let hasReservedBits: Bool
    let isMasked: Bool
    /// The payload's length as announced.
    let byteCount: UInt64

    /// - Returns: `nil` for less than a whole head.
    init?(_ bytes: Bytes) {
        guard bytes.count >= 2 else { return nil }
        (opcode, hasReservedBits, isMasked) = (bytes[0] & 0x0f, bytes[0] & 0x70 != 0, bytes[1] & 0x80 != 0)
        let short = bytes[1] & 0x7f
        let lengthBytes = short == 127 ? 8 : short == 126 ? 2 : 0
        guard bytes.count == 2 + lengthBytes + (isMasked ? 4 : 0) else { return nil }
        byteCount =
            switch lengthBytes {
            case 8: bytes.readBigEndian(at: 2, as: UInt64.self)
            case 2: UInt64(bytes.readBigEndian(at: 2, as: UInt16.self))
            default: UInt64(short)
            }
    }
}

/// Finds the heads of frames in what a client sends.
struct WebSocketHeads {
    /// The head of the frame whose payload has not come to its end.
    private(set) var open: WebSocketHead?
    /// The beginning of a head.
    private var bytes = Bytes()
    /// Bytes of the payload that are still to come.
    private var missing: UInt64 = 0

    mutating func pass(_ input: Slice<UnsafeRawBufferPointer>) {
        var rest = input
        while let byte = rest.first {
            if open != nil {
                let count = min(missing, UInt64(rest.count))
                missing -= count
                rest = rest.dropFirst(Int(count))
            } else {
                bytes.append(byte)
                rest = rest.dropFirst()
                guard let head = WebSocketHead(bytes) else { continue }
                bytes.removeAll(keepingCapacity: true)
                (open, missing) = (head, head.byteCount)
            }
            if missing == 0 { open = nil }
        }
    }
}
