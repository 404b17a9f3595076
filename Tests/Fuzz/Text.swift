import Foundation
import ParleyAgents
import ParleyChannels
import ParleySystem

@testable import ParleyHTTP
@testable import ParleyServer

// Texts with a grammar.

/// One JSON text: the scanner that skips, the one that builds and Foundation's must agree.
func fuzzJSON(_ input: Bytes) {
    let value = try? JSON.parse(input)
    var scanner = JSONScanner(input)
    var isSkipped = false
    do throws(JSONError) {
        try scanner.requireUTF8()
        try scanner.skip()
        try scanner.end()
        isSkipped = true
    } catch {}
    same(isSkipped, value != nil, "skipped, and read")
    same((try? MessageCutter.cut(input)) != nil, value != nil, "cut, and read")
    // It is not agreed which of two members with one name counts.
    let hasUniqueNames = value == nil || (try? JSON.parse(input, uniqueNames: true)) != nil
    if hasComparableShape(input), hasUniqueNames {
        let theirs = try? JSONSerialization.jsonObject(with: Data(input), options: .fragmentsAllowed)
        // Not the other way round: Foundation takes [1,].
        require(value == nil || theirs != nil, "this program reads what Foundation does not")
        if let value, let theirs { require(agree(value, theirs), "Foundation reads something else: \(value) \(theirs)") }
    }
    guard let value else { return }
    let text = value.text
    guard let again = try? JSON.parse(text) else { contradiction("what was written is no JSON: \(text)") }
    same(again.text, text, "written twice")
    same(again, value, "written, and read")
    checkCanonical(value)
    if let unique = try? JSON.parse(input, uniqueNames: true) {
        var (scanner, copy) = (JSONScanner(input), Bytes())
        try? scanner.copy(to: &copy)
        same(copy, unique.bytes, "copied, and written")
    }
    checkOneReading(value)
    if let unique = try? JSON.parse(input, uniqueNames: true) { same(unique, value, "read with unique names, and without") }
    if case .array(let elements) = value, let cut = try? MessageCutter.cut(input) {
        same(cut.map { try? JSON.parse(Bytes(input[$0])).text }, elements.map(\.text), "messages, and elements")
    }
}

/// Whether both parsers mean to take the same: Foundation guesses encodings, drops byte order marks, and reads lone surrogates, numbers and
/// depths in its own way.
private func hasComparableShape(_ input: Bytes) -> Bool {
    guard input.count < 128, input.allSatisfy({ $0 > 0 && $0 < 0x80 }) else { return false }
    let text = input.text.lowercased()
    guard !text.contains("\\ud"), !text.contains("\\uf") else { return false }
    return longestNumber(input) < 15 && !text.contains("e") || text.allSatisfy { "{}[]:,\" \\\n\r\tabtruefalsn".contains($0) }
}

private func longestNumber(_ input: Bytes) -> Int {
    var (longest, current) = (0, 0)
    for byte in input {
        current = (48...57).contains(byte) || byte == UInt8(ascii: ".") ? current + 1 : 0
        longest = max(longest, current)
    }
    return longest
}

private func agree(_ value: JSON, _ theirs: Any) -> Bool {
    switch (value, theirs) {
    case (.null, is NSNull): true
    case (.bool(let value), let theirs as NSNumber): theirs.boolValue == value
    case (.string(let value), let theirs as String): value == theirs
    case (.integer, let theirs as NSNumber), (.unsigned, let theirs as NSNumber), (.number, let theirs as NSNumber),
        (.literal, let theirs as NSNumber):
        value.double == theirs.doubleValue
    case (.array(let values), let theirs as [Any]): values.count == theirs.count && zip(values, theirs).allSatisfy { agree($0, $1) }
    case (.object(let members), let theirs as [String: Any]):
        // Foundation takes names for one that only Unicode does.
        Set(members.map(\.name)).count < members.count
            || members.count == theirs.count
                && members.allSatisfy { member in theirs[member.name].map { agree(member.value, $0) } ?? false }
    default: false
    }
}

