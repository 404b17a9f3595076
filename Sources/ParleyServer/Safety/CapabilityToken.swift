package import ParleySystem

/// The rights of its bearer: signed by a key, complete in itself, and narrowed by any holder without asking the server.
///
/// It is a chain of blocks in the manner of macaroons. The first signature is made with the key, each further one with the signature before it, and
/// only the last one is in the token. So a holder can add a block, but cannot remove or change one. An added block can only take rights away:
/// something is allowed if every block allows it.
///
/// `parley_v1_` and the base64url (RFC 4648, without padding) of
///
///     key name: u8 length, UTF-8     which key signed it
///     blocks: each u16 length, then fields {tag u8, u16 length, value}, tags rising, only grants repeated
///         1 name      1 to 64 of [A-Za-z0-9._~@+-]; the first block has one
///         2 expires   u64, milliseconds since 1970; the first block has one
///         3 grant     u8 verbs, then the pattern; without one a block restricts only the time
///     signature: 32 bytes
package struct CapabilityToken: Sendable {
    package struct Block: Sendable, Hashable {
        package var name: String?
        package var expires: Timestamp?
        package var grants: [Grant] = []

        package init(name: String? = nil, expires: Timestamp? = nil, grants: [Grant] = []) {
            (self.name, self.expires, self.grants) = (name, expires, grants)
        }

        func allows(_ verb: Verb, _ channel: String) -> Bool {
            grants.isEmpty || grants.contains { $0.verbs.allow(verb) && $0.pattern.matches(channel) }
        }
    }

    /// The name of the key that signed it.
    package let keyName: String
    package private(set) var blocks: [Block]
    private var encodedBlocks: [Bytes]
    private var signature: Bytes

    package static let prefix = "parley_v1_"
    static let bytesMax = 4_096
    static let blocksMax = 8
    static let grantsMax = 32

    /// Signs a new token.
    ///
    /// - Parameter key: See ``Key/signing``.
    /// - Throws: ``SafetyError`` for a first block that is not complete, or a token that would be too large.
    package init(keyName: String, key: Bytes, _ block: Block) throws(SafetyError) {
        guard block.name != nil, block.expires != nil, !block.grants.isEmpty else {
            throw SafetyError("a token needs a name, an end and something that it allows.")
        }
        self.keyName = keyName
        (blocks, encodedBlocks) = ([], [])
        signature = HMACSHA256.code(CapabilityToken.label(keyName), key: key)
        try append(block)
    }

    /// The same token with fewer rights: those that `block` does not allow are gone, and its name is added behind the one there is.
    package func narrowed(_ block: Block) throws(SafetyError) -> CapabilityToken {
        var token = self
        try token.append(block)
        return token
    }

    private mutating func append(_ block: Block) throws(SafetyError) {
        guard blocks.count < CapabilityToken.blocksMax else {
            throw SafetyError("the token was narrowed \(blocks.count - 1) times; the limit is \(CapabilityToken.blocksMax - 1).")
        }
        let bytes = try block.encoded()
        blocks.append(block)
        encodedBlocks.append(bytes)
        signature = HMACSHA256.code(bytes, key: signature)
        guard text.utf8.count <= CapabilityToken.bytesMax else {
            throw SafetyError("the token has more than \(CapabilityToken.bytesMax) bytes. Allow less in one token, or use patterns.")
        }
    }

    /// The text that the first signature covers; the version is part of it, so that no later form can be read as this one.
    private static func label(_ keyName: String) -> Bytes { Bytes((prefix + keyName).utf8) }

    // MARK: Its content

    /// The name of its bearer: `ann`, or `ann/phone` when it was narrowed under a name.
    package var name: String { blocks.compactMap(\.name).joined(separator: "/") }

    /// The name it was issued to: tokens that its holders made of it count as theirs.
    var issuedTo: String { blocks[0].name ?? "" }

    /// From this instant on the token is worth nothing.
    package var expires: Timestamp { blocks.compactMap(\.expires).min() ?? Timestamp(milliseconds: 0) }

    package func allows(_ verb: Verb, _ channel: String) -> Bool { blocks.allSatisfy { $0.allows(verb, channel) } }

    /// The verbs of `grant` that this token does not allow on every channel of the grant.
    package func lacks(_ grant: Grant) -> [Verb] {
        let segmentsMax = blocks.flatMap(\.grants).map(\.pattern.segmentCount).max() ?? 0
        let names = grant.pattern.examples(segmentsMax)
        return Verb.allCases.filter { verb in
            grant.verbs.rawValue & verb.rawValue != 0 && names.contains { !allows(verb, $0) }
        }
    }

    /// Whether the key made this chain of blocks.
    package func isSigned(by key: Bytes) -> Bool {
        var code = HMACSHA256.code(CapabilityToken.label(keyName), key: key)
        for block in encodedBlocks { code = HMACSHA256.code(block, key: code) }
        return code.equalsInConstantTime(signature)
    }

    // MARK: As text

    package var text: String {
        var bytes: Bytes = [UInt8(keyName.utf8.count)]
        bytes.append(keyName)
        for block in encodedBlocks {
            bytes.append(bigEndian: UInt16(block.count))
            bytes += block
        }
        bytes += signature
        return CapabilityToken.prefix + Base64.encodeURL(bytes)
    }

    /// Reads a token; whether it is signed is another question. Nothing but what ``text`` writes is accepted.
    package init?(_ text: String) {
        guard text.utf8.count <= CapabilityToken.bytesMax, text.hasPrefix(CapabilityToken.prefix),
            let bytes = Base64.decodeURL(text.dropFirst(CapabilityToken.prefix.count))
        else { return nil }
        var cursor = Cursor(bytes[...])
        guard let length = cursor.take(1)?.first, let key = cursor.take(Int(length)), let keyName = SafetyName(key) else { return nil }
        self.keyName = keyName.text
        (blocks, encodedBlocks) = ([], [])
        while cursor.rest.count > HMACSHA256.byteCount {
            guard blocks.count < CapabilityToken.blocksMax, let length = cursor.takeLength(), let bytes = cursor.take(length),
                let block = Block(bytes)
            else { return nil }
            blocks.append(block)
            encodedBlocks.append(Bytes(bytes))
        }
        guard cursor.rest.count == HMACSHA256.byteCount, let first = blocks.first, first.name != nil, first.expires != nil,
            !first.grants.isEmpty
        else { return nil }
        signature = Bytes(cursor.rest)
    }
}

