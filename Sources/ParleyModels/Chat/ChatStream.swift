internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Reads the answer to one Chat Completions call: bytes in, events out. It does no I/O and is told the time.
///
/// It gives exactly one `finished` or `failed`, as the last event; whatever comes later is read over. An answer is `finished` when the endpoint said
/// that it is complete and everything it said was understood; see ``AnswerReader`` for what that is.
struct ChatStream: Sendable {
    private enum Phase {
        case head
        /// The answer has begun well; whether it is an event stream is seen by how its body begins, whatever it is labelled.
        case opening(contentType: String?, body: Bytes)
        case events
        /// One JSON text in place of a stream.
        case whole(Bytes)
        /// Another answer than a stream: its body tells why.
        case refusal(status: Int, headers: [(name: String, value: String)], body: Bytes)
        case done
    }

    private let failures: ChatFailures
    private var phase = Phase.head
    private var parser = ServerSentEventParser()
    private var reader: AnswerReader

    private var httpError: UpstreamError?
    /// The answer's head names a compression.
    private var isCompressed = false
    /// How many bytes have come since something of the answer last did.
    private var idleBytes = 0
    /// How many bytes have come since the answer named the reason for its end; 0 until then.
    private var bytesAfterFinish = 0

    /// What is kept of an error's body, which is text for people.
    private static let refusalBytesMax = 64 << 10
    /// What an answer in one piece may measure.
    private static let wholeBytesMax = 16 << 20
    /// How much of signs of life, or of an error's body, is listened to.
    private static let idleBytesMax = 16 << 20
    /// How much is waited for behind the end of an answer: usage has come by then, or never will.
    private static let bytesAfterFinishMax = 64 << 10

    /// - Parameters:
    ///   - tools: The names of what the model was offered.
    ///   - isContinuing: The answer goes on from a text, and so may add nothing to it.
    init(_ failures: ChatFailures, tools: [String] = [], isContinuing: Bool = false) {
        self.failures = failures
        reader = AnswerReader(failures, tools: tools, isContinuing: isContinuing)
    }

    /// What the endpoint refused the request with before it sold anything.
    var refusal: UpstreamError? { httpError ?? reader.refusal }

    var isDone: Bool { if case .done = phase { true } else { false } }

    /// The answer has named the reason for its end, and only usage may be missing.
    var isFinishing: Bool { !isDone && reader.hasFinished }

    /// How much of the answer itself has come: it rises with everything but signs of life.
    var progress: Int { reader.progress }

    mutating func head(status: Int, headers: [(name: String, value: String)]) {
        let type = headers.last { $0.name.lowercased() == "content-type" }?.value.lowercased()
        let coding = headers.last { $0.name.lowercased() == "content-encoding" }?.value.lowercased() ?? "identity"
        isCompressed = !["", "identity"].contains(coding)
        let isAnswer = (200...203).contains(status)
        phase = isAnswer ? .opening(contentType: type, body: []) : .refusal(status: status, headers: headers, body: [])
    }

