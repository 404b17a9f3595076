internal import ParleySystem

/// The text of an answer as far as it has come, for telling what of a whole message is new.
struct AnswerText: Sendable {
    /// The beginning of the text: no message that repeats more of it fits into an event.
    private var beginning = Bytes()
    private var count = 0
    private(set) var isBlank = true
    /// Text has come as a delta.
    private var hasDeltas = false
    /// Messages have what there is so far, and not what is new.
    private var isCumulative = false

    private static let beginningMax = 1 << 20

    var isEmpty: Bool { count == 0 }

    mutating func add(_ piece: Bytes) {
        beginning += piece.prefix(max(0, AnswerText.beginningMax - count))
        count += piece.count
        isBlank = isBlank && piece.isBlank
    }

    mutating func cameAsDelta() { hasDeltas = true }

    /// Returns the new part of the whole text `all`; `nil` when it contradicts the text so far.
    ///
    /// - Parameter piece: The delta of the same chunk, which is not added yet.
    mutating func new(in all: Bytes, beside piece: Bytes) -> Bytes? {
        if isEmpty && piece.isEmpty { return all }
        if all == piece { return [] }
        guard count <= AnswerText.beginningMax else { return hasDeltas || all.starts(with: beginning) ? nil : all }
        let earlier = beginning + piece
        let isLonger = all.starts(with: earlier)
        isCumulative = isCumulative || isLonger && all.count > earlier.count
        if isLonger, isCumulative || hasDeltas { return Bytes(all[earlier.count...]) }
        guard hasDeltas else { return all }
        return all.text.trimmed == earlier.text.trimmed ? [] : nil
    }
}

extension Bytes {
    /// There is nothing but white space.
    var isBlank: Bool { allSatisfy { [0x20, 0x09, 0x0A, 0x0D].contains($0) } }
}
