internal import ParleyChannels
internal import ParleySystem

/// Puts what was appended to a channel of text into events.
///
/// An event is text by itself, whatever appends it came in: one that ends within a character, or between CR and LF, waits for its completion, and the
/// offset that a reader is told stays before it. So the data of all events is the text as it is stored, but for its line ends, of which events have
/// one kind. Data that is no text at all goes into no such event.
struct TextEvents {
    /// The text of one append, and the offset it leads to.
    struct Piece {
        var text: Bytes
        var last: UInt64
    }

    enum Outcome: Equatable {
        /// Events that lead to `next`. `splitsLineEnd`: they end with a carriage return that may be half of a line's end.
        case events(Bytes, next: UInt64, EventFraming.State, splitsLineEnd: Bool)
        /// The data is not complete.
        case waits(TextSeam.End)
        /// The next data is not UTF-8.
        case unfit
    }

    let cursor: UInt64
    /// Whether nothing comes after the pieces yet.
    var reachesTail = true
    /// Whether nothing comes after the pieces, ever.
    var isEnded = false
    /// Whether a carriage return at the end has waited long enough for a line feed.
    var allowsReturn = false
    /// Whether the line that a line feed would end has been ended by the carriage return before it.
    var swallowsLineFeed = false
    /// Pieces beyond that many bytes are left for later.
    var bytesMax = Int.max

    /// - Parameter pieces: Not none.
    func outcome(of pieces: [Piece]) -> Outcome {
        var output = Bytes()
        var next: UInt64?
        var (state, end) = (EventFraming.State.behind, TextSeam.End.whole)
        var (text, isText) = (Bytes(), true)
        for (index, piece) in pieces.enumerated() where output.count < bytesMax {
            text += swallowsLineFeed && index == 0 && piece.text.first == 0x0a ? piece.text.dropFirst() : piece.text[...]
            let following = index + 1 < pieces.count ? pieces[index + 1].text.first : nil
            let isLast = index + 1 == pieces.count
            guard mayEnd(text, before: following, isLast: isLast) else { continue }
            isText = TextSeam.end(of: text) != .inCharacter && TextSeam.isUTF8(text[...])
            guard isText else { break }
            if isLast && reachesTail { state = isEnded ? .closed : .upToDate }
            EventFraming.writeText(text, to: &output)
            EventFraming.writeControl(next: piece.last, cursor: cursor, state, to: &output)
            (next, end, text) = (piece.last, isLast ? TextSeam.end(of: text) : .whole, [])
        }
        if let next { return .events(output, next: next, state, splitsLineEnd: end == .afterReturn) }
        return !isText || isEnded || !reachesTail || !TextSeam.isUTF8(text[...]) ? .unfit : .waits(TextSeam.end(of: text))
    }

    private func mayEnd(_ text: Bytes, before next: UInt8?, isLast: Bool) -> Bool {
        let end = TextSeam.end(of: text)
        return TextSeam.parts(end, from: next) || isLast && end == .afterReturn && (isEnded || allowsReturn)
    }
}

// MARK: Pages

extension TextEvents {
    /// Decides the outcome of a page of text, and which of its bytes are sent.
    ///
    /// - Parameters:
    ///   - text: The page's, behind `carried` bytes of a character that began before it.
    ///   - isOpen: Whether the page continues an event.
    func step(of text: Bytes, _ page: Page, carried: Int, isOpen: Bool) -> (PageEvents.Step, Range<Int>) {
        let start = !isOpen && swallowsLineFeed && text.first == 0x0a ? 1 : 0
        let end = TextSeam.end(of: text[start...])
        let isWhole = end == .whole && !(isOpen && text.isEmpty)
        if isWhole || end == .afterReturn && (page.isEnd || allowsReturn && !isOpen && page.isUpToDate), isUTF8(text, start..<text.count) {
            let state = page.isEnd ? EventFraming.State.closed : page.isUpToDate ? .upToDate : .behind
            return (.told(next: page.next, state, splitsLineEnd: end == .afterReturn), start..<text.count)
        }
        let seam = page.seam.byteCount > 0 ? page.seam.byteCount + carried : 0
        if seam > start, seam < text.count, parts(text, at: seam) {
            guard isUTF8(text, start..<seam) else { return (.unfit, 0..<0) }
            return (.told(next: page.seam.next, .behind, splitsLineEnd: false), start..<seam)
        }
        let told = start..<(end == .inCharacter ? text.lastIndex { $0 >= 0xc0 } ?? text.count : text.count)
        guard !isWhole, !page.isEnd, isUTF8(text, told) else { return (.unfit, 0..<0) }
        if page.isUpToDate, !isOpen { return (.waits(end, at: page.next), 0..<0) }
        return (.continues(PageEvents.OpenEvent(next: page.next, carried: Bytes(text[told.upperBound...]))), told)
    }

    /// The page has seen the text before `place` without what was carried over.
    private func parts(_ text: Bytes, at place: Int) -> Bool { TextSeam.parts(TextSeam.end(of: text[..<place]), from: text[place]) }

    /// Without a copy of the text, which may be long.
    private func isUTF8(_ text: Bytes, _ range: Range<Int>) -> Bool {
        do {
            _ = try UTF8Span(validating: text.span.extracting(range))
            return true
        } catch {
            return false
        }
    }
}
