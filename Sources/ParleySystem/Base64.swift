/// Base64 of RFC 4648, section 4.
package enum Base64 {
    private static let alphabet = Bytes("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

    package static func encode(_ bytes: Bytes, to output: inout Bytes) {
        output.reserveCapacity(output.count + (bytes.count + 2) / 3 * 4)
        var index = 0
        while index < bytes.count {
            let count = min(3, bytes.count - index)
            var group = UInt32(bytes[index]) << 16
            if count > 1 { group |= UInt32(bytes[index + 1]) << 8 }
            if count > 2 { group |= UInt32(bytes[index + 2]) }
            for place in 0..<4 {
                output.append(place <= count ? alphabet[Int(group >> UInt32(18 - 6 * place)) & 63] : UInt8(ascii: "="))
            }
            index += 3
        }
    }

    /// The bytes that `text` encodes, with or without padding; `nil` when it is not Base64.
    package static func decode(_ text: some StringProtocol) -> Bytes? {
        var digits = Bytes(text.utf8)
        let padding = digits.reversed().prefix { $0 == UInt8(ascii: "=") }.count
        guard padding == 0 || padding <= 2 && digits.count % 4 == 0 else { return nil }
        digits.removeLast(padding)
        guard digits.count % 4 != 1 else { return nil }
        var output = Bytes()
        var (group, bits): (UInt32, UInt32) = (0, 0)
        for digit in digits {
            guard let value = alphabet.firstIndex(of: digit) else { return nil }
            group = group << 6 | UInt32(value)
            bits += 6
            if bits >= 8 {
                bits -= 8
                output.append(UInt8(truncatingIfNeeded: group >> bits))
            }
        }
        // The bits left over are no part of a byte: two texts must not encode one secret.
        return group & ((1 << bits) - 1) == 0 ? output : nil
    }

    /// The alphabet of RFC 4648, section 5, which URLs and tokens can hold, without padding.
    package static func encodeURL(_ bytes: Bytes) -> String {
        var output = Bytes()
        encode(bytes, to: &output)
        while output.last == UInt8(ascii: "=") { output.removeLast() }
        return output.map { digit in
            switch digit {
            case UInt8(ascii: "+"): UInt8(ascii: "-")
            case UInt8(ascii: "/"): UInt8(ascii: "_")
            default: digit
            }
        }.text
    }

    /// The bytes that ``encodeURL(_:)`` has written; `nil` for anything else.
    package static func decodeURL(_ text: some StringProtocol) -> Bytes? {
        guard !text.utf8.contains(where: { "+/=".utf8.contains($0) }) else { return nil }
        return decode(text.utf8.map { $0 == UInt8(ascii: "-") ? UInt8(ascii: "+") : $0 == UInt8(ascii: "_") ? UInt8(ascii: "/") : $0 }.text)
    }
}
