internal import ParleySystem

/// Reads the JSON of endpoints that write what is not quite JSON: `NaN` and `Infinity` as numbers, control characters in strings.
enum LenientJSON {
    static func parse(_ bytes: Bytes) -> JSON? {
        if let value = try? JSON.parse(bytes) { return value }
        return mended(bytes).flatMap { try? JSON.parse($0) }
    }

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
