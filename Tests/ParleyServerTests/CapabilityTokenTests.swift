import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `A capability token` {
    static let key = try! Key(name: "main", secret: "0123456789abcdef")
    static let end = Timestamp("2030-01-31T12:00:00Z")!

    static func make(_ grants: String..., name: String = "ann", expires: Timestamp = end) throws -> CapabilityToken {
        try CapabilityToken(
            keyName: key.name, key: key.signing, .init(name: name, expires: expires, grants: try grants.map { try Grant($0) }))
    }

    @Test func `says after reading what it said when it was made`() throws {
        let made = try Self.make("agents/assistant/*:read,steer", "orders/**:append")
        let token = try #require(CapabilityToken(made.text))
        #expect(token.text == made.text)
        #expect(token.isSigned(by: Self.key.signing))
        #expect(token.name == "ann")
        #expect(token.keyName == "main")
        #expect(token.expires == Self.end)
        #expect(token.allows(.read, "agents/assistant/me"))
        #expect(token.allows(.steer, "agents/assistant/me"))
        #expect(!token.allows(.append, "agents/assistant/me"))
        #expect(token.allows(.append, "orders/1/items"))
        #expect(!token.allows(.read, "orders/1/items"))
        #expect(made.text.utf8.allSatisfy { Character(Unicode.Scalar($0)).isLetter || (48...57).contains($0) || $0 == 95 || $0 == 45 })
    }

    @Test(arguments: [
        ("agents/a/*:read,steer", "agents/a/*:read", ""), ("agents/a/*:read", "agents/a/x:read,append", "append"),
        ("agents/a/*:read", "agents/*/x:read", "read"), ("agents/a/*:read", "agents/a/**:read", "read"),
        ("agents/**:read", "agents/a/**:read", ""), ("**:admin", "**:read,admin", ""), ("**:read,append", "**:admin", "admin"),
        ("*/**:read", "**/x:read", ""), ("*/*/**:read", "**/x:read", "read"), ("**/x:read", "a/**/x:read", ""),
        ("a/**/b/**:read", "a/*/b/c:read", ""),
        ("**:read", "**/a/**:read", ""), ("*/a/**:read", "**/a/**:read", "read"),
    ]) func `knows what it lacks of a grant`(_ own: String, _ asked: String, _ lacked: String) throws {
        #expect(try Self.make(own).lacks(Grant(asked)).map(\.name).joined(separator: ",") == lacked)
    }

    @Test func `lacks what any of its blocks lacks, and nothing that several of its grants allow together`() throws {
        let token = try Self.make("orders/*:read", "orders/*:append", "x/**:read")
        #expect(try token.lacks(Grant("orders/*:read,append")) == [])
        #expect(try token.narrowed(.init(grants: [Grant("orders/1:read")])).lacks(Grant("orders/*:read,append")) == [.read, .append])
        #expect(try token.narrowed(.init(name: "phone")).lacks(Grant("x/y/z:read")) == [])
    }

    @Test func `with any one bit turned over is none`() throws {
        let text = try Self.make("agents/*/*:read").narrowed(.init(name: "phone", expires: Self.end)).text
        for index in text.utf8.indices {
            for bit in 0..<8 {
                var bytes = Bytes(text.utf8)
                bytes[text.utf8.distance(from: text.startIndex, to: index)] ^= 1 << UInt8(bit)
                guard let other = CapabilityToken(bytes.text) else { continue }
                #expect(!other.isSigned(by: Self.key.signing), "bit \(bit) of \(index)")
            }
        }
    }

    @Test func `cut off anywhere, or with something behind it, is none`() throws {
        let text = try Self.make("agents/*/*:read").narrowed(.init(grants: [try Grant("agents/assistant/*:read")])).text
        for count in 0..<text.count {
            let cut = CapabilityToken(String(text.prefix(count)))
            #expect(cut?.isSigned(by: Self.key.signing) != true, "\(count) characters")
        }
        for more in ["A", "AA", "AAAA", "=", " ", ".", "%00"] {
            #expect(CapabilityToken(text + more)?.isSigned(by: Self.key.signing) != true)
        }
    }

    @Test func `of another version, key or secret is none`() throws {
        let token = try Self.make("**:read")
        #expect(CapabilityToken(token.text.replacing("parley_v1_", with: "parley_v2_")) == nil)
        #expect(CapabilityToken(token.text.replacing("parley_v1_", with: "Parley_v1_")) == nil)
        let other = try Key(name: "main", secret: "0123456789abcdeg")
        #expect(!token.isSigned(by: other.signing))
        #expect(
            !(CapabilityToken(Self.text(key: "next", Self.parts(token.text).blocks, Self.parts(token.text).signature))!.isSigned(
                by: Self.key.signing)))
    }

    // MARK: Narrowing

    @Test func `is narrowed by its holder, and never widened`() throws {
        let token = try Self.make("agents/**:read,append")
        let narrow = try #require(
            CapabilityToken(try token.narrowed(.init(name: "phone", grants: [try Grant("agents/assistant/*:read,steer")])).text))
        #expect(narrow.isSigned(by: Self.key.signing))
        #expect(narrow.name == "ann/phone")
        #expect(narrow.allows(.read, "agents/assistant/me"))
        #expect(!narrow.allows(.steer, "agents/assistant/me"), "the first block has no steer")
        #expect(!narrow.allows(.append, "agents/assistant/me"), "the second block has no append")
        #expect(!narrow.allows(.read, "agents/clerk/me"))
        let everything = try narrow.narrowed(.init(grants: [try Grant("**:admin")]))
        #expect(!everything.allows(.read, "agents/clerk/me"))
        #expect(!everything.allows(.admin, "agents/assistant/me"))
        #expect(try narrow.narrowed(.init(expires: Self.end.advanced(by: .seconds(60)))).expires == Self.end, "later is no end")
        #expect(try narrow.narrowed(.init(expires: Timestamp(milliseconds: 5))).expires == Timestamp(milliseconds: 5))
    }

    @Test func `keeps its blocks, all of them and in their order`() throws {
        let token = try Self.make("**:read").narrowed(.init(grants: [try Grant("a/*:read")])).narrowed(
            .init(grants: [try Grant("a/b:read")]))
        let (blocks, signature) = Self.parts(token.text)
        #expect(blocks.count == 3)
        func isGood(_ blocks: [Bytes]) -> Bool {
            CapabilityToken(Self.text(key: "main", blocks, signature))?.isSigned(by: Self.key.signing) ?? false
        }
        #expect(isGood(blocks))
        for wrong in [[0, 2, 1], [0, 1], [0, 2], [0], [0, 1, 1, 2], [0, 0, 1, 2], [1, 2, 0], [0, 1, 2, 2]] {
            #expect(!isGood(wrong.map { blocks[$0] }), "\(wrong)")
        }
        #expect(CapabilityToken(Self.text(key: "main", [], signature)) == nil)
        #expect(CapabilityToken(Self.text(key: "main", [blocks[0], []], signature)) == nil, "an empty block")
    }

    @Test func `has a bound on what it holds`() throws {
        var token = try Self.make("**:read")
        for _ in 1..<CapabilityToken.blocksMax { token = try token.narrowed(.init(grants: [try Grant("**:read")])) }
        #expect(throws: SafetyError.self) { try token.narrowed(.init(grants: [try Grant("**:read")])) }
        let long = String(repeating: "x", count: 250)
        #expect(throws: SafetyError.self) {
            try Self.make("\(long)1:read").narrowed(.init(grants: (0..<20).map { try Grant("\(long)\($0):read") }))
        }
        #expect(throws: SafetyError.self) { try Self.make("**:read").narrowed(.init(grants: (0..<33).map { try Grant("\($0):read") })) }
        #expect(CapabilityToken(CapabilityToken.prefix + String(repeating: "A", count: 1 << 20)) == nil)
        #expect(throws: SafetyError.self) { try Self.make("**:read").narrowed(.init()) }
        #expect(throws: SafetyError.self) { try Self.make("**:read", name: "a/b") }
        #expect(throws: SafetyError.self) { try Self.make("**:read", name: "") }
        #expect(throws: SafetyError.self) { try Self.make("**:read", name: "a\"b") }
    }

    @Test(arguments: [
        ("a name twice", [field(1, "ann"), field(1, "bob"), ends, grant]),
        ("an end twice", [field(1, "ann"), ends, ends, grant]),
        ("fields in another order", [ends, field(1, "ann"), grant]),
        ("an unknown field", [field(1, "ann"), ends, grant, field(4, "x")]),
        ("a field 0", [field(0, "x"), field(1, "ann"), ends, grant]),
        ("no name", [ends, grant]),
        ("no end", [field(1, "ann"), grant]),
        ("no grant", [field(1, "ann"), ends]),
        ("an end of 7 bytes", [field(1, "ann"), field(2, "1234567"), grant]),
        ("an end beyond time", [field(1, "ann"), [2, 0, 8] + Bytes(repeating: 255, count: 8), grant]),
        ("a grant without verbs", [field(1, "ann"), ends, [3, 0, 2, 0, 0x61]]),
        ("a verb there is not", [field(1, "ann"), ends, [3, 0, 2, 64, 0x61]]),
        ("a grant without a pattern", [field(1, "ann"), ends, [3, 0, 1, 1]]),
        ("a pattern that is no UTF-8", [field(1, "ann"), ends, [3, 0, 2, 1, 0xff]]),
        ("a pattern with '..'", [field(1, "ann"), ends, [3, 0, 5, 1] + Bytes("a/..".utf8)]),
        ("a length beyond the block", [field(1, "ann"), ends, [3, 0, 9, 1, 0x61]]),
        ("half a field", [field(1, "ann"), ends, grant, [3, 0]]),
    ]) func `that is signed and has`(_ what: String, _ fields: [Bytes]) throws {
        let block = Bytes(fields.joined())
        let signature = HMACSHA256.code(block, key: HMACSHA256.code(Bytes("parley_v1_main".utf8), key: Self.key.signing))
        #expect(CapabilityToken(Self.text(key: "main", [block], signature)) == nil, "\(what) is refused")
    }

    @Test func `put together by hand is one`() throws {
        let block = Bytes([Self.field(1, "ann"), Self.ends, Self.grant].joined())
        let signature = HMACSHA256.code(block, key: HMACSHA256.code(Bytes("parley_v1_main".utf8), key: Self.key.signing))
        let token = try #require(CapabilityToken(Self.text(key: "main", [block], signature)))
        #expect(token.isSigned(by: Self.key.signing))
        #expect(token.allows(.read, "a"))
    }

    @Test func `made of random bytes is none, and harms nobody`() {
        var random = SplitMix64(seed: 7)
        for _ in 0..<20_000 {
            let bytes = (0..<Int.random(in: 0..<120, using: &random)).map { _ in
                UInt8.random(in: 0...(Bool.random(using: &random) ? 255 : 6), using: &random)
            }
            let token = CapabilityToken(CapabilityToken.prefix + Base64.encodeURL(bytes))
            #expect(token?.isSigned(by: Self.key.signing) != true)
        }
    }

    // MARK: Parts

    static func field(_ tag: UInt8, _ value: String) -> Bytes { [tag, 0, UInt8(value.utf8.count)] + Bytes(value.utf8) }
    static let ends: Bytes = [2, 0, 8, 0, 0, 1, 0xb9, 0, 0, 0, 0]
    static let grant: Bytes = [3, 0, 2, 1, 0x61]

    static func text(key: String, _ blocks: [Bytes], _ signature: Bytes) -> String {
        var bytes: Bytes = [UInt8(key.utf8.count)] + Bytes(key.utf8)
        for block in blocks {
            bytes.append(bigEndian: UInt16(block.count))
            bytes += block
        }
        return CapabilityToken.prefix + Base64.encodeURL(bytes + signature)
    }

    static func parts(_ text: String) -> (blocks: [Bytes], signature: Bytes) {
        let bytes = Base64.decodeURL(text.dropFirst(CapabilityToken.prefix.count))!
        var blocks: [Bytes] = []
        var index = 1 + Int(bytes[0])
        while bytes.count - index > 32 {
            let count = Int(bytes[index]) << 8 | Int(bytes[index + 1])
            blocks.append(Bytes(bytes[(index + 2)..<(index + 2 + count)]))
            index += 2 + count
        }
        return (blocks, Bytes(bytes[index...]))
    }
}

