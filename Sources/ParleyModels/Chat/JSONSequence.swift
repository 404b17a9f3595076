internal import ParleySystem

/// Cuts a body into its JSON values as its bytes arrive: one answer, or one chunk for each line.
struct JSONSequence: Sendable {
    enum Element {
        case value(Bytes)
        /// Neither an object nor an array follows.
        case other
    }

    /// The bytes of the value that has begun.
    private(set) var bytes = Bytes()
    private var depth = 0
    private var isInString = false
    private var isEscaped = false

    /// Takes bytes off the beginning of `input`, until a value ends.
    mutating func next(_ input: inout Slice<UnsafeRawBufferPointer>) -> Element? {
        if depth == 0 {
            input = input.drop { [0x20, 0x09, 0x0A, 0x0D, 0x1E].contains($0) }
            guard let first = input.first else { return nil }
            guard first == UInt8(ascii: "{") || first == UInt8(ascii: "[") else { return .other }
        }
        let end = input.firstIndex { ends($0) }
        bytes.append(contentsOf: input[..<(end.map { $0 + 1 } ?? input.endIndex)])
        input = input[(end.map { $0 + 1 } ?? input.endIndex)...]
        guard end != nil else { return nil }
        defer { bytes = [] }
        return .value(bytes)
    }

    /// Follows the value over `byte`, and says whether it ends there.
    private mutating func ends(_ byte: UInt8) -> Bool {
        if isInString {
            if isEscaped { isEscaped = false } else if byte == UInt8(ascii: "\\") { isEscaped = true } else { isInString = byte != UInt8(ascii: "\"") }
            return false
        }
        switch byte {
        case UInt8(ascii: "\""): isInString = true
        case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
        case UInt8(ascii: "}"), UInt8(ascii: "]"):
            depth -= 1
            return depth == 0
        default: break
        }
        return false
    }
}
