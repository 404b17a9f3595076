internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Reads the answer to one Chat Completions call: bytes in, events out. It does no I/O and is told the time.
///
/// It gives exactly one `finished` or `failed`, as the last event; later input is ignored. An answer is `finished` when the endpoint said that it is
/// complete and all of it was understood; see ``AnswerReader`` for the details.
struct ChatStream: Sendable {
    private enum Phase {
        case head
        /// The answer has begun well; whether it is an event stream is seen by how its body begins, whatever it is labelled.
        case opening(contentType: String?, body: Bytes)
        case events
        /// JSON in place of a stream: one answer, or a chunk for each line.
        case values
        /// Another answer than a stream: its body tells why.
        case refusal(status: Int, headers: [(name: String, value: String)], body: Bytes)
        case done
    }

    private let failures: ChatFailures
    private var phase = Phase.head
    private var parser = ServerSentEventParser()
    private var sequence = JSONSequence()
    /// How many JSON values there were in place of a stream.
    private var valueCount = 0
    /// One of them was of an answer.
    private var hasAnswer = false
    private var charset = Charset.utf8
    /// The label says that this is one JSON value.
    private var isLabelledJSON = false
    /// An empty line has ended an event.
    private var hasEvent = false
    private var reader: AnswerReader

    private var httpError: UpstreamError?
    /// The answer's head names a compression.
    private var isCompressed = false
    /// The head says where the body ends, so that its end in order is that of the whole. libcurl does not report that the end of something compressed
    /// is missing.
    private var isFramed = false
    /// The end of a compressed answer, until its checksum has been read.
    private var pending: ModelEvent?
    /// How many bytes have come since something of the answer last did.
    private var idleBytes = 0
    /// How many bytes have come since the answer was whole, or seemed to be; 0 until then.
    private var bytesAfterFinish = 0

    /// The part of an error's body that is kept, which is text for people.
    private static let refusalBytesMax = 64 << 10
    /// The limit of an answer in one piece.
    private static let wholeBytesMax = 4 << 20
    /// How much of signs of life, or of an error's body, is listened to.
    private static let idleBytesMax = 16 << 20
    /// How much is waited for behind the end of an answer: usage has come by then, or never will.
    private static let bytesAfterFinishMax = 64 << 10

    /// - Parameters:
    ///   - tools: The names of what the model was offered.
    ///   - continuing: The text that the answer continues, and so may add nothing to.
    ///   - dropsEcho: The text is dropped where the answer begins with it; see ``EchoedPrefix``.
    init(_ failures: ChatFailures, tools: [String] = [], continuing: String? = nil, dropsEcho: Bool = true) {
        self.failures = failures
        reader = AnswerReader(failures, tools: tools, continuing: continuing, dropsEcho: dropsEcho)
    }

    /// The endpoint's refusal of the request, before it sold anything.
    var refusal: UpstreamError? { httpError ?? reader.refusal }

    var isDone: Bool { if case .done = phase { true } else { false } }

    /// The answer is whole, and only usage may be missing.
    var isFinishing: Bool { !isDone && (pending != nil || reader.isWhole(at: .broken)) }

    /// How much of the answer itself has come: it rises with everything but signs of life.
    var progress: Int { reader.progress }

    mutating func head(status: Int, headers: [(name: String, value: String)]) {
        let type = headers.last { $0.name.lowercased() == "content-type" }?.value.lowercased()
        let coding = headers.last { $0.name.lowercased() == "content-encoding" }?.value.lowercased() ?? "identity"
        isCompressed = !["", "identity"].contains(coding)
        isFramed = headers.contains { ["content-length", "transfer-encoding"].contains($0.name.lowercased()) }
        isLabelledJSON = type?.hasPrefix("application/json") ?? false
        charset = Charset(contentType: type)
        let isAnswer = (200...203).contains(status)
        phase = isAnswer ? .opening(contentType: type, body: []) : .refusal(status: status, headers: headers, body: [])
    }

