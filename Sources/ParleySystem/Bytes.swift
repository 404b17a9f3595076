/// Bytes as they are passed between modules.
package typealias Bytes = [UInt8]

extension [UInt8] {
    /// Appends `value` in big-endian order, so that byte order is numeric order: the form in every key.
    @inlinable
    package mutating func append<T: FixedWidthInteger>(bigEndian value: T) {
        for shift in stride(from: T.bitWidth - 8, through: 0, by: -8) {
            append(UInt8(truncatingIfNeeded: value >> T(shift)))
        }
    }

    /// Reads a big-endian integer at `offset`; the caller has checked the length.
    @inlinable
    package func readBigEndian<T: FixedWidthInteger>(at offset: Int, as type: T.Type = T.self) -> T {
        var value: T = 0
        for index in 0..<(T.bitWidth / 8) { value = value << 8 | T(truncatingIfNeeded: self[offset + index]) }
        return value
    }

    @inlinable
    package mutating func append(_ text: String) { append(contentsOf: text.utf8) }

    /// The bytes that a text of hexadecimal digits encodes; `nil` when it is none.
    package init?(hexadecimal text: String) {
        let digits = text.utf8.map { Character(UnicodeScalar($0)).hexDigitValue }
        guard digits.count.isMultiple(of: 2), digits.allSatisfy({ $0 != nil }) else { return nil }
        self = stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0]! << 4 | digits[$0 + 1]!) }
    }

    /// The bytes as text; ill-formed UTF-8 is repaired with U+FFFD.
    package var text: String { String(decoding: self, as: UTF8.self) }
}

extension UnsafeRawBufferPointer {
    /// Reads a big-endian integer at `offset`; the caller has checked the length.
    @inlinable
    package func readBigEndian<T: FixedWidthInteger>(at offset: Int, as type: T.Type = T.self) -> T {
        T(bigEndian: loadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

/// Lower-case hexadecimal of `bytes`.
package func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    let digits = Array("0123456789abcdef".utf8)
    var text = Bytes()
    for byte in bytes {
        text.append(digits[Int(byte >> 4)])
        text.append(digits[Int(byte & 15)])
    }
    return text.text
}
