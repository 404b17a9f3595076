import ParleySystem
import ParleyWebhooks

@testable import ParleyChannels
@testable import ParleyHTTP
@testable import ParleyServer

// Names, places and rights as texts, and what is read back from the log.

/// Names of streams, patterns of them, offsets, cursors.
func fuzzNames(_ input: Bytes) {
    if let name = try? StreamName(path: input[...]) {
        require(!name.text.isEmpty && name.text.utf8.count <= StreamName.bytesMax)
        let again = try? StreamName(path: ArraySlice(PercentEncoding.encode(name.text, keeping: "/").utf8))
        same(again.map { Bytes($0.text.utf8) }, Bytes(name.text.utf8), "a name, encoded and read")
        require(ChannelPattern.everything.matches(name.text))
        if let pattern = try? ChannelPattern(name.text), !name.text.contains("*") { require(pattern.matches(name.text)) }
    }
    guard let text = String(validating: input, as: UTF8.self) else { return }
    if let offset = Offset(token: text) { same(Bytes(offset.token.utf8), input, "an offset is one text") }
    if let cursor = TreeCursor(text) { same(TreeCursor(cursor.text), cursor, "a tree's cursor, written and read") }
    // Bytes as the content of a cursor, which few texts are.
    if let cursor = TreeCursor(Base64.encodeURL([1] + input)) {
        require(cursor.places.count <= TreeCursor.channelsMax)
        same(TreeCursor(cursor.text), cursor, "a tree's cursor, written and read")
    }
    if let grant = try? Grant(text) { same(try? Grant(grant.text), grant, "a grant, written and read") }
    let parts = text.split(separator: "\n", maxSplits: 1)
    if parts.count == 2, let pattern = try? ChannelPattern(String(parts[0])) {
        same(pattern.matches(String(parts[1])), matches(pattern.text.segments, parts[1].segments), "a pattern, and its definition")
    }
    if parts.count == 2, let pattern = SubscriptionPattern(String(parts[0])) { _ = pattern.matches(String(parts[1])) }
    for allows in [true, false] { _ = try? SubscriptionURL(text, allowsLoopback: allows) }
}

extension StringProtocol {
    fileprivate var segments: ArraySlice<Bytes> {
        utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map { Bytes($0) }[...]
    }
}

/// The meaning of a pattern, as plainly as can be. Exponential in the worst case, so for short texts.
private func matches(_ pattern: ArraySlice<Bytes>, _ name: ArraySlice<Bytes>) -> Bool {
    guard let first = pattern.first else { return name.isEmpty }
    guard let segment = name.first else { return false }
    if first == Bytes("**".utf8) { return matches(pattern.dropFirst(), name.dropFirst()) || matches(pattern, name.dropFirst()) }
    return (first == Bytes("*".utf8) || first == segment) && matches(pattern.dropFirst(), name.dropFirst())
}

private let key = Bytes(repeating: 7, count: 32)
private let genuine = try! CapabilityToken(
    keyName: "main", key: key,
    .init(name: "ann", expires: Timestamp(milliseconds: 1_800_000_000_000), grants: [try! Grant("agents/assistant/*:read,steer")]))

/// Capability tokens: nothing but what was written is read, and none that the key did not sign is taken.
func fuzzTokens(_ input: Bytes) {
    if let text = String(validating: input, as: UTF8.self) { check(text) }
    // As the content of a token, which few texts are: as it is, and laid over a genuine one.
    check(CapabilityToken.prefix + Base64.encodeURL(input))
    var forged = Base64.decodeURL(genuine.text.dropFirst(CapabilityToken.prefix.count))!
    for index in stride(from: 0, to: input.count - 2, by: 3) {
        let place = Int(input[index]) % (forged.count + 1)
        switch input[index + 1] % 3 {
        case 0: forged.insert(input[index + 2], at: place)
        case 1 where place < forged.count: forged.remove(at: place)
        case _ where place < forged.count: forged[place] ^= input[index + 2]
        default: break
        }
    }
    check(CapabilityToken.prefix + Base64.encodeURL(forged))
}

private func check(_ text: String) {
    guard let token = CapabilityToken(text) else { return }
    same(Bytes(token.text.utf8), Bytes(text.utf8), "a token is one text")
    require(!token.isSigned(by: key) || text == genuine.text, "a forged token: \(text)")
    if let narrowed = try? token.narrowed(.init(expires: Timestamp(milliseconds: 1))) {
        require(narrowed.expires <= token.expires && !narrowed.isSigned(by: key) || text == genuine.text)
        require(CapabilityToken(narrowed.text) != nil, "a narrowed token cannot be read")
    }
}

/// Reads bytes as if from the log: those that no version of this program wrote are refused, or read as something, and nothing traps.
func fuzzStored(_ input: Bytes) {
    input.withUnsafeBytes { bytes in
        var count = 0
        Frame.walk(bytes, first: 1) { offset, frame in
            _ = (frame.at, frame.position, frame.body, frame.text, frame.textPieces, frame.membersBegin(with: [0x22]))
            var output = Bytes()
            if frame.kind != .hole { frame.writeJSON(offset: offset, owner: "agents/a/b", to: &output) }
            count += 1
            return count < 100
        }
    }
    if let row = ChannelRow(input) { same(ChannelRow(row.bytes), row, "a channel's row, written and read") }
    if let row = ProducerState(input) { same(row.bytes, input, "a producer's row is one text") }
    _ = NameRow(input)
}