    mutating func body(_ bytes: UnsafeRawBufferPointer) -> [ModelEvent] {
        let before = progress
        var output = take(bytes)
        idleBytes = progress == before ? idleBytes + bytes.count : 0
        guard idleBytes > ChatStream.idleBytesMax, !isDone else { return output }
        if case .refusal = phase { return output + end(nil, now: Timestamp(milliseconds: 0)) }
        finish(reader.closed() ?? .failed(failures.flooded(bytes: ChatStream.idleBytesMax)), &output)
        return output
    }

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
        case .whole(var body):
            phase = .done  // So that the bytes are not copied.
            body.append(contentsOf: bytes)
            phase = .whole(body)
            guard body.count > ChatStream.wholeBytesMax else { return [] }
            var output: [ModelEvent] = []
            finish(.failed(failures.invalidEvent("is longer than \(ChatStream.wholeBytesMax) bytes", retryable: false)), &output)
            return output
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
        case .whole(let body): output += whole(body, error)
        case .events:
            if error == nil, let last = try? parser.end(), isWhole(last) { read(last, &output) }
            guard !isDone else { break }
            // The reason to finish is the end of the answer. What may be missing then is the usage, which is not worth a second call.
            let words = parser.strayText.text
            let isUndone = isUndone(error) && !words.isEmpty
            let failure = isUndone ? failures.encoding : error.map(failures.transport) ?? failures.closed(saying: words)
            finish(reader.closed() ?? .failed(failure), &output)
        }
        return output
    }

    /// Nothing of an answer came out of what was compressed, and nothing will come out of it the next time.
    private func isUndone(_ error: OutgoingError?) -> Bool { isCompressed && error == nil && progress == 0 }

    /// The time for what may follow the end of an answer is over.
    mutating func endGrace() -> [ModelEvent] {
        var output: [ModelEvent] = []
        if isFinishing { finish(reader.closed() ?? .failed(failures.closed), &output) }
        return output
    }

    /// Nothing of the answer has come for too long.
    mutating func stall() -> [ModelEvent] {
        var output: [ModelEvent] = []
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
        case UInt8(ascii: "{")?, UInt8(ascii: "[")?: phase = .whole(Bytes(text))
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
        let error = ChatStream.error(in: body)
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

    // MARK: One JSON text

    private mutating func whole(_ body: Bytes, _ error: OutgoingError?) -> [ModelEvent] {
        var output: [ModelEvent] = []
        guard error == nil else {
            finish(.failed(failures.transport(error!)), &output)
            return output
        }
        guard let answer = LenientJSON.parse(body) else {
            // Lines of JSON, or a stream behind a line of it.
            phase = .events
            parser = ServerSentEventParser(bytesMax: ChatStream.wholeBytesMax)
            output += body.withUnsafeBytes { events($0) }
            return output + end(nil, now: Timestamp(milliseconds: 0))
        }
        if answer["choices"] == nil, UpstreamError(answer: answer) == nil {
            finish(.failed(failures.notAStream(contentType: "application/json")), &output)
        } else if let end = reader.read(answer, &output) ?? reader.closed() {
            finish(end, &output)
        } else {
            finish(.failed(failures.closed), &output)
        }
        return output
    }

    // MARK: Events

    private mutating func events(_ bytes: UnsafeRawBufferPointer) -> [ModelEvent] {
        var events: [ServerSentEvent] = []
        var output: [ModelEvent] = []
        var isTooLong = false
        let wasFinishing = isFinishing
        do throws(ServerSentEventError) { try parser.feed(bytes) { events.append($0) } } catch { isTooLong = true }
        for event in events { read(event, &output) }
        if isFinishing && wasFinishing { bytesAfterFinish += bytes.count }
        if isTooLong, !isDone {
            // The answer is whole, and what follows it is not worth a second one.
            finish(reader.closed() ?? .failed(failures.invalidEvent("is longer than \(parser.bytesMax) bytes", retryable: false)), &output)
        } else if bytesAfterFinish > ChatStream.bytesAfterFinishMax {
            output += endGrace()
        }
        return output
    }

    /// Whether an event that the connection's end cut off came through in full.
    private func isWhole(_ event: ServerSentEvent) -> Bool {
        event.name == "error" || event.isDone || LenientJSON.parse(event.data) != nil
            || event.data.first.map { ![UInt8(ascii: "{"), UInt8(ascii: "[")].contains($0) } ?? false
            || event.data.split(separator: UInt8(ascii: "\n")).allSatisfy { LenientJSON.parse(Bytes($0)) != nil }
    }

    private mutating func read(_ event: ServerSentEvent, _ output: inout [ModelEvent]) {
        guard !isDone, !event.data.isEmpty else { return }
        let progress = reader.progress
        if let end = reader.read(event, &output) { finish(end, &output) }
        // What is said behind the end is of the answer still.
        if reader.progress != progress { bytesAfterFinish = 0 }
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
