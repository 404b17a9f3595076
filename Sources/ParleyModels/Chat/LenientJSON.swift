internal import ParleyAgents
internal import ParleySystem

/// Reads the JSON of endpoints that write what is not quite JSON: `NaN` and `Infinity` as numbers, control characters in strings.
enum LenientJSON {
    static func parse(_ bytes: Bytes, uniqueNames: Bool = false) -> JSON? {
        if let value = try? JSON.parse(bytes, uniqueNames: uniqueNames) { return value }
        return mended(bytes).flatMap { try? JSON.parse($0, uniqueNames: uniqueNames) }
    }

    /// As ``parse(_:)``, for a chunk or a whole answer: members that nothing here reads are passed over, because a tree measures many times its text.
    ///
    /// - Returns: also the first member among those that matter that occurs twice with different values: parsers would read such a chunk differently.
    static func chunk(_ bytes: Bytes) -> (value: JSON, ambiguousName: String?)? {
        (try? known(bytes)) ?? mended(bytes).flatMap { try? known($0) }
    }

    private static func known(_ bytes: Bytes) throws(JSONError) -> (value: JSON, ambiguousName: String?) {
        var scanner = JSONScanner(bytes)
        guard scanner.next(is: "{") else { return (try JSON.parse(bytes), nil) }
        try scanner.requireUTF8()
        scanner.watchesAmbiguity = isRead
        var found: [JSON.Member] = []
        try scanner.members { (name, scanner) throws(JSONError) in
            guard names.contains(name) else { return _ = try scanner.skip() }
            let value = try scanner.value(of: name)
            if let place = found.firstIndex(where: { $0.name == name }) { scanner.compare(found.remove(at: place).value, value, of: name) }
            found.append(JSON.Member(name, value))
        }
        try scanner.end()
        return (.object(found), scanner.ambiguousName)
    }

    /// Whether an answer depends on the member that these names lead to. Within errors one word is as good as another.
    private static func isRead(_ path: [String]) -> Bool {
        guard path.count > 1 else { return true }
        switch path[0] {
        case "choices" where path.count > 2 && ["delta", "message"].contains(path[1]): return AnswerReader.saidNames.contains(path[2])
        case "choices": return AnswerReader.choiceNames.contains(path[1])
        case "usage": return ModelUsage.names.contains(path[1])
        default: return false
        }
    }

    /// The members that ``AnswerReader`` and ``UpstreamError`` read.
    private static let names: Set = [
        "choices", "usage", "x_groq", "finish_reason", "incomplete_details", "object", "type", "status", "success", "code", "message", "msg",
        "detail", "details", "error", "errors", "error_type", "error_code", "error_message", "error_msg", "error_description", "errorMessage",
        "fault", "base_resp", "status_code", "status_msg", "http_code", "reason", "title", "raw", "metadata", "retry_after", "faultstring",
        "innererror",
    ]

    /// Whether `bytes` is refused for its depth, which it has the next time, too.
    static func isTooDeep(_ bytes: Bytes) -> Bool {
        do { _ = try JSON.parse(mended(bytes) ?? bytes) } catch { return error.problem.hasPrefix("nested deeper") }
        return false
    }

    /// `bytes` with `null` for numbers that JSON does not have, and escapes for control characters; `nil` where there are none.
    private static func mended(_ bytes: Bytes) -> Bytes? {
        var (output, isInString, isEscaped, isMended) = (Bytes(), false, false, false)
        output.reserveCapacity(bytes.count)
        var index = 0
        while index < bytes.count {
            let byte = bytes[index]
            if isInString {
                if byte < 0x20 {
                    output.append("\\u00" + (byte < 16 ? "0" : "") + String(byte, radix: 16))
                    isMended = true
                } else {
                    output.append(byte)
                }
                if isEscaped {
                    isEscaped = false
                } else if byte == UInt8(ascii: "\\") {
                    isEscaped = true
                } else {
                    isInString = byte != UInt8(ascii: "\"")
                }
                index += 1
            } else if let count = wordCount(bytes[index...]) {
                output.append("null")
                isMended = true
                index += count
            } else {
                output.append(byte)
                isInString = byte == UInt8(ascii: "\"")
                index += 1
            }
        }
        return isMended ? output : nil
    }

    private static let words = ["NaN", "-NaN", "Infinity", "-Infinity", "inf", "-inf", "nan"].map { Bytes($0.utf8) }

    private static func wordCount(_ bytes: ArraySlice<UInt8>) -> Int? {
        guard let first = bytes.first,
            [UInt8(ascii: "N"), UInt8(ascii: "n"), UInt8(ascii: "I"), UInt8(ascii: "i"), UInt8(ascii: "-")].contains(first)
        else { return nil }
        // The longest that fits: `Infinity` before `inf`.
        return words.filter { bytes.starts(with: $0) }.map(\.count).max()
    }
}
