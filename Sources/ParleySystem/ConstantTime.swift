internal import COpenSSL

extension HMACSHA256 {
    package static let byteCount = 32
}

extension [UInt8] {
    /// Whether both are the same, in a time that says nothing about where they differ: for secrets.
    package func equalsInConstantTime(_ other: Bytes) -> Bool { count == other.count && CRYPTO_memcmp(self, other, count) == 0 }
}
