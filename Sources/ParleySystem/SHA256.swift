internal import COpenSSL

/// SHA-256 (FIPS 180-4) by OpenSSL.
package enum SHA256 {
    /// The 32-byte digest of `bytes`.
    package static func digest(_ bytes: Bytes) -> Bytes {
        var output = Bytes(repeating: 0, count: 32)
        var length: UInt32 = 0
        let status = EVP_Digest(bytes, bytes.count, &output, &length, EVP_sha256(), nil)
        precondition(status == 1 && length == 32, "EVP_Digest(sha256) failed: status \(status), length \(length)")
        return output
    }

    /// The digest of `bytes` as 64 hexadecimal digits.
    package static func hex(_ bytes: Bytes) -> String { hexadecimal(digest(bytes)) }
}

/// HMAC with SHA-256 (RFC 2104) by OpenSSL.
package enum HMACSHA256 {
    /// The 32-byte code that only a holder of `key` can compute for `bytes`.
    package static func code(_ bytes: Bytes, key: Bytes) -> Bytes {
        var output = Bytes(repeating: 0, count: 32)
        var length: UInt32 = 0
        let result = HMAC(EVP_sha256(), key, Int32(key.count), bytes, bytes.count, &output, &length)
        precondition(result != nil && length == 32, "HMAC(sha256) failed: length \(length)")
        return output
    }
}
