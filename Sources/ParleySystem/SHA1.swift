internal import COpenSSL

/// SHA-1 (FIPS 180-4) by OpenSSL: for the handshake of RFC 6455, which proves no identity; not for anything that must not be forged.
package enum SHA1 {
    /// The 20-byte digest of `bytes`.
    package static func digest(_ bytes: Bytes) -> Bytes {
        var output = Bytes(repeating: 0, count: 20)
        var length: UInt32 = 0
        let status = EVP_Digest(bytes, bytes.count, &output, &length, EVP_sha1(), nil)
        precondition(status == 1 && length == 20, "EVP_Digest(sha1) failed: status \(status), length \(length)")
        return output
    }
}
