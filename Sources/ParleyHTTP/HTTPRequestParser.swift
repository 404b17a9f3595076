package import ParleySystem

/// Why a request was not accepted, and with which status it is answered. The connection cannot continue after it.
package struct HTTPParseError: Error, Sendable, Equatable {
    package var status: Int
    /// `bad_request`, `head_too_large`, `target_too_long`, `body_too_large`, `unsupported_version`, `unsupported_transfer_coding`,
    /// `unsupported_method` or `expectation_failed`.
    package var code: String
    package var message: String

    init(_ status: Int, _ code: String, _ message: String) {
        self.status = status
        self.code = code
        self.message = message
    }

    static func bad(_ message: String) -> HTTPParseError { HTTPParseError(400, "bad_request", message) }
}

/// The limits of a parser.
package struct HTTPParserLimits: Sendable {
    package var headBytes = 16 << 10
    package var fieldCount = 100
    package var targetBytes = 8 << 10
    package var methodBytes = 32
    package var chunkLineBytes = 256
    package var bodyBytes = 10 << 20

    package init() {}
}

/// A strict, incremental parser of HTTP/1.1 requests (RFC 9112).
///
/// It takes bytes in pieces of any size, looks at each of them once and refuses a request at its first wrong byte. Everything
/// that two parties could read in two ways is refused: that is what request smuggling is made of. The cut of the input into
/// pieces never changes what comes out.
package struct HTTPRequestParser: ~Copyable {
    package enum Event: Sendable {
        /// All input is used up.
        case needsMore
        /// The head is complete: see `head`, and set `bodyBytesMax` if this request may have more or less than usual.
        case head
        /// The request is complete: `takeRequest()` before continuing.
        case request
    }

    /// How far the current request has come.
    package enum Phase: Sendable { case idle, head, body }

    enum State: UInt8 {
        case start, startLF, method, target, version, requestLineLF
        case fieldStart, fieldName, fieldValueStart, fieldValue, fieldLF, headLF
        case headDone
        case body
        case chunkStart, chunkSize, chunkLF, chunkData, chunkDataCR, chunkDataLF
        case extensionGap, extensionNameStart, extensionName, extensionNameGap
        case extensionValueStart, extensionToken, extensionQuoted, extensionEscape, extensionQuotedEnd
        case trailerStart, trailerName, trailerValue, trailerLF, trailersLF
        case done
    }

    let limits: HTTPParserLimits
    /// The most bytes that the body of the current request may have.
    package var bodyBytesMax: Int
    package internal(set) var head = HTTPRequestHead()

    var state = State.start
    var body = Bytes()
    /// Bytes of the body that have come, kept or not.
    package internal(set) var bodyCount = 0
    /// Whether the body of the current request is read and dropped.
    package var discardsBody = false
    /// Bytes of the body, or of the current chunk, that are still to come.
    var remaining = 0
    var chunkDigits = 0
    var lineBytes = 0
    var trailerBytes = 0
    var trailerCount = 0
    var trailerName = Bytes()
    private var fieldNameStart = 0
    private var fieldNameEnd = 0
    private var valueStart = 0
    private var hasSkippedLine = false

    package init(limits: HTTPParserLimits = HTTPParserLimits()) {
        self.limits = limits
        bodyBytesMax = limits.bodyBytes
    }

    /// Lets go of what has come of the body, and keeps nothing of the rest.
    package mutating func dropBody() { (body, discardsBody) = ([], true) }

    /// Bytes that the current request takes in memory.
    package var heldBytes: Int { head.bytes.count + body.count }

    package var phase: Phase {
        switch state {
        case .start, .startLF: .idle
        case .method, .target, .version, .requestLineLF, .fieldStart, .fieldName, .fieldValueStart, .fieldValue, .fieldLF, .headLF: .head
        default: .body
        }
    }

    /// Takes bytes up to the next event.
    ///
    /// - Returns: How many bytes were used, and what was reached. Call again with the rest.
    package mutating func parse(_ input: UnsafeRawBufferPointer) throws(HTTPParseError) -> (used: Int, event: Event) {
        var index = 0
        while true {
            switch state {
            case .start, .startLF:
                guard index < input.count else { return (index, .needsMore) }
                try skipLine(input[index], &index)
            case .method, .target, .version, .requestLineLF, .fieldStart, .fieldName, .fieldValueStart, .fieldValue, .fieldLF, .headLF:
                guard index < input.count else { return (index, .needsMore) }
                try parseHead(input, &index)
                if state == .headDone { return (index, .head) }
            case .headDone:
                try startBody()
            case .done:
                return (index, .request)
            default:
                guard index < input.count else { return (index, .needsMore) }
                try parseBody(input, &index)
            }
        }
    }

    /// The complete request; the parser is then ready for the next one.
    package mutating func takeRequest() -> (head: HTTPRequestHead, body: Bytes) {
        precondition(state == .done, "no request is complete")
        let request = (head, body)
        head = HTTPRequestHead()
        body = []
        (bodyCount, discardsBody) = (0, false)
        bodyBytesMax = limits.bodyBytes
        state = .start
        hasSkippedLine = false
        (trailerBytes, trailerCount) = (0, 0)
        return request
    }

    /// One empty line before a request is forgiven: old clients send it after a body (RFC 9112, section 2.2).
    private mutating func skipLine(_ byte: UInt8, _ index: inout Int) throws(HTTPParseError) {
        if state == .startLF {
            guard byte == 0x0a else { throw .bad("a CR stands without its LF before the request line") }
            state = .start
            hasSkippedLine = true
            index += 1
        } else if byte == 0x0d, !hasSkippedLine {
            state = .startLF
            index += 1
        } else {
            state = .method
        }
    }

    /// Takes bytes of the head, and keeps them, until it ends or the input does.
    private mutating func parseHead(_ input: UnsafeRawBufferPointer, _ index: inout Int) throws(HTTPParseError) {
        let first = index
        try scanHead(input, &index)
        head.bytes.append(contentsOf: UnsafeRawBufferPointer(rebasing: input[first..<index]))
        if state == .headDone { try finishHead() }
    }

    private mutating func scanHead(_ input: UnsafeRawBufferPointer, _ index: inout Int) throws(HTTPParseError) {
        let first = index
        let kept = head.bytes.count
        let end = min(input.count, first + limits.headBytes - kept)
        while true {
            if index == end {
                guard end == input.count else {
                    throw HTTPParseError(431, "head_too_large", "the request's head is longer than \(limits.headBytes) bytes")
                }
                return
            }
            let byte = input[index]
            let position = kept + index - first
            switch state {
            case .method:
                if HTTPGrammar.isToken(byte) {
                    guard position < limits.methodBytes else {
                        throw HTTPParseError(501, "unsupported_method", "the method is longer than \(limits.methodBytes) bytes")
                    }
                } else {
                    guard byte == 0x20, position > 0 else { throw .bad("the request line does not start with a method and one space") }
                    head.methodEnd = position
                    state = .target
                }
            case .target:
                while index < end, input[index] &- 0x21 < 0x5e { index += 1 }
                let length = kept + index - first - head.methodEnd - 1
                guard length <= limits.targetBytes else {
                    throw HTTPParseError(414, "target_too_long", "the request target is longer than \(limits.targetBytes) bytes")
                }
                if index == end { continue }
                guard input[index] == 0x20, length > 0 else {
                    throw .bad("the request target is not visible ASCII between single spaces")
                }
                head.targetEnd = kept + index - first
                state = .version
            case .version:
                try parseVersion(byte, position - head.targetEnd - 1)
            case .requestLineLF:
                guard byte == 0x0a else { throw .bad("the request line does not end in CRLF") }
                state = .fieldStart
            case .fieldStart:
                try startField(byte, position)
            case .fieldName:
                while index < end, HTTPGrammar.isToken(input[index]) { index += 1 }
                if index == end { continue }
                guard input[index] == UInt8(ascii: ":") else { throw .bad("a field name is not a token directly before its colon") }
                fieldNameEnd = kept + index - first
                state = .fieldValueStart
            case .fieldValueStart:
                valueStart = position
                if !HTTPGrammar.isBlank(byte) {
                    state = .fieldValue
                    continue
                }
            case .fieldValue:
                while index < end, HTTPGrammar.isFieldText(input[index]) { index += 1 }
                if index == end { continue }
                guard input[index] == 0x0d else { throw .bad("a field value has a control character in it") }
                let valueEnd = kept + index - first
                head.fields.append(
                    .init(name: Int32(fieldNameStart)..<Int32(fieldNameEnd), value: Int32(valueStart)..<Int32(valueEnd)))
                state = .fieldLF
            case .fieldLF:
                guard byte == 0x0a else { throw .bad("a field line does not end in CRLF") }
                state = .fieldStart
            default:
                guard byte == 0x0a else { throw .bad("the head does not end in CRLF") }
                index += 1
                state = .headDone
                return
            }
            index += 1
        }
    }

    private mutating func parseVersion(_ byte: UInt8, _ offset: Int) throws(HTTPParseError) {
        let prefix: StaticString = "HTTP/"
        switch offset {
        case 0..<5:
            guard byte == prefix.utf8Start[offset] else { throw .bad("the request line does not end in an HTTP version") }
        case 5, 7:
            guard (0x30...0x39).contains(byte) else { throw .bad("the request line does not end in an HTTP version") }
            guard offset == 5 ? byte == 0x31 : byte <= 0x31 else {
                throw HTTPParseError(505, "unsupported_version", "the HTTP version is neither 1.0 nor 1.1")
            }
            if offset == 7 { head.minorVersion = Int(byte - 0x30) }
        case 6:
            guard byte == UInt8(ascii: ".") else { throw .bad("the request line does not end in an HTTP version") }
        default:
            guard byte == 0x0d else { throw .bad("the request line does not end after its HTTP version") }
            state = .requestLineLF
        }
    }

    private mutating func startField(_ byte: UInt8, _ position: Int) throws(HTTPParseError) {
        if byte == 0x0d {
            state = .headLF
            return
        }
        guard !HTTPGrammar.isBlank(byte) else { throw .bad("a field is folded over lines, or its name starts with a blank") }
        guard HTTPGrammar.isToken(byte) else { throw .bad("a field name is not a token directly before its colon") }
        guard head.fields.count < limits.fieldCount else {
            throw HTTPParseError(431, "head_too_large", "the request has more than \(limits.fieldCount) fields")
        }
        fieldNameStart = position
        state = .fieldName
    }
}