    mutating func body(_ bytes: UnsafeRawBufferPointer) -> [ModelEvent] {
        let (before, wasFinishing) = (progress, mayBeOver)
        var output = take(bytes)
        idleBytes = progress == before ? idleBytes + bytes.count : 0
        bytesAfterFinish = progress == before && wasFinishing ? bytesAfterFinish + bytes.count : 0
        if bytesAfterFinish > ChatStream.bytesAfterFinishMax, !isDone { output += endGrace() }
        guard idleBytes > ChatStream.idleBytesMax, !isDone else { return output }
        if case .refusal = phase { return output + end(nil, now: Timestamp(milliseconds: 0)) }
        finish(ended(.broken) ?? .failed(failures.flooded(bytes: ChatStream.idleBytesMax)), &output)
        return output
    }

    /// Nothing is missing if nothing more comes; inside a line that is still to be seen.
    private var mayBeOver: Bool { pending != nil || reader.isWhole(at: .silent) }

    private mutating func take(_ bytes: UnsafeRawBufferPointer) -> [ModelEvent] {
        switch phase {
        case .head, .done: return []
        case .refusal(let status, let headers, var body):
            body.append(contentsOf: bytes.prefix(max(0, ChatStream.refusalBytesMax - body.count)))
            phase = .refusal(status: status, headers: headers, body: body)
            return []
        case .opening(let contentType, var body):
            body.append(contentsOf: bytes)
            return open(contentType, body, isOver: false)
        case .values: return values(bytes[...])
        case .events: return events(bytes)
        }
    }

    mutating func end(_ error: OutgoingError?, now: Timestamp) -> [ModelEvent] {
        var output: [ModelEvent] = []
        if case .opening(let contentType, let body) = phase, !body.isEmpty { output += open(contentType, body, isOver: true) }
        switch phase {
        case .done: break
        case .head, .opening:
            finish(.failed(isUndone(error) ? failures.encoding : error.map(failures.transport) ?? failures.closed), &output)
        case .refusal(let status, let headers, let body):
            finish(.failed(refused(status: status, headers: headers, body: body, now: now)), &output)
        case .values: endValues(error, &output)
        case .events:
            let (wasInside, isOnlyLine) = (isInside, valueCount == 0 && !hasEvent && !parser.isInsideEvent)
            if let last = try? parser.end(), error == nil ? isWhole(last) : last.isDone || LenientJSON.parse(last.data) != nil {
                // One JSON value, with the name of a field before it.
                if isLabelledJSON, isOnlyLine, !ChatStream.isChunk(LenientJSON.parse(last.data)) { reader.isInOnePiece = true }
                read(last, &output)
            }
            guard !isDone else { break }
            // The reason to finish is the end of the answer. Only the usage may be missing then, which is not worth a second call.
            let words = parser.strayText.text
            let isUndone = isUndone(error) && !words.isEmpty
            let failure = isUndone ? failures.encoding : error.map(failures.transport) ?? failures.closed(saying: words)
            finish(ended(error, isInside: wasInside) ?? .failed(failure), &output)
        }
        return output
    }

    /// The stream is in the middle of something.
    private var isInside: Bool { parser.isInsideLine || parser.isInsideEvent || !sequence.bytes.isEmpty }

    /// The end of an answer without `[DONE]` whose connection ends with `error`; `nil` when something may be missing.
    private func ended(_ error: OutgoingError?, isInside: Bool) -> ModelEvent? {
        switch error?.code {
        // The text so far may not be what the endpoint sent.
        case "upstream_encoding": nil
        case nil: ended(isInside || isCompressed && !isFramed ? .broken : .clean)
        case "upstream_timeout": ended(isInside ? .broken : .silent)
        default: ended(.broken)
        }
    }

    private func ended(_ how: AnswerChoices.StreamEnd) -> ModelEvent? { pending ?? reader.ended(how) }

    /// Nothing of an answer came out of what was compressed, and nothing will come out of it the next time.
    private func isUndone(_ error: OutgoingError?) -> Bool { isCompressed && error == nil && progress == 0 }

