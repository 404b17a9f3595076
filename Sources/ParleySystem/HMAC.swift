internal import COpenSSL

/// HMAC-SHA256 (RFC 2104) by OpenSSL.
package enum HMAC {
    package static let byteCount = 32

    /// The 32-byte code of `message` under `key`.
    package static func code(_ message: Bytes, key: Bytes) -> Bytes {
        var output = Bytes(repeating: 0, count: byteCount)
        var length: UInt32 = 0
        let result = parley_hmac_sha256(key, key.count, message, message.count, &output, &length)
        precondition(result == 1 && length == byteCount, "HMAC(sha256) failed: length \(length)")
        return output
    }
}

extension [UInt8] {
    /// Whether both are the same, in a time that says nothing about where they differ: for secrets.
    package func equalsInConstantTime(_ other: Bytes) -> Bool { count == other.count && CRYPTO_memcmp(self, other, count) == 0 }
}
