internal import ParleySystem

/// Percent-encoding of RFC 3986.
package enum PercentEncoding {
    /// Decodes `text`; `nil` if an escape is malformed or the result is not UTF-8.
    package static func decode(_ text: some StringProtocol, plusIsSpace: Bool = false) -> String? {
        decode(ArraySlice(text.utf8), plusIsSpace: plusIsSpace)
    }

    /// The same of the bytes of a text. Every request comes here with its path, and a generic one was 5 % of the profile of small appends.
    package static func decode(_ text: ArraySlice<UInt8>, plusIsSpace: Bool = false) -> String? {
        // Most texts have nothing to decode.
        guard text.contains(UInt8(ascii: "%")) || plusIsSpace && text.contains(UInt8(ascii: "+")) else {
            return String(validating: text, as: UTF8.self)
        }
        var output = Bytes()
        output.reserveCapacity(text.count)
        var input = text.makeIterator()
        while let byte = input.next() {
            switch byte {
            case UInt8(ascii: "%"):
                guard let high = input.next().flatMap(HTTPGrammar.hexadecimalValue),
                    let low = input.next().flatMap(HTTPGrammar.hexadecimalValue)
                else { return nil }
                output.append(high << 4 | low)
            case UInt8(ascii: "+") where plusIsSpace: output.append(UInt8(ascii: " "))
            default: output.append(byte)
            }
        }
        return String(validating: output, as: UTF8.self)
    }

    /// Encodes everything but the unreserved characters and those in `keeping`.
    package static func encode(_ text: String, keeping: String = "") -> String {
        var output = Bytes()
        for byte in text.utf8 {
            let isLetter = (0x61...0x7a).contains(byte | 0x20)
            if isLetter || (0x30...0x39).contains(byte) || "-._~".utf8.contains(byte) || keeping.utf8.contains(byte) {
                output.append(byte)
            } else {
                output.append("%" + String(byte >> 4, radix: 16, uppercase: true) + String(byte & 15, radix: 16, uppercase: true))
            }
        }
        return output.text
    }
}