/// Canonical JSON (RFC 8785) is JSON, is canonical, and has lost nothing.
private func checkCanonical(_ value: JSON) {
    let canonical = value.canonical
    guard let again = try? JSON.parse(canonical) else { contradiction("canonical JSON is none: \(canonical.text)") }
    same(again.canonical, canonical, "canonical twice")
    require(leaves(again) == leaves(value) || hasRepeatedNames(value), "canonical JSON lost something: \(canonical.text)")
}

/// Each member that can be asked for is the one that is written, and there is one of each name.
private func checkOneReading(_ value: JSON) {
    for element in value.array ?? [] { checkOneReading(element) }
    for member in value.members ?? [] {
        require(value[member.name] == member.value, "a member is read in two ways: \(member.name)")
        checkOneReading(member.value)
    }
    require(!hasRepeatedNames(value), "a name stands twice in what was read")
}

private func leaves(_ value: JSON) -> Int {
    switch value {
    case .array(let values): values.reduce(1) { $0 + leaves($1) }
    case .object(let members): members.reduce(1) { $0 + leaves($1.value) }
    default: 1
    }
}

/// Names are compared by their bytes: texts that only Unicode takes for equal are two.
private func hasRepeatedNames(_ value: JSON) -> Bool {
    switch value {
    case .array(let values): values.contains(where: hasRepeatedNames)
    case .object(let members):
        Set(members.map { Bytes($0.name.utf8) }).count < members.count || members.contains { hasRepeatedNames($0.value) }
    default: false
    }
}

/// JSON from clients: entries for an agent, and messages over a socket.
func fuzzMessages(_ input: Bytes) {
    if let entry = try? InputEntry(input, principal: "fuzz") {
        guard case .members(let members, _) = entry.entry.content, let body = try? JSON.parse([0x7b] + members + [0x7d]) else {
            contradiction("an entry's members are no JSON")
        }
        let names = (body.members ?? []).map { $0.name }
        require(names.filter { ["offset", "at", "type"].contains($0) }.isEmpty, "a client wrote a stamp")
        require(body["by"] == .string("fuzz") && names.filter { $0 == "by" }.count == 1, "a client wrote 'by'")
    }
    if let request = try? SocketRequest(input), case .append(_, let body, _) = request.operation {
        require((try? MessageCutter.cut(body)) != nil, "the entries of a socket's message are no JSON")
    }
}

/// Base64, percent-encoding, instants.
func fuzzText(_ input: Bytes) {
    let encoded = Base64.encodeURL(input)
    same(Base64.decodeURL(encoded), input, "Base64 for URLs, there and back")
    var plain = Bytes()
    Base64.encode(input, to: &plain)
    same(plain.text, Data(input).base64EncodedString(), "Base64, and Foundation's")
    guard let text = String(validating: input, as: UTF8.self) else { return }
    if let bytes = Base64.decodeURL(text) { same(Base64.encodeURL(bytes), text, "Base64 for URLs is one to one") }
    if let bytes = Base64.decode(text) {
        let padded = text + String(repeating: "=", count: (4 - text.utf8.count % 4) % 4)
        same(Data(base64Encoded: padded).map { Bytes($0) }, bytes, "Base64 decoded, and by Foundation")
    }
    same(PercentEncoding.decode(PercentEncoding.encode(text)).map { Bytes($0.utf8) }, input, "percent-encoding, there and back")
    if let decoded = PercentEncoding.decode(text) {
        same(PercentEncoding.decode(PercentEncoding.encode(decoded, keeping: "/")), decoded, "percent-encoding, back and there")
    }
    if let instant = Timestamp(text), instant.milliseconds >= 0 {
        same(Timestamp(instant.description), instant, "an instant, written and read")
    }
    _ = RetryAfter.parse([("Retry-After", text)], now: Timestamp(milliseconds: 0))
    _ = try? OutgoingURL(text)
}
