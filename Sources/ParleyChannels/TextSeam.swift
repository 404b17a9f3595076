internal import ParleySystem

/// Where text that comes in pieces may be parted, so that each part is text by itself: not within a character, and not between CR and LF.
package enum TextSeam {
    /// How bytes of UTF-8 end.
    package enum End: Sendable {
        /// With a character.
        case whole
        /// With a carriage return, which a line feed may belong to.
        case afterReturn
        /// Within a character.
        case inCharacter
    }

    /// Looks at the last bytes only.
    package static func end(of bytes: some RandomAccessCollection<UInt8>) -> End {
        guard let last = bytes.last, last != 0x0d else { return bytes.isEmpty ? .whole : .afterReturn }
        // A character has up to four bytes, the first of which says how many.
        for (behind, byte) in bytes.reversed().prefix(3).enumerated() {
            if byte < 0x80 { return .whole }
            guard byte >= 0xc0 else { continue }
            let length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2
            return (0xc2...0xf4).contains(byte) && length > behind + 1 ? .inCharacter : .whole
        }
        return .whole
    }

    /// Whether bytes that end so may be parted from what begins with `next`.
    package static func parts(_ end: End, from next: UInt8?) -> Bool {
        switch end {
        case .whole: true
        case .afterReturn: next.map { $0 != 0x0a } ?? false
        // A character that the next byte does not continue is invalid UTF-8 either way.
        case .inCharacter: next.map { $0 & 0xc0 != 0x80 } ?? false
        }
    }

    /// Whether the bytes are UTF-8, up to a character that may be completed.
    package static func isUTF8(_ bytes: ArraySlice<UInt8>) -> Bool {
        guard end(of: bytes) == .inCharacter, let lead = bytes.lastIndex(where: { $0 >= 0xc0 }) else {
            return String(validating: bytes, as: UTF8.self) != nil
        }
        return String(validating: bytes[..<lead], as: UTF8.self) != nil
    }
}
