internal import CUV

/// A copy of the bytes that libuv sends once the socket is writable.
struct SocketWrite {
    let request: UnsafeMutablePointer<uv_write_t>
    let buffer: UnsafeMutableRawBufferPointer
    var byteCount: Int { buffer.count }

    func deallocate() {
        request.deallocate()
        buffer.deallocate()
    }
}

extension HTTPConnection {
    /// What is handed to libuv at a time: enough to hear when the socket is writable again; the rest goes out from the queue.
    private static let parkedBytesMax = 16 << 10

    private var stream: UnsafeMutablePointer<uv_stream_t> {
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
        while !output.isEmpty, writing == nil {
            let count = output.withBuffers { uv_try_write(stream, $0.baseAddress, UInt32($0.count)) }
            if count > 0 {
                output.drop(Int(count))
                writeMark = listener.milliseconds
            } else if count == UV_EAGAIN.rawValue {
                park()
            } else {
                return close()
            }
        }
        flushed()
    }

    /// Waits for the socket to become writable, the way libuv offers: with a write.
    private func park() {
        let count = min(output.byteCount, HTTPConnection.parkedBytesMax)
        let write = SocketWrite(request: .allocate(capacity: 1), buffer: .allocate(byteCount: count, alignment: 1))
        var filled = 0
        output.withBuffers { buffers in
            for piece in buffers where filled < count {
                let part = min(Int(piece.len), count - filled)
                (write.buffer.baseAddress! + filled).copyMemory(from: piece.base, byteCount: part)
                filled += part
            }
        }
        let parked = UnsafeMutableRawBufferPointer(rebasing: write.buffer[..<filled])
        writing = SocketWrite(request: write.request, buffer: parked)
        output.drop(filled)
        // The connection outlives the request: libuv answers every write before the close callback.
        write.request.pointee.data = Unmanaged.passUnretained(self).toOpaque()
        var buffer = uv_buf_init(parked.baseAddress!.assumingMemoryBound(to: CChar.self), UInt32(filled))
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