    /// The time for what may follow the end of an answer is over.
    mutating func endGrace() -> [ModelEvent] {
        var output: [ModelEvent] = []
        if !isDone, let end = ended(isInside ? .broken : .silent) { finish(end, &output) }
        return output
    }

    /// Nothing of the answer has come for too long. A reason that came with the only piece of an answer is believed now: an endpoint that ends nothing
    /// could not be used at all otherwise.
    mutating func stall() -> [ModelEvent] {
        var output = endGrace()
        if !isDone { finish(.failed(failures.stalled), &output) }
        return output
    }

    // MARK: How the body begins

    private mutating func open(_ contentType: String?, _ body: Bytes, isOver: Bool) -> [ModelEvent] {
        let start = body.starts(with: [0xEF, 0xBB, 0xBF]) ? 3 : 0
        let text = body[start...].drop { [0x20, 0x09, 0x0A, 0x0D].contains($0) }
        // A server that does not say what it sends gets the benefit of the doubt.
        let isLabelled = contentType?.hasPrefix("text/event-stream") ?? true
        switch text.first {
        case UInt8(ascii: "{")?, UInt8(ascii: "[")?:
            phase = .values
            return Bytes(text).withUnsafeBytes { values($0[...]) }
        case UInt8(ascii: "<")?:
            // A page, whatever it is labelled.
            phase = .refusal(status: 200, headers: [("content-type", isLabelled ? "text/html" : contentType ?? "")], body: body)
        case _ where ChatStream.fields.contains { text.starts(with: $0) } || isLabelled && !text.isEmpty:
            phase = .events
            return body.withUnsafeBytes { events($0) }
        case _ where isOver || text.count >= ChatStream.fieldBytesMax || body.count > ChatStream.refusalBytesMax:
            if isLabelled { break }
            phase = .refusal(
                status: 200, headers: [("content-type", contentType ?? "")], body: Bytes(body.prefix(ChatStream.refusalBytesMax)))
        default: phase = .opening(contentType: contentType, body: body)
        }
        return []
    }

    private static let fields = ["data:", ":", "event:", "id:", "retry:", "error:"].map { Bytes($0.utf8) }
    private static let fieldBytesMax = 6

    private mutating func refused(status: Int, headers: [(name: String, value: String)], body: Bytes, now: Timestamp) -> StepFailure {
        let error = ChatStream.error(in: Charset.text(of: charset.decode(body)))
        if status == 200 { return failures.notAStream(contentType: headers.last?.value ?? "", saying: error.message) }
        httpError = error
        return failures.http(status: status, headers: headers, error: error, now: now)
    }

    private static func error(in body: Bytes) -> UpstreamError {
        // Some refuse a request for a stream with a stream of one event.
        var events: [ServerSentEvent] = []
        var parser = ServerSentEventParser()
        if body.starts(with: Bytes("data:".utf8)) || body.starts(with: Bytes("event:".utf8)) {
            body.withUnsafeBytes { bytes in try? parser.feed(bytes) { events.append($0) } }
            if let last = try? parser.end() { events.append(last) }
        }
        let text = events.first?.data ?? body
        if let object = LenientJSON.parse(text) { return UpstreamError(refusal: object) }
        return UpstreamError(refusal: .string(PageText.isPage(text) ? PageText.words(text) : text.text))
    }

    // MARK: JSON in place of a stream

    private mutating func values(_ bytes: Slice<UnsafeRawBufferPointer>) -> [ModelEvent] {
        var (rest, output) = (bytes, [ModelEvent]())
        while case .values = phase, let element = sequence.next(&rest) {
            switch element {
            case .value(let value): read(value: charset.decode(value), &output)
            case .other: phase = .events
            }
        }
        if case .events = phase, !rest.isEmpty { output += events(UnsafeRawBufferPointer(rebasing: rest)) }
        if case .values = phase, sequence.bytes.count > ChatStream.wholeBytesMax { finish(tooLong(ChatStream.wholeBytesMax), &output) }
        return output
    }

