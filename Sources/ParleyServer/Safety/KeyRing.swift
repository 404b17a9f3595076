internal import Glibc
internal import ParleyChannels
package import ParleySystem

/// A secret that lets its bearer do everything, and with which tokens are signed.
package struct Key: Sendable {
    package let name: String
    /// The digest that a presented secret is compared with; the secret itself is not kept.
    let digest: Bytes
    /// Signs tokens: another value than the digest, which could get into a core dump or a debugger together with the value it is compared with.
    package let signing: Bytes

    package static let secretBytes = 16...512

    /// - Throws: ``SafetyError`` that names the key and the rule, and never the secret.
    package init(name: String, secret: String) throws(SafetyError) {
        guard SafetyName(Bytes(name.utf8)) != nil else { throw SafetyName.wrong(name) }
        guard Key.secretBytes.contains(secret.utf8.count), secret.utf8.allSatisfy({ (0x21...0x7e).contains($0) }) else {
            throw SafetyError(
                "the secret of key '\(name)' has \(secret.utf8.count) bytes; expected \(Key.secretBytes.lowerBound) to \(Key.secretBytes.upperBound) visible ASCII characters. Make one with `openssl rand -hex 32`."
            )
        }
        guard !secret.hasPrefix("parley_") else {
            throw SafetyError("the secret of key '\(name)' begins like a token. Make another with `openssl rand -hex 32`.")
        }
        self.name = name
        digest = SHA256.digest(Bytes(secret.utf8))
        signing = HMACSHA256.code(Bytes("parley token v1".utf8), key: Bytes(secret.utf8))
    }
}

/// The keys of a server.
package struct KeyRing: Sendable {
    package private(set) var keys: [Key] = []

    package init() {}

    package var isEmpty: Bool { keys.isEmpty }

    /// Adds keys from text: `name:secret` each; empty items and those that begin with `#` are ignored.
    ///
    /// - Parameters:
    ///   - separator: The character between two: a line's end in a file, a comma in a variable.
    ///   - source: The source of the text, for messages.
    /// - Throws: ``SafetyError`` that names the source and which entry is wrong.
    package mutating func add(_ text: String, separator: Character, from source: String) throws(SafetyError) {
        for (number, part) in text.split(separator: separator, omittingEmptySubsequences: false).enumerated() {
            let entry = String(part).trimmingSpaces
            if entry.isEmpty || entry.hasPrefix("#") { continue }
            let place = "\(source), entry \(number + 1)"
            guard let colon = entry.firstIndex(of: ":") else {
                throw SafetyError("\(place): expected <name>:<secret>; there is no colon.")
            }
            do throws(SafetyError) {
                try add(try Key(name: String(entry[..<colon]), secret: String(entry[entry.index(after: colon)...])))
            } catch {
                throw SafetyError("\(place): \(error.message)")
            }
        }
    }

    package mutating func add(_ key: Key) throws(SafetyError) {
        guard !keys.contains(where: { $0.name == key.name }) else {
            throw SafetyError("there are two keys '\(key.name)'. A new secret needs a new name: it tells which key signed a token.")
        }
        keys.append(key)
    }

    /// Adds the keys of a file, which only its owner may read.
    package mutating func addFile(_ path: String) throws(SafetyError) {
        let text = try KeyRing.read(path)
        let before = keys.count
        try add(text, separator: "\n", from: path)
        guard keys.count > before else { throw SafetyError("\(path) has no keys; expected <name>:<secret>, one a line.") }
    }

    /// The text of a file with a secret in it.
    ///
    /// - Throws: ``SafetyError`` also when others than its owner may read it.
    package static func read(_ path: String) throws(SafetyError) -> String {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw SafetyError("cannot open \(path): \(String(cString: strerror(errno))).") }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { throw SafetyError("\(path) is not a file.") }
        guard status.st_mode & 0o077 == 0 else {
            let mode = String(status.st_mode & 0o777, radix: 8)
            throw SafetyError(
                "\(path) has mode \(mode), so users other than its owner could read the secrets in it. Try: chmod 600 \(path)")
        }
        guard status.st_size <= 1 << 20 else { throw SafetyError("\(path) has \(status.st_size) bytes; expected at most 1 MiB.") }
        var bytes = Bytes(repeating: 0, count: Int(status.st_size))
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        guard count == bytes.count, let text = String(validating: bytes, as: UTF8.self) else {
            throw SafetyError("\(path) cannot be read, or is not UTF-8.")
        }
        return text
    }

    /// The key with this secret. All are compared, so that the time says nothing about which.
    func key(secret: String) -> Key? {
        let digest = SHA256.digest(Bytes(secret.utf8))
        var found: Key?
        for key in keys where key.digest.equalsInConstantTime(digest) { found = key }
        return found
    }

    package func key(named name: String) -> Key? { keys.first { $0.name == name } }
}
