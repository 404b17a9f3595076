package import ParleySystem

/// A place in a channel: the number of entries up to and including the one it names.
///
/// The first entry has offset 1, and reading "from" an offset gives what comes after it; so the offset of an entry is also where a reader
/// that has seen it continues. The token is 16 lower-case hexadecimal digits: opaque to clients, sortable as text, never reused.
package struct Offset: Hashable, Comparable, Sendable {
    package var value: UInt64

    package init(_ value: UInt64) { self.value = value }

    /// Before the first entry.
    package static let start = Offset(0)

    package static func < (a: Offset, b: Offset) -> Bool { a.value < b.value }

    /// Parses a token as this server gives them out; `nil` for anything else.
    package init?(token: some StringProtocol) {
        guard token.utf8.count == 16 else { return nil }
        var value: UInt64 = 0
        for byte in token.utf8 {
            switch byte {
            case 48...57: value = value << 4 | UInt64(byte - 48)
            case 97...102: value = value << 4 | UInt64(byte - 87)
            default: return nil
            }
        }
        self.value = value
    }

    package var token: String { utf8.text }

    package var utf8: Bytes {
        var text = Bytes()
        text.reserveCapacity(16)
        write(to: &text)
        return text
    }

    package func write(to output: inout Bytes) {
        for shift in stride(from: 60, through: 0, by: -4) {
            let digit = UInt8(truncatingIfNeeded: value >> UInt64(shift)) & 15
            output.append(digit < 10 ? 48 + digit : 87 + digit)
        }
    }
}

extension Offset: CustomStringConvertible {
    package var description: String { token }
}
