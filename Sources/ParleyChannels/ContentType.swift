internal import ParleySystem

/// Media types as far as a channel cares.
package enum ContentType {
    package static let json = "application/json"

    /// Type and subtype in lower case, without parameters.
    package static func base(_ type: String) -> String {
        var type = type
        return type.withUTF8 { String(decoding: essence($0), as: UTF8.self) }.lowercased()
    }

    package static func isJSON(_ type: String) -> Bool { matches(type, json) }
    package static func isText(_ type: String) -> Bool { base(type).hasPrefix("text/") }

    /// Whether it is text in UTF-8, as far as it says.
    package static func isUTF8Text(_ type: String) -> Bool {
        guard isText(type) else { return false }
        return charset(of: type).map { ["utf-8", "utf8", "us-ascii", "ascii"].contains($0) } ?? true
    }

    /// The value of the parameter `charset`, in lower case and without quotes.
    private static func charset(of type: String) -> String? {
        for parameter in type.utf8.split(separator: UInt8(ascii: ";")).dropFirst() {
            let parts = parameter.split(separator: UInt8(ascii: "="), maxSplits: 1).map { String(Substring($0)).trimmingSpaces }
            guard parts.count == 2, parts[0].lowercased() == "charset" else { continue }
            return parts[1].filter { $0 != "\"" && $0 != "'" }.lowercased()
        }
        return nil
    }

    /// Whether type and subtype are the same. Without a copy: every append asks.
    package static func matches(_ a: String, _ b: String) -> Bool {
        if a == b { return true }
        var (a, b) = (a, b)
        return a.withUTF8 { a in
            b.withUTF8 { b in
                let (a, b) = (essence(a), essence(b))
                return a.count == b.count && zip(a, b).allSatisfy { lowercased($0) == lowercased($1) }
            }
        }
    }

    /// Type and subtype as they came.
    private static func essence(_ type: UnsafeBufferPointer<UInt8>) -> Slice<UnsafeBufferPointer<UInt8>> {
        func isText(_ byte: UInt8) -> Bool { byte != UInt8(ascii: " ") && byte != UInt8(ascii: "\t") }
        let text = type.prefix { $0 != UInt8(ascii: ";") }
        guard let first = text.firstIndex(where: isText), let last = text.lastIndex(where: isText) else { return text.prefix(0) }
        return text[first...last]
    }

    private static func lowercased(_ byte: UInt8) -> UInt8 { byte &- 0x41 < 26 ? byte | 0x20 : byte }
}

extension String {
    package var trimmingSpaces: String {
        // By bytes: by characters it took a twentieth of the time of an append.
        func isText(_ byte: UInt8) -> Bool { byte != UInt8(ascii: " ") && byte != UInt8(ascii: "\t") }
        guard let first = utf8.firstIndex(where: isText), let last = utf8.lastIndex(where: isText) else { return "" }
        return String(self[first...last])
    }
}
