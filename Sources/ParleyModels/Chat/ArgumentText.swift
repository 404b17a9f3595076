internal import ParleySystem

/// The arguments of a call as far as they have come, with the place in their JSON that they have reached. Costs what the pieces measure.
struct ArgumentText: Sendable {
    enum State: Equatable {
        case empty
        case open(isInString: Bool)
        /// An object that is closed.
        case complete
    }

    private(set) var bytes = Bytes()
    private(set) var state = State.empty
    private var depth = 0
    private var isEscaped = false

    var isComplete: Bool { state == .complete }

    var isEmpty: Bool { bytes.isEmpty }

    var isPlaceholder: Bool { bytes.elementsEqual("{}".utf8) }

    /// Adds a piece.
    ///
    /// - Returns: the new part: nothing of a repetition, the rest of a piece that begins with all the text so far.
    mutating func add(_ piece: Bytes) -> Bytes {
        if isComplete {
            if isSame(as: piece) || piece.allSatisfy({ [0x20, 0x09, 0x0A, 0x0D].contains($0) }) { return [] }
            // An empty object before the real one holds its place; ``ModelAttempt`` takes it away.
            if isPlaceholder { self = ArgumentText() }
        }
        // Behind `{` no piece of JSON begins with all that was before it.
        let isCumulative = bytes.first == UInt8(ascii: "{") && piece.starts(with: bytes)
        let rest = isCumulative ? Bytes(piece[bytes.count...]) : piece
        bytes += rest
        scan(rest)
        return rest
    }

    /// Whether `other` says the same as these arguments, which are complete.
    func isSame(as other: Bytes) -> Bool {
        if bytes == other { return true }
        // Only what may be as long is parsed, so that many short pieces behind a long one cost what they measure.
        guard other.first == UInt8(ascii: "{"), other.count >= bytes.count / 4, other.count / 4 <= bytes.count,
            let one = try? JSON.parse(bytes), let two = try? JSON.parse(other)
        else { return false }
        return one.canonical == two.canonical
    }

    private mutating func scan(_ piece: Bytes) {
        for byte in piece {
            switch state {
            case .complete: return
            case .open(isInString: true):
                if isEscaped {
                    isEscaped = false
                } else if byte == UInt8(ascii: "\\") {
                    isEscaped = true
                } else if byte == UInt8(ascii: "\"") {
                    state = .open(isInString: false)
                }
            case .empty, .open:
                switch byte {
                case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
                case UInt8(ascii: "}"), UInt8(ascii: "]"): depth -= 1
                case 0x20, 0x09, 0x0A, 0x0D: continue
                default: break
                }
                state =
                    depth <= 0 && (byte == UInt8(ascii: "}") || byte == UInt8(ascii: "]"))
                    ? .complete : .open(isInString: byte == UInt8(ascii: "\""))
            }
        }
    }
}
