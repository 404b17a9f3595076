internal import CUV
internal import Glibc
internal import ParleySystem

/// The way through TLS, for connections that have it; the others never come here.
extension HTTPConnection {
    /// How much is sealed ahead of what the socket takes.
    private static let sealedBytesMax = 64 << 10

    /// Takes what the socket gave.
    func receivedSealed(_ input: UnsafeRawBufferPointer, _ tls: TLSSession) {
        guard !isLingering else { return }
        tls.feed(input)
        unseal(tls)
    }

    /// Gives on what can be read, as long as requests are taken; the rest waits in the session.
    func unseal(_ tls: TLSSession) {
        while !isClosed, takesInput {
            switch tls.read(into: listener.plainBuffer) {
            case .bytes(let count): received(UnsafeRawBufferPointer(rebasing: listener.plainBuffer[..<count]))
            case .needsMore:
                if !tls.wire.isEmpty { scheduleFlush() }
                return
            case .ended: return receivedEnd()
            case .isPlain:
                tls.wire = OutputQueue()
                tls.wire.append(HTTPConnection.answerToPlain)
                sendRest(tls)
                return close()
            case .failed:
                sendRest(tls)  // The alert that says why.
                return close()
            }
        }
        if !isClosed, !tls.wire.isEmpty { scheduleFlush() }
    }

    /// The unencrypted answer to a client that sent a request without TLS.
    private static let answerToPlain: Bytes = {
        let body = Problem(status: 400, code: "tls_required", detail: "this port speaks TLS; use https:// instead of http://.").body
        let head =
            "HTTP/1.1 400 Bad Request\r\nContent-Type: \(Problem.contentType)\r\nContent-Length: \(body.count)\r\nConnection: close"
        return Bytes("\(head)\r\n\r\n".utf8) + body
    }()

    /// As ``unseal(_:)``, later: the connection may have gone.
    func unsealRest(_ tls: TLSSession) { if !isClosed { unseal(tls) } }

    /// Seals what is queued and sends it, as far as the socket takes it.
    func flushSealed(_ tls: TLSSession) {
        while writing == nil {
            while !output.isEmpty, tls.wire.byteCount < HTTPConnection.sealedBytesMax {
                let count = output.withBuffers { tls.write(UnsafeRawBufferPointer(start: $0[0].base, count: Int($0[0].len))) }
                guard count > 0 else { return close() }
                output.drop(count)
            }
            guard !tls.wire.isEmpty else { break }
            let count = tls.wire.withBuffers { uv_try_write(stream, $0.baseAddress, UInt32($0.count)) }
            if count > 0 {
                tls.wire.drop(Int(count))
                writeMark = listener.milliseconds
            } else if count == UV_EAGAIN.rawValue {
                let write = SocketWrite(copyOf: tls.wire)
                tls.wire.drop(write.byteCount)
                park(write)
            } else {
                return close()
            }
        }
        flushed()
    }

    /// Tells the peer that nothing more comes, if there is room for it: a cut and an end look different to it.
    func sendEnd(_ tls: TLSSession) {
        guard writing == nil, output.isEmpty, tls.wire.isEmpty else { return }
        tls.end()
        sendRest(tls)
    }

    private func sendRest(_ tls: TLSSession) {
        guard writing == nil, !tls.wire.isEmpty else { return }
        _ = tls.wire.withBuffers { uv_try_write(stream, $0.baseAddress, UInt32($0.count)) }
        tls.wire = OutputQueue()
    }
}
