internal import CUV
internal import ParleySystem

/// Bytes on their way to a socket: small pieces are joined, large ones are kept as they are and shared.
struct OutputQueue {
    private struct Segment {
        var bytes: Bytes
        /// Its share of the server's memory until it has been sent.
        var room: MemoryReservation?
    }

    private var segments: [Segment] = []
    /// The segments before it have been sent.
    private var first = 0
    /// How much of the first segment has been sent.
    private var sent = 0
    private(set) var byteCount = 0
    /// Whether the last segment is ours to append to, rather than shared with its giver.
    private var lastIsOpen = false

    /// From here on an entry in a gathered write is cheaper than a copy.
    private static let shareBytesMin = 2_048
    /// An open segment is closed at this size, so that growing it stays cheap.
    private static let openBytesMax = 32 << 10

    var isEmpty: Bool { byteCount == 0 }

    /// Lets `build` append to the open segment: for heads, framing and small pieces.
    mutating func build(_ build: (inout Bytes) -> Void) {
        if !lastIsOpen || segments[segments.count - 1].bytes.count > OutputQueue.openBytesMax {
            segments.append(Segment(bytes: []))
            lastIsOpen = true
        }
        let before = segments[segments.count - 1].bytes.count
        build(&segments[segments.count - 1].bytes)
        byteCount += segments[segments.count - 1].bytes.count - before
    }

    /// Lets `body` write up to `count` bytes into a segment of its own, and say how many it has written.
    /// - Returns: That number.
    mutating func fill(_ count: Int, _ body: (UnsafeMutableRawBufferPointer) -> Int) -> Int {
        let bytes = Bytes(unsafeUninitializedCapacity: count) { buffer, filled in
            filled = max(0, body(UnsafeMutableRawBufferPointer(buffer)))
        }
        append(bytes)
        return bytes.count
    }

    /// - Parameter room: Their share of the server's memory; given back when they have been sent.
    mutating func append(_ bytes: Bytes, _ room: MemoryReservation? = nil) {
        if bytes.count < OutputQueue.shareBytesMin {
            if !bytes.isEmpty { build { $0.append(contentsOf: bytes) } }
            return
        }
        segments.append(Segment(bytes: bytes, room: room))
        lastIsOpen = false
        byteCount += bytes.count
    }

    /// Queues what is left of a piece whose first `count` bytes have been sent already. The queue must be empty.
    mutating func append(_ bytes: Bytes, behind count: Int, _ room: MemoryReservation? = nil) {
        precondition(isEmpty && count < bytes.count, "only the rest of a piece that was begun can be queued like this")
        self = OutputQueue()
        segments.append(Segment(bytes: bytes, room: room))
        (sent, byteCount) = (count, bytes.count - count)
    }

    /// Moves everything from `other` behind what is here.
    mutating func append(_ other: consuming OutputQueue) {
        precondition(other.first == 0 && other.sent == 0, "a queue that is being sent cannot be moved")
        if isEmpty {
            self = other
        } else {
            for segment in other.segments { append(segment.bytes, segment.room) }
        }
    }

    /// Takes `count` bytes off the front: they have been sent.
    mutating func drop(_ count: Int) {
        byteCount -= count
        if byteCount == 0 {
            self = OutputQueue()  // An idle connection holds no buffers.
            return
        }
        var rest = count
        while rest > 0 {
            let left = segments[first].bytes.count - sent
            if rest < left {
                sent += rest
                return
            }
            rest -= left
            sent = 0
            segments[first] = Segment(bytes: [])
            first += 1
        }
        if first >= 64, first * 2 > segments.count {
            segments.removeFirst(first)
            first = 0
        }
    }

    /// Calls `body` with the front of the queue as buffers for one gathered write.
    func withBuffers<Result>(_ body: (UnsafeMutableBufferPointer<uv_buf_t>) -> Result) -> Result {
        withUnsafeTemporaryAllocation(of: uv_buf_t.self, capacity: 16) { buffers in
            gather(first, into: buffers, 0, body)
        }
    }

    /// One level of nesting per segment keeps all of them pinned during the call.
    private func gather<Result>(
        _ index: Int, into buffers: UnsafeMutableBufferPointer<uv_buf_t>, _ count: Int,
        _ body: (UnsafeMutableBufferPointer<uv_buf_t>) -> Result
    ) -> Result {
        guard index < segments.count, count < buffers.count else {
            return body(UnsafeMutableBufferPointer(rebasing: buffers[..<count]))
        }
        return segments[index].bytes.withUnsafeBytes { bytes in
            let rest = UnsafeRawBufferPointer(rebasing: bytes[(index == first ? sent : 0)...])
            guard let base = rest.baseAddress, rest.count > 0 else { return gather(index + 1, into: buffers, count, body) }
            let pointer = UnsafeMutableRawPointer(mutating: base).assumingMemoryBound(to: CChar.self)
            buffers[count] = uv_buf_init(pointer, UInt32(clamping: rest.count))
            return gather(index + 1, into: buffers, count + 1, body)
        }
    }
}