@Suite struct `A channel pattern` {
    @Test(arguments: [
        ("a", "a", true), ("a", "b", false), ("a", "a/b", false), ("a/b", "a", false), ("*", "a", true), ("*", "a/b", false),
        ("agents/*/*", "agents/a/b", true), ("agents/*/*", "agents/a/b/c", false), ("agents/*", "agents/a/b", false),
        ("**", "a", true), ("**", "a/b/c", true), ("a/**", "a", false), ("a/**", "a/b", true), ("a/**", "a/b/c/d", true),
        ("**/z", "a/z", true), ("**/z", "z", false), ("**/z", "a/b/z", true), ("**/z", "a/z/b", false), ("a/**/z", "a/z", false),
        ("a/**/z", "a/b/z", true), ("a/**/z", "a/b/c/z", true), ("**/b/**/d/*", "a/b/c/b/c/d/e", true),
        ("**/b/**/d/*", "a/b/c/b/c/d", false),
        ("**/**", "a", false), ("**/**", "a/b", true), ("**/**", "a/b/c/d", true), ("agents/a/b", "agents/a%2Fb", false),
        ("agents/a%2Fb", "agents/a/b", false), ("agents/a%2Fb", "agents/a%2Fb", true), ("a/%2A", "a/b", false), ("A", "a", false),
        ("caf\u{e9}", "cafe\u{301}", false), ("caf\u{e9}", "caf\u{e9}", true), ("a/*", "a/", true), ("*/b", "/b", true), ("a", "a/", false),
        ("agents/*", "agents/**", true),
    ])
    func `matches`(_ pattern: String, _ channel: String, _ isMatch: Bool) throws {
        #expect(try ChannelPattern(pattern).matches(channel) == isMatch, "'\(pattern)' and '\(channel)'")
    }

