internal import ParleySystem

/// Puts characters together whose UTF-16 halves come in two chunks, each as an escape of its own: `"\ud83d"`, then `"\ude00"`.
///
/// A half is no character, so a JSON reader replaces it by U+FFFD. Here it gets a stand-in before the chunk is read, and waits for the other half in the
/// same place of a later chunk. A half that stays alone becomes U+FFFD once.
struct SplitCharacters: Sendable {
    /// The first halves that wait, by their place in a chunk.
    private var waiting: [String: UInt32] = [:]
    private var isMarked = false

    private static let waitingMax = 256
    /// The first of the stand-ins, at the end of the last plane for private use.
    private static let standIns: UInt32 = 0x10F800

    /// Half a character of the answer's text still waits.
    var hasHalfOfText: Bool {
        waiting.keys.contains { $0.hasPrefix("/choices/") && ($0.contains("/content") || $0.hasSuffix("/text")) }
    }

    /// `chunk` as ``LenientJSON/chunk(_:)`` reads it, with split characters joined; `nil` when it is no JSON.
    mutating func read(_ chunk: Bytes) -> (value: JSON, ambiguousName: String?)? {
        let marked = SplitCharacters.marked(chunk)
        guard let (value, ambiguousName) = LenientJSON.chunk(marked ?? chunk) else { return nil }
        isMarked = marked != nil
        return (isMarked || !waiting.isEmpty ? join(value, "") : value, ambiguousName)
    }

    private mutating func join(_ value: JSON, _ place: String) -> JSON {
        switch value {
        case .string(let text): return .string(join(text, place))
        case .array(let elements):
            return .array(elements.enumerated().map { join($1, "\(place)/\($1["index"]?.text ?? String($0))") })
        case .object(let members): return .object(members.map { JSON.Member($0.name, join($0.value, "\(place)/\($0.name)")) })
        default: return value
        }
    }

    private mutating func join(_ text: String, _ place: String) -> String {
        guard !text.isEmpty else { return text }
        var half = waiting.removeValue(forKey: place)
        // A text that is sent as a whole each time comes from its beginning, and not behind the half.
        if half != nil, place.contains("/message/"), text.unicodeScalars.first.flatMap(unit).map(SplitCharacters.isFirst) ?? true {
            half = nil
        }
        var output = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            let unit = unit(scalar)
            if let first = half.take() {
                if let unit, !SplitCharacters.isFirst(unit) {
                    output.append(Unicode.Scalar(0x10000 + (first - 0xD800) << 10 + (unit - 0xDC00))!)
                    continue
                }
                output.append("\u{FFFD}")
            }
            switch unit {
            case nil: output.append(scalar)
            case let first? where SplitCharacters.isFirst(first): half = first
            default: output.append("\u{FFFD}")
            }
        }
        if let half, waiting.count < SplitCharacters.waitingMax { waiting[place] = half }
        return String(output)
    }

    /// The half that `scalar` replaces.
    private func unit(_ scalar: Unicode.Scalar) -> UInt32? {
        isMarked && scalar.value >= SplitCharacters.standIns ? scalar.value - SplitCharacters.standIns + 0xD800 : nil
    }

    private static func isFirst(_ unit: UInt32) -> Bool { unit < 0xDC00 }

    // MARK: Stand-ins

    /// `bytes` with a stand-in for each escape of half a character; `nil` when there is none, or when a stand-in's character is there itself.
    private static func marked(_ bytes: Bytes) -> Bytes? {
        var (output, start) = (Bytes(), 0)
        guard var index = bytes.firstIndex(of: UInt8(ascii: "\\")) else { return nil }
        while index < bytes.count {
            guard bytes[index] == UInt8(ascii: "\\") else {
                index += 1
                continue
            }
            guard let unit = escape(bytes, at: index) else {
                index += 2
                continue
            }
            let isHalf = (0xD800...0xDFFF).contains(unit)
            if isHalf, isFirst(unit), let next = escape(bytes, at: index + 6), (0xDC00...0xDFFF).contains(next) {
                if unit >= firstHalfOfStandIns { return nil }
                index += 12
                continue
            }
            if isHalf {
                output += bytes[start..<index]
                output += UTF8.encode(Unicode.Scalar(standIns + unit - 0xD800)!)!
                start = index + 6
            }
            index += 6
        }
        return start == 0 || hasStandIn(bytes) ? nil : output + bytes[start...]
    }

    private static let firstHalfOfStandIns: UInt32 = 0xDBFE

    private static func hasStandIn(_ bytes: Bytes) -> Bool {
        bytes.indices.dropLast(2).contains { bytes[$0] == 0xF4 && bytes[$0 + 1] == 0x8F && bytes[$0 + 2] >= 0xA0 }
    }

    /// The number of the escape `\uXXXX` at `index`, when there is one.
    private static func escape(_ bytes: Bytes, at index: Int) -> UInt32? {
        guard index + 6 <= bytes.count, bytes[index] == UInt8(ascii: "\\"), bytes[index + 1] == UInt8(ascii: "u") else { return nil }
        var unit: UInt32 = 0
        for byte in bytes[index + 2..<index + 6] {
            guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else { return nil }
            unit = unit << 4 | UInt32(digit)
        }
        return unit
    }
}
