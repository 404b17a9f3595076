internal import CUV

/// A copy of the bytes that libuv sends once the socket is writable.
struct SocketWrite {
    let request: UnsafeMutablePointer<uv_write_t>
    let buffer: UnsafeMutableRawBufferPointer
    var byteCount: Int { buffer.count }

    /// The bytes handed to libuv at a time: enough to hear when the socket is writable again; the rest is sent from the queue. A peer that has
    /// stopped reading keeps that much.
    private static let bytesMax = 4 << 10

    /// Copies the front of a queue.
    init(copyOf queue: OutputQueue) {
        let count = min(queue.byteCount, SocketWrite.bytesMax)
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 1)
        var filled = 0
        queue.withBuffers { buffers in
            for piece in buffers where filled < count {
                let part = min(Int(piece.len), count - filled)
                (copy.baseAddress! + filled).copyMemory(from: piece.base, byteCount: part)
                filled += part
            }
        }
        request = .allocate(capacity: 1)
        buffer = UnsafeMutableRawBufferPointer(rebasing: copy[..<filled])
    }

    func deallocate() {
        request.deallocate()
        buffer.deallocate()
    }
}

extension HTTPConnection {
    var stream: UnsafeMutablePointer<uv_stream_t> {
        UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_stream_t.self)
    }

    func scheduleFlush() {
        guard !isFlushScheduled, !isClosed else { return }
        isFlushScheduled = true
        listener.scheduleFlush(self)
    }

    /// Sends what is queued, as far as the socket takes it.
    func flush() {
        isFlushScheduled = false
        guard !isClosed else { return }
        if let tls { return flushSealed(tls) }
        while !output.isEmpty, writing == nil {
            let count = output.withBuffers { uv_try_write(stream, $0.baseAddress, UInt32($0.count)) }
            if count > 0 {
                output.drop(Int(count))
                writeMark = listener.milliseconds
            } else if count == UV_EAGAIN.rawValue {
                let write = SocketWrite(copyOf: output)
                output.drop(write.byteCount)
                park(write)
            } else {
                return close()
            }
        }
        flushed()
    }

    /// Waits for the socket to become writable, the way libuv offers: with a write.
    func park(_ write: SocketWrite) {
        writing = write
        // The connection outlives the request: libuv answers every write before the close callback.
        write.request.pointee.data = Unmanaged.passUnretained(self).toOpaque()
        var buffer = uv_buf_init(write.buffer.baseAddress!.assumingMemoryBound(to: CChar.self), UInt32(write.byteCount))
        let status = uv_write(write.request, stream, &buffer, 1) { request, status in
            let connection = Unmanaged<HTTPConnection>.fromOpaque(request!.pointee.data).takeUnretainedValue()
            connection.unparked(status)
        }
        if status != 0 {
            writing = nil
            write.deallocate()
            close()
        }
    }

    private func unparked(_ status: Int32) {
        writing?.deallocate()
        writing = nil
        guard !isClosed else { return }
        guard status == 0 else { return close() }
        writeMark = listener.milliseconds
        scheduleFlush()
    }
}
