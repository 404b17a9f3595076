internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A page as a reader of events gets it.
///
/// It is made where the page is read. A short page is framed there as well, once there is room for it; a long one stays as it is stored and is framed
/// piece by piece as the peer takes it, because events may take six times as much as their data.
struct PageEvents: Sendable {
    /// The next step with a page.
    enum Step: Sendable, Equatable {
        /// A reader has been told everything up to `next`. `splitsLineEnd`: see ``TextEvents/Outcome``.
        case told(next: UInt64, EventFraming.State, splitsLineEnd: Bool)
        /// The page, which is told, is one event with the next one: it ends within a character, or between CR and LF, and there is more.
        case continues(OpenEvent)
        /// The data is not complete: nothing is sent.
        case waits(TextSeam.End, at: UInt64)
        /// It is not UTF-8: nothing is told.
        case unfit
    }

    /// An event whose end has not been told. Until then the offset that a reader is told stays before it.
    struct OpenEvent: Sendable, Equatable {
        /// Up to where it has been read.
        var next: UInt64
        /// The beginning of a character, which has not been told yet.
        var carried: Bytes
        /// How the text up to there ends; never `whole`.
        var end: TextSeam.End { carried.isEmpty ? .afterReturn : .inCharacter }
    }

    /// The form of its data in events; Base64 for text that turned out to be none, and is the first data of its answer.
    let form: EventFraming.Form
    let step: Step
    var slices: EventSlices
    /// Bytes that it holds, or will when it has been framed.
    let byteCount: Int
    private let isShort: Bool

    /// Longer events are framed piece by piece.
    private static let wholeBytesMax = 1 << 20

    init(_ page: Page, as form: EventFraming.Form, cursor: UInt64) {
        let state = PageEvents.state(after: page)
        self.init(
            page.body, page.isEmpty ? 0..<0 : 0..<page.body.count, form, .told(next: page.next, state, splitsLineEnd: false), cursor: cursor
        )
    }

    /// - Parameters:
    ///   - events: The state of the text before the page.
    ///   - open: The event that the page continues, and how its lines continue.
    ///   - isFirst: Whether the answer has no data yet, so that it can still be one in Base64.
    init(text page: Page, _ events: TextEvents, continuing open: (event: OpenEvent, lines: EventLines)?, isFirst: Bool) {
        if page.isEmpty, open == nil {
            self.init(page, as: .text, cursor: events.cursor)
            return
        }
        var (body, carried) = (page.body, 0)
        if let open, !open.event.carried.isEmpty {
            carried = open.event.carried.count
            body.insert(contentsOf: open.event.carried, at: 0)
        }
        let (step, range) = events.step(of: body, page, carried: carried, isOpen: open != nil)
        if step == .unfit, isFirst {
            self.init(page, as: .binary, cursor: events.cursor)
        } else {
            self.init(body, range, .text, step, cursor: events.cursor, lines: open?.lines)
        }
    }

    private init(
        _ body: Bytes, _ range: Range<Int>, _ form: EventFraming.Form, _ step: Step, cursor: UInt64, lines: EventLines? = nil
    ) {
        (self.form, self.step) = (form, step)
        var (end, isOpen) = (Bytes(), false)
        switch step {
        case .told(let next, let state, _): EventFraming.writeControl(next: next, cursor: cursor, state, to: &end)
        case .continues: isOpen = true
        case .waits, .unfit:
            (slices, byteCount, isShort) = (EventSlices(), 0, false)
            return
        }
        slices = EventSlices(body, range, form, continuing: lines, isOpen: isOpen, end: end)
        let framedBytes = EventFraming.byteCountMax(of: body[range], as: form) + end.count
        isShort = framedBytes <= PageEvents.wholeBytesMax
        byteCount = isShort ? framedBytes : body.count
    }

    var state: EventFraming.State { if case .told(_, let state, _) = step { state } else { .behind } }

    /// Frames the page, if it is short. Called where it was made, when there is room for it.
    mutating func frame() { if isShort { slices.frame() } }

    private static func state(after page: Page) -> EventFraming.State { page.isEnd ? .closed : page.isUpToDate ? .upToDate : .behind }
}

/// The framed form of a page, piece by piece.
struct EventSlices: Sendable {
    private var body = Bytes()
    /// The part of it that has not been framed.
    private var rest = 0..<0
    private var form = EventFraming.Form.text
    /// How the lines continue, in the next page if need be.
    private(set) var lines = EventLines()
    private var isBegun = false
    /// Whether the event continues with the next page.
    private var isOpen = false
    private var end = Bytes()
    /// All there is, if it has been framed at once.
    private(set) var whole: Bytes?
    private(set) var isDone = false

    /// No events.
    init() {}

    init(
        _ body: Bytes, _ range: Range<Int>, _ form: EventFraming.Form, continuing lines: EventLines?, isOpen: Bool, end: Bytes
    ) {
        (self.body, rest, self.form, self.isOpen, self.end) = (body, range, form, isOpen, end)
        (self.lines, isBegun) = (lines ?? EventLines(), lines != nil)
    }

    mutating func frame() {
        var output = Bytes()
        output.reserveCapacity(rest.count + 256)
        write(upTo: .max, to: &output)
        whole = output
    }

    /// The next piece, of about `bytesMax` bytes.
    mutating func next(upTo bytesMax: Int) -> Bytes {
        var output = Bytes()
        output.reserveCapacity(min(bytesMax, rest.count) + 256)
        write(upTo: bytesMax, to: &output)
        return output
    }

    private mutating func write(upTo bytesMax: Int, to output: inout Bytes) {
        if !isBegun, isOpen || !rest.isEmpty {
            output += EventFraming.dataHead
            isBegun = true
        }
        let piece = form == .binary ? base64(upTo: bytesMax, to: &output) : text(upTo: bytesMax, to: &output)
        rest = rest.lowerBound + piece..<rest.upperBound
        guard rest.isEmpty else { return }
        if isBegun, !isOpen { output += EventFraming.dataEnd }
        output += end
        (isDone, body, rest) = (true, [], 0..<0)
    }

    private mutating func text(upTo bytesMax: Int, to output: inout Bytes) -> Int {
        body.withUnsafeBytes { lines.write(UnsafeRawBufferPointer(rebasing: $0[rest]), upTo: bytesMax, to: &output) }
    }

    private func base64(upTo bytesMax: Int, to output: inout Bytes) -> Int {
        // Whole groups of three, so that the pieces together are one text in Base64.
        let count = bytesMax < rest.count ? max(3, bytesMax / 4 * 3) : rest.count
        let piece = rest.lowerBound..<min(rest.upperBound, rest.lowerBound + count)
        if piece == 0..<body.count { Base64.encode(body, to: &output) } else { Base64.encode(Bytes(body[piece]), to: &output) }
        return piece.count
    }
}
