internal import Glibc
internal import ParleyChannels
package import ParleyLog
package import ParleySystem

/// The keys that notifications of subscriptions are signed with: one that signs, and those whose signatures may still be in flight.
///
/// They are files of a folder, `<name>.pem`: the private key whose name is last signs, and the public part of every key, private or public, is
/// published. So a key is replaced by putting a file beside it, and withdrawn by removing its file.
package struct SigningKeys: Sendable {
    /// One of the published keys.
    struct Key: Sendable {
        let id: String
        let publicKey: Bytes

        /// The id is the key's thumbprint (RFC 7638): it needs no choosing, and it stays.
        init(_ publicKey: Bytes) {
            self.publicKey = publicKey
            let thumbprint = JSON.object([
                .init("crv", "Ed25519"), .init("kty", "OKP"), .init("x", .string(Base64.encodeURL(publicKey))),
            ])
            id = "ds_" + Base64.encodeURL(SHA256.digest(thumbprint.canonical))
        }
    }

    let keys: [Key]
    /// Makes the tokens by which receivers call back.
    package let tokenKey: Bytes
    private let signing: Ed25519

    /// A new key, which is nowhere kept.
    package init() { self.init(signing: Ed25519(), others: [], tokenKey: Ed25519().seed) }

    init(signing: Ed25519, others: [Bytes], tokenKey: Bytes) {
        (self.signing, self.tokenKey) = (signing, tokenKey)
        keys = [Key(signing.publicKey)] + others.filter { $0 != signing.publicKey }.map { Key($0) }
    }

    /// The id of the key that signs.
    package var activeID: String { keys[0].id }

    /// The published keys as a JWK Set (RFC 7517, RFC 8037).
    package var jwks: JSON {
        .object([
            .init(
                "keys",
                .array(
                    keys.map { key in
                        [
                            "kty": "OKP", "crv": "Ed25519", "kid": .string(key.id), "use": "sig", "alg": "EdDSA",
                            "x": .string(Base64.encodeURL(key.publicKey)),
                        ]
                    }))
        ])
    }

    /// The value of `Webhook-Signature` for a body sent now.
    package func signature(of body: Bytes, at now: Timestamp) -> String {
        let seconds = now.milliseconds / 1_000
        let signature = signing.sign(Bytes("\(seconds).".utf8) + body)
        return "t=\(seconds),kid=\(activeID),ed25519=\(Base64.encodeURL(signature))"
    }
}

// MARK: - Files

extension SigningKeys {
    /// Reads the keys of a folder, and makes the first one where there is none.
    ///
    /// - Throws: ``LogError`` with code `data_folder_inaccessible` or `data_damaged`, naming the file.
    package static func load(_ folder: String) throws(LogError) -> SigningKeys {
        guard mkdir(folder, 0o700) == 0 || errno == EEXIST else { throw failure("cannot create the folder", folder) }
        var names = try names(in: folder).filter { $0.hasSuffix(".pem") }.sorted()
        var hasPrivate = false
        for name in names where try privateKey(folder + "/" + name) != nil { hasPrivate = true }
        if !hasPrivate {
            let first = "0001.pem"
            guard !names.contains(first) else {
                throw LogError(.damaged, "'\(folder)' has public keys only. Add a private one: openssl genpkey -algorithm ed25519")
            }
            try write(pem(Ed25519()), to: first, in: folder)
            names = [first] + names
        }
        var (signing, published): (Ed25519?, [Bytes]) = (nil, [])
        for name in names.reversed() {
            let file = folder + "/" + name
            if let key = try privateKey(file) {
                if signing == nil { signing = key }
                published.append(key.publicKey)
            } else if let key = publicKey(try read(file)) {
                published.append(key)
            } else {
                throw LogError(.damaged, "'\(file)' is no key. Make one with: openssl genpkey -algorithm ed25519")
            }
        }
        return SigningKeys(signing: signing!, others: published, tokenKey: try tokenKey(folder))
    }

    private static func tokenKey(_ folder: String) throws(LogError) -> Bytes {
        let (name, file) = ("tokens.key", folder + "/tokens.key")
        if access(file, F_OK) != 0 {
            var text = Bytes()
            Base64.encode(Ed25519().seed, to: &text)
            try write(text.text + "\n", to: name, in: folder)
        }
        let lines = try read(file).split(whereSeparator: \.isNewline)
        guard let key = lines.first.flatMap({ Base64.decode($0) }), key.count == 32 else {
            throw LogError(.damaged, "'\(file)' is not the Base64 of 32 bytes. Remove it; wakes in flight then start over")
        }
        return key
    }

    /// The bytes before the key in PKCS #8 and in SubjectPublicKeyInfo (RFC 8410).
    private static let privatePrefix: Bytes = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ]
    private static let publicPrefix: Bytes = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00]

    private static func pem(_ key: Ed25519) -> String {
        var text = Bytes()
        Base64.encode(privatePrefix + key.seed, to: &text)
        return "-----BEGIN PRIVATE KEY-----\n\(text.text)\n-----END PRIVATE KEY-----\n"
    }

    private static func privateKey(_ file: String) throws(LogError) -> Ed25519? {
        decode(try read(file), "PRIVATE KEY", privatePrefix).flatMap { Ed25519(seed: $0) }
    }

    private static func publicKey(_ text: String) -> Bytes? { decode(text, "PUBLIC KEY", publicPrefix) }

    private static func decode(_ text: String, _ label: String, _ prefix: Bytes) -> Bytes? {
        let lines = text.split(whereSeparator: \.isNewline).map { String($0).trimmingSpaces }
        guard lines.first == "-----BEGIN \(label)-----", lines.last == "-----END \(label)-----",
            let bytes = Base64.decode(lines.dropFirst().dropLast().joined()), bytes.starts(with: prefix), bytes.count == prefix.count + 32
        else { return nil }
        return Bytes(bytes.dropFirst(prefix.count))
    }

    private static func names(in folder: String) throws(LogError) -> [String] {
        guard let open = opendir(folder) else { throw failure("cannot read the folder", folder) }
        defer { closedir(open) }
        var names: [String] = []
        while let entry = readdir(open) {
            names.append(withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
        }
        return names
    }

    private static func read(_ file: String) throws(LogError) -> String {
        let fd = open(file, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw failure("cannot open", file) }
        defer { close(fd) }
        var buffer = Bytes(repeating: 0, count: 4_096)
        let count = Glibc.read(fd, &buffer, buffer.count)
        guard count >= 0 else { throw failure("cannot read", file) }
        return Bytes(buffer.prefix(count)).text
    }

    /// Writes a file for its owner only, which is afterwards there as a whole or not at all: a key that was published must not be lost.
    private static func write(_ text: String, to name: String, in folder: String) throws(LogError) {
        let (new, file) = ("\(folder)/.\(name).new", "\(folder)/\(name)")
        unlink(new)
        let fd = open(new, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw failure("cannot create", new) }
        let bytes = Bytes(text.utf8)
        let isWritten = Glibc.write(fd, bytes, bytes.count) == bytes.count && fsync(fd) == 0
        close(fd)
        guard isWritten, rename(new, file) == 0 else { throw failure("cannot write", file) }
        let directory = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw failure("cannot open the folder", folder) }
        defer { close(directory) }
        guard fsync(directory) == 0 else { throw failure("cannot sync the folder", folder) }
    }

    private static func failure(_ what: String, _ path: String) -> LogError {
        LogError(.inaccessible, "\(what) '\(path)': \(String(cString: strerror(errno)))")
    }
}