extension CapabilityToken.Block {
    /// - Throws: ``SafetyError`` that says what names there are.
    package static func checkName(_ name: String) throws(SafetyError) {
        guard SafetyName(Bytes(name.utf8)) != nil else { throw SafetyName.wrong(name) }
    }

    private enum Tag: UInt8 { case name = 1, expires, grant }

    func encoded() throws(SafetyError) -> Bytes {
        var bytes = Bytes()
        func field(_ tag: Tag, _ value: Bytes) {
            bytes.append(tag.rawValue)
            bytes.append(bigEndian: UInt16(value.count))
            bytes += value
        }
        if let name {
            try CapabilityToken.Block.checkName(name)
            field(.name, Bytes(name.utf8))
        }
        if let expires {
            guard expires.milliseconds >= 0 else { throw SafetyError("a token cannot end before 1970.") }
            var value = Bytes()
            value.append(bigEndian: expires.keyed)
            field(.expires, value)
        }
        guard grants.count <= CapabilityToken.grantsMax else {
            throw SafetyError("\(grants.count) grants are given; the limit is \(CapabilityToken.grantsMax). Use patterns.")
        }
        for grant in grants { field(.grant, [grant.verbs.rawValue] + Bytes(grant.pattern.text.utf8)) }
        guard !bytes.isEmpty else { throw SafetyError("nothing is narrowed: give a name, an end or what is still allowed.") }
        return bytes
    }

    /// Reads what ``encoded()`` writes, and nothing else.
    fileprivate init?(_ bytes: ArraySlice<UInt8>) {
        self.init()
        guard !bytes.isEmpty else { return nil }
        var cursor = Cursor(bytes)
        var last: UInt8 = 0
        while !cursor.rest.isEmpty {
            guard let number = cursor.take(1)?.first, let tag = Tag(rawValue: number), number > last || tag == .grant && number == last,
                let length = cursor.takeLength(), let value = cursor.take(length)
            else { return nil }
            last = number
            switch tag {
            case .name:
                guard let name = SafetyName(Bytes(value)) else { return nil }
                self.name = name.text
            case .expires:
                guard value.count == 8 else { return nil }
                let milliseconds: UInt64 = Bytes(value).readBigEndian(at: 0)
                guard milliseconds <= UInt64(Int64.max) else { return nil }
                expires = Timestamp(milliseconds: Int64(milliseconds))
            case .grant:
                guard grants.count < CapabilityToken.grantsMax, let verbs = value.first, verbs != 0, verbs & ~Verbs.all.rawValue == 0,
                    let text = String(validating: value.dropFirst(), as: UTF8.self), let pattern = try? ChannelPattern(text)
                else { return nil }
                grants.append(Grant(pattern, Verbs(rawValue: verbs)))
            }
        }
    }
}

/// The name of a key or of a token's bearer: it becomes the `by` of entries.
struct SafetyName {
    let text: String

    private static let bytesMax = 64
    private static let reserved = ["agents", "hook", "schedule"]

    /// `nil` unless it is 1 to 64 of `[A-Za-z0-9._~@+-]`. No slash: that separates the names of a narrowed token.
    init?(_ bytes: some Collection<UInt8>) {
        guard (1...SafetyName.bytesMax).contains(bytes.count),
            bytes.allSatisfy({ byte in
                (48...57).contains(byte) || (65...90).contains(byte) || (97...122).contains(byte) || "._~@+-".utf8.contains(byte)
            })
        else { return nil }
        text = String(decoding: bytes, as: UTF8.self)
        // With a suffix, it would read like an agent that writes, or like something else of the server's own.
        guard !SafetyName.reserved.contains(text) else { return nil }
    }

    static func wrong(_ name: String) -> SafetyError {
        SafetyError(
            "the name is '\(name.prefix(80))'; expected 1 to \(bytesMax) characters of A-Z a-z 0-9 . _ ~ @ + -, and not \(reserved.map { "'\($0)'" }.joined(separator: " or "))."
        )
    }
}

/// Takes bytes off the front, if there are so many.
private struct Cursor {
    private(set) var rest: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

    mutating func take(_ count: Int) -> ArraySlice<UInt8>? {
        guard count <= rest.count else { return nil }
        defer { rest = rest.dropFirst(count) }
        return rest.prefix(count)
    }

    mutating func takeLength() -> Int? { take(2).map { Int($0.first!) << 8 | Int($0.last!) } }
}