    private mutating func read(value: Bytes, _ output: inout [ModelEvent]) {
        if value.count > ChatStream.wholeBytesMax { return finish(tooLong(ChatStream.wholeBytesMax), &output) }
        let (isFirst, isFirstOfAnswer) = (valueCount == 0, !hasAnswer)
        valueCount += 1
        guard let json = reader.parse(value) else {
            // Words in brackets, perhaps, of which the parser of events makes more.
            guard isFirst else { return read(ServerSentEvent(data: value), &output) }
            phase = .events
            return output += value.withUnsafeBytes { events($0) }
        }
        hasAnswer = hasAnswer || json["choices"] != nil || UpstreamError(answer: json) != nil
        // Behind it there may be usage.
        if isFirstOfAnswer || !AnswerChoices.of(json).isEmpty {
            reader.isInOnePiece = isFirstOfAnswer && !ChatStream.isChunk(json) && !ChatStream.hasDelta(json)
        }
        if hasAnswer, let end = reader.read(json, &output) { finish(end, &output) }
    }

    /// Whether `chunk` says that it is one of many.
    private static func isChunk(_ chunk: JSON?) -> Bool { chunk?["object"]?.string?.hasSuffix("chunk") ?? false }

    private static func hasDelta(_ chunk: JSON) -> Bool {
        AnswerChoices.of(chunk).contains { !($0.choice["delta"]?.members ?? []).isEmpty }
    }

    private mutating func endValues(_ error: OutgoingError?, _ output: inout [ModelEvent]) {
        if valueCount == 0, error == nil {
            // Not even one: the words may be a proxy's.
            phase = .events
            output += sequence.bytes.withUnsafeBytes { events($0) }
            return output += end(nil, now: Timestamp(milliseconds: 0))
        }
        // An answer in one piece is over with it, whatever its choices lack.
        let isOver = error == nil && valueCount == 1 && sequence.bytes.isEmpty && reader.hasFinished
        let failure = error.map(failures.transport) ?? (hasAnswer ? failures.closed : failures.notAStream(contentType: "application/json"))
        finish(isOver ? reader.end() : ended(error, isInside: isInside) ?? .failed(failure), &output)
    }

    /// A whole answer stands, and what follows it is not worth a second one.
    private func tooLong(_ bytesMax: Int) -> ModelEvent {
        ended(.broken) ?? .failed(failures.invalidEvent("is longer than \(bytesMax) bytes", retryable: false))
    }

    // MARK: Events

    private mutating func events(_ bytes: UnsafeRawBufferPointer) -> [ModelEvent] {
        var events: [ServerSentEvent] = []
        var output: [ModelEvent] = []
        var isTooLong = false
        do throws(ServerSentEventError) { try parser.feed(bytes) { events.append($0) } } catch { isTooLong = true }
        for event in events {
            hasEvent = true
            read(event, &output)
        }
        if isTooLong, !isDone { finish(tooLong(parser.bytesMax), &output) }
        return output
    }

    /// Whether an event that the connection's end cut off came through in full.
    private func isWhole(_ event: ServerSentEvent) -> Bool {
        event.name == "error" || event.isDone || LenientJSON.parse(event.data) != nil
            || event.data.first.map { ![UInt8(ascii: "{"), UInt8(ascii: "[")].contains($0) } ?? false
            || event.data.split(separator: UInt8(ascii: "\n")).allSatisfy {
                ServerSentEvent(data: Bytes($0)).isDone || LenientJSON.parse(Bytes($0)) != nil
            }
    }

    private mutating func read(_ event: ServerSentEvent, _ output: inout [ModelEvent]) {
        guard !isDone, pending == nil, !event.data.isEmpty else { return }
        let event = ServerSentEvent(name: event.name, data: charset.decode(event.data))
        guard let end = reader.read(event, &output) else { return }
        if isCompressed, case .finished = end { pending = end } else { finish(end, &output) }
    }

    private mutating func finish(_ event: ModelEvent, _ output: inout [ModelEvent]) {
        phase = .done
        if case .finished = event {
            if let rest = reader.rest { output.append(.text(rest)) }
            if let members = reader.returnedMembers { output.append(.returned(call: nil, members)) }
        }
        output.append(event)
    }
}