    @Test(arguments: ["", "/", "/a", "a/", "a//b", ".", "a/../b", "a/.", "a*", "*a", "a/b*c", "***", "a/***", "a\nb", "a\u{0}", "a/\u{7f}"])
    func `is refused`(_ pattern: String) { #expect(throws: SafetyError.self) { try ChannelPattern(pattern) } }

    @Test func `of many stars ends soon`() throws {
        let pattern = try ChannelPattern((0..<50).map { _ in "**" }.joined(separator: "/x/") + "/z")
        #expect(!pattern.matches((0..<500).map { _ in "x" }.joined(separator: "/") + "y"))
        #expect(throws: SafetyError.self) { try ChannelPattern(String(repeating: "a", count: 257)) }
    }

    @Test(arguments: ["agents/*", "agents/*:", "agents/*:reed", "agents/*:read,", "agents/*:read steer", ":read", "a*:read", "a:READ"])
    func `with verbs is refused`(_ text: String) { #expect(throws: SafetyError.self) { try Grant(text) } }

    @Test func `with verbs may have colons itself`() throws {
        let grant = try Grant("a:b/*:read,admin")
        #expect(grant.pattern.text == "a:b/*")
        #expect(grant.text == "a:b/*:read,admin")
        #expect(Verb.allCases.allSatisfy { grant.verbs.allow($0) }, "admin is everything")
    }
}
