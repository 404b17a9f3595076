internal import COpenSSL

/// A key pair for signatures by Ed25519 (RFC 8032), by OpenSSL.
package struct Ed25519: Sendable {
    /// The 32 bytes the private key is made of; a secret.
    package let seed: Bytes
    /// The 32 bytes of the public key.
    package let publicKey: Bytes

    package static let keyBytes = 32

    /// A new key of the system's randomness.
    package init() {
        var system = SystemRandomNumberGenerator()  // getrandom(2)
        let seed = (0..<Ed25519.keyBytes).map { _ in UInt8.random(in: .min ... .max, using: &system) }
        self.init(seed: seed)!  // 32 bytes are a key.
    }

    /// `nil` unless there are 32 bytes.
    package init?(seed: Bytes) {
        guard seed.count == Ed25519.keyBytes, let key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nil, seed, seed.count) else {
            return nil
        }
        defer { EVP_PKEY_free(key) }
        var publicKey = Bytes(repeating: 0, count: Ed25519.keyBytes)
        var count = publicKey.count
        guard EVP_PKEY_get_raw_public_key(key, &publicKey, &count) == 1, count == Ed25519.keyBytes else { return nil }
        (self.seed, self.publicKey) = (seed, publicKey)
    }

    /// The 64 bytes of the signature of `message`.
    package func sign(_ message: Bytes) -> Bytes {
        let key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nil, seed, seed.count)
        let context = EVP_MD_CTX_new()
        defer {
            EVP_MD_CTX_free(context)
            EVP_PKEY_free(key)
        }
        var signature = Bytes(repeating: 0, count: 64)
        var count = signature.count
        var status = EVP_DigestSignInit(context, nil, nil, nil, key)
        if status == 1 { status = EVP_DigestSign(context, &signature, &count, message, message.count) }
        precondition(status == 1 && count == 64, "EVP_DigestSign(ed25519) failed: status \(status), length \(count)")
        return signature
    }

    /// Whether `signature` is that of `message` by the holder of `publicKey`'s private key.
    package static func verifies(_ signature: Bytes, of message: Bytes, by publicKey: Bytes) -> Bool {
        guard publicKey.count == keyBytes, let key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nil, publicKey, publicKey.count) else {
            return false
        }
        let context = EVP_MD_CTX_new()
        defer {
            EVP_MD_CTX_free(context)
            EVP_PKEY_free(key)
        }
        return EVP_DigestVerifyInit(context, nil, nil, nil, key) == 1
            && EVP_DigestVerify(context, signature, signature.count, message, message.count) == 1
    }
}
