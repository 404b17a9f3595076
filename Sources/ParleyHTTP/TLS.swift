internal import COpenSSL
internal import ParleySystem
internal import Synchronization

/// A server's certificate and private key, which can be replaced while it serves. Thread-safe.
package final class TLSIdentity: Sendable {
    package let certificateFile: String
    package let keyFile: String
    private let context: Mutex<TLSContext>

    /// - Parameters:
    ///   - certificateFile: PEM: the certificate, and behind it those that lead to the root.
    ///   - keyFile: PEM: its private key, without a passphrase.
    /// - Throws: ``TLSError`` that names the file and OpenSSL's reason.
    package init(certificateFile: String, keyFile: String) throws(TLSError) {
        (self.certificateFile, self.keyFile) = (certificateFile, keyFile)
        context = Mutex(try TLSContext(certificateFile, keyFile))
    }

    /// Reads the files again: connections from now on get the new certificate. If the files are wrong, the old one stays.
    package func reload() throws(TLSError) {
        let fresh = try TLSContext(certificateFile, keyFile)
        context.withLock { $0 = fresh }
    }

    /// The hosts and addresses that the certificate names.
    package var names: [String] { context.withLock { $0 }.names }

    /// Whether a client that reaches the server as `host` accepts the certificate's name.
    package func covers(_ host: String) -> Bool { context.withLock { $0 }.covers(host) }

    /// Whether the certificate was signed with its own key, so that clients trust it only if they have it.
    package var isSelfSigned: Bool { context.withLock { $0 }.isSelfSigned }

    /// The state of a new connection; `nil` when there is no memory for it.
    func session() -> TLSSession? { context.withLock { $0 }.session() }
}

/// A problem with a certificate or a key.
package struct TLSError: Error, Sendable, CustomStringConvertible {
    package var message: String
    package var description: String { message }
}

/// OpenSSL's `SSL_CTX`.
private final class TLSContext: @unchecked Sendable {  // Guard: not changed after it was made; OpenSSL counts its references.
    private let handle: OpaquePointer

    init(_ certificateFile: String, _ keyFile: String) throws(TLSError) {
        ERR_clear_error()
        guard let handle = parley_tls_context() else { throw TLSError(message: "TLS cannot be set up: \(TLSContext.reason)") }
        self.handle = handle
        guard SSL_CTX_use_certificate_chain_file(handle, certificateFile) == 1 else {
            throw TLSError(message: "the certificate cannot be read from \(certificateFile): \(TLSContext.reason)")
        }
        guard SSL_CTX_use_PrivateKey_file(handle, keyFile, SSL_FILETYPE_PEM) == 1 else {
            throw TLSError(
                message: "the private key cannot be read from \(keyFile), or belongs to another certificate: \(TLSContext.reason)")
        }
        guard SSL_CTX_check_private_key(handle) == 1 else {
            throw TLSError(message: "the private key in \(keyFile) is not that of the certificate in \(certificateFile)")
        }
    }

    deinit { SSL_CTX_free(handle) }

    func session() -> TLSSession? {
        guard let ssl = SSL_new(handle) else { return nil }
        return TLSSession(owning: ssl)
    }

    // The certificate belongs to the handle.
    private var certificate: OpaquePointer? { SSL_CTX_get0_certificate(handle) }

    var names: [String] {
        var names: [String] = []
        for index in 0..<TLSContext.namesMax {
            var text = Bytes(repeating: 0, count: 256)
            let length = text.withUnsafeMutableBufferPointer { buffer in
                buffer.withMemoryRebound(to: CChar.self) { parley_x509_name(certificate, CInt(index), $0.baseAddress, CInt($0.count)) }
            }
            guard length >= 0 else { break }
            if length > 0 { names.append(String(decoding: text[..<Int(length)], as: UTF8.self)) }
        }
        return names
    }

    /// Only so many names are shown or tried.
    private static let namesMax = 100

    func covers(_ host: String) -> Bool {
        X509_check_ip_asc(certificate, host, 0) == 1 || X509_check_host(certificate, host, host.utf8.count, 0, nil) == 1
    }

    var isSelfSigned: Bool { parley_x509_is_self_signed(certificate) == 1 }

    private static var reason: String {
        let code = ERR_get_error()
        defer { ERR_clear_error() }
        // Codes of the system have this bit, and no text of OpenSSL's.
        if code & 0x8000_0000 != 0 { return String(cString: strerror(CInt(code & 0x7fff_ffff))) }
        return ERR_reason_error_string(code).map { String(cString: $0) } ?? "error \(code)"
    }
}

/// The TLS of one connection, between the bytes of the socket and those of HTTP. Belongs to the connection's loop.
final class TLSSession {
    enum Read {
        case bytes(Int)
        case needsMore
        /// The peer has said that nothing more comes.
        case ended
        /// The peer speaks HTTP without TLS.
        case isPlain
        case failed
    }

    private let ssl: OpaquePointer
    private let incoming: OpaquePointer
    private let outgoing: OpaquePointer
    /// The encrypted bytes to be sent.
    var wire = OutputQueue()

    /// A record's payload: more in one call would be cut by OpenSSL, and be held twice meanwhile.
    private static let recordBytes = 16 << 10

    fileprivate init?(owning ssl: OpaquePointer) {
        guard let incoming = BIO_new(BIO_s_mem()), let outgoing = BIO_new(BIO_s_mem()) else {
            SSL_free(ssl)
            return nil
        }
        (self.ssl, self.incoming, self.outgoing) = (ssl, incoming, outgoing)
        SSL_set_bio(ssl, incoming, outgoing)  // Frees both with itself.
        SSL_set_accept_state(ssl)
    }

    deinit { SSL_free(ssl) }

    /// Bytes of the peer that have not been read.
    var heldBytes: Int { Int(parley_bio_pending(incoming)) }

    /// Whether the handshake is over.
    var isEstablished: Bool { SSL_is_init_finished(ssl) == 1 }

    /// Takes bytes from the socket.
    func feed(_ bytes: UnsafeRawBufferPointer) { BIO_write(incoming, bytes.baseAddress, Int32(bytes.count)) }

    /// Gives what was received, and continues with the handshake.
    func read(into buffer: UnsafeMutableRawBufferPointer) -> Read {
        ERR_clear_error()
        let count = SSL_read(ssl, buffer.baseAddress, Int32(buffer.count))
        defer { collect() }
        if count > 0 { return .bytes(Int(count)) }
        return switch SSL_get_error(ssl, count) {
        case SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE: .needsMore
        case SSL_ERROR_ZERO_RETURN: .ended
        case _ where parley_tls_got_http() != 0: .isPlain
        default: .failed
        }
    }

    /// Seals up to a record of `bytes`.
    /// - Returns: How many bytes were taken; 0: the connection is broken.
    func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        ERR_clear_error()
        let count = SSL_write(ssl, bytes.baseAddress, Int32(min(bytes.count, TLSSession.recordBytes)))
        collect()
        return max(0, Int(count))
    }

    /// Says that nothing more comes from here.
    func end() {
        guard isEstablished else { return }
        ERR_clear_error()
        SSL_shutdown(ssl)
        collect()
        ERR_clear_error()
    }

    /// Moves what OpenSSL wants to send to ``wire``.
    private func collect() {
        var pending = Int(parley_bio_pending(outgoing))
        while pending > 0 {
            let count = wire.fill(pending) { Int(BIO_read(outgoing, $0.baseAddress, Int32($0.count))) }
            guard count > 0 else { return }
            pending -= count
        }
    }
}
