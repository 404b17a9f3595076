/// The body: of announced length, or in chunks with trailers (RFC 9112, sections 6 and 7).
extension HTTPRequestParser {
    mutating func startBody() throws(HTTPParseError) {
        if head.isChunked {
            state = .chunkStart
            return
        }
        remaining = head.contentLength ?? 0
        guard remaining <= bodyBytesMax else { throw bodyTooLarge }
        // Not more at once than a client can make us hold by announcing a length and sending nothing.
        if !discardsBody { body.reserveCapacity(min(remaining, 64 << 10)) }
        state = remaining == 0 ? .done : .body
    }

    private var bodyTooLarge: HTTPParseError {
        HTTPParseError(413, "body_too_large", "the request's body is longer than \(bodyBytesMax) bytes")
    }

    /// Takes bytes of the body until something else begins or the input, which is not empty, ends.
    mutating func parseBody(_ input: UnsafeRawBufferPointer, _ index: inout Int) throws(HTTPParseError) {
        if state == .chunkStart { takeWholeChunks(input, &index) }
        guard index < input.count else { return }
        let byte = input[index]
        switch state {
        case .body:
            takeData(input, &index)
            if remaining == 0 { state = .done }
            return
        case .chunkData:
            takeData(input, &index)
            if remaining == 0 { state = .chunkDataCR }
            return
        case .chunkDataCR, .chunkDataLF:
            guard byte == (state == .chunkDataCR ? 0x0d : 0x0a) else { throw .bad("a chunk does not end in CRLF at its announced length") }
            state = state == .chunkDataCR ? .chunkDataLF : .chunkStart
        case .trailerStart, .trailerName, .trailerValue, .trailerLF, .trailersLF:
            try parseTrailer(byte)
        default:
            try parseChunkLine(byte)
        }
        index += 1
    }

    /// Takes the chunks that the input has whole and in their plainest form; anything else is left to be looked at byte by byte.
    ///
    /// A body in chunks of a byte costs six bytes on the wire for each: it must not cost six rounds through the parser as well.
    private mutating func takeWholeChunks(_ input: UnsafeRawBufferPointer, _ index: inout Int) {
        while true {
            var (at, size) = (index, 0)
            while at < input.count, at - index < 6, let digit = HTTPGrammar.hexadecimalValue(input[at]) {
                (at, size) = (at + 1, size << 4 | Int(digit))
            }
            guard size > 0, size <= bodyBytesMax - bodyCount, at + 2 - index <= limits.chunkLineBytes, at + size + 4 <= input.count,
                input[at] == 0x0d, input[at + 1] == 0x0a, input[at + 2 + size] == 0x0d, input[at + 3 + size] == 0x0a
            else { return }
            (index, remaining) = (at + 2, size)
            takeData(input, &index)
            index += 2
        }
    }

    private mutating func takeData(_ input: UnsafeRawBufferPointer, _ index: inout Int) {
        let count = min(remaining, input.count - index)
        if !discardsBody {
            // By halves, and never beyond the announced length: bytes that are reserved and not filled are not counted anywhere.
            if body.count + count > body.capacity {
                body.reserveCapacity(max(body.count + count, min(body.count + remaining, body.capacity + body.capacity / 2)))
            }
            body.append(contentsOf: UnsafeRawBufferPointer(rebasing: input[index..<index + count]))
        }
        bodyCount += count
        remaining -= count
        index += count
    }

    /// A chunk's size and its extensions, whose grammar is checked and whose content is dropped.
    private mutating func parseChunkLine(_ byte: UInt8) throws(HTTPParseError) {
        if state == .chunkStart { (lineBytes, chunkDigits, remaining) = (0, 0, 0) }
        lineBytes += 1
        guard lineBytes <= limits.chunkLineBytes else { throw .bad("a chunk's size line is longer than \(limits.chunkLineBytes) bytes") }
        switch state {
        case .chunkStart, .chunkSize:
            if let digit = HTTPGrammar.hexadecimalValue(byte) {
                try takeSizeDigit(digit)
            } else {
                guard chunkDigits > 0 else { throw .bad("a chunk's size is missing") }
                try endExtensionPart(byte, "a chunk's size is not hexadecimal digits only")
            }
        case .chunkLF:
            guard byte == 0x0a else { throw .bad("a chunk's size line does not end in CRLF") }
            state = remaining == 0 ? .trailerStart : .chunkData
        default:
            try parseExtension(byte)
        }
    }

    private mutating func takeSizeDigit(_ digit: UInt8) throws(HTTPParseError) {
        chunkDigits += 1
        guard chunkDigits <= 15 else { throw .bad("a chunk's size has more than 15 digits") }
        remaining = remaining << 4 | Int(digit)
        guard remaining <= bodyBytesMax - bodyCount else { throw bodyTooLarge }
        state = .chunkSize
    }

    private mutating func parseExtension(_ byte: UInt8) throws(HTTPParseError) {
        switch state {
        case .extensionGap:  // Blanks behind a size or a value: only another extension may follow.
            if HTTPGrammar.isBlank(byte) { return }
            guard byte == UInt8(ascii: ";") else { throw .bad("a chunk's size or extension has a blank behind it") }
            state = .extensionNameStart
        case .extensionNameStart:
            if HTTPGrammar.isBlank(byte) { return }
            guard HTTPGrammar.isToken(byte) else { throw .bad("a chunk extension has no name") }
            state = .extensionName
        case .extensionName:
            if HTTPGrammar.isToken(byte) { return }
            if byte == UInt8(ascii: "=") {
                state = .extensionValueStart
            } else if HTTPGrammar.isBlank(byte) {
                state = .extensionNameGap
            } else {
                try endExtensionPart(byte, "a chunk extension's name is not a token")
            }
        case .extensionNameGap:
            if HTTPGrammar.isBlank(byte) { return }
            guard byte == UInt8(ascii: "=") || byte == UInt8(ascii: ";") else { throw .bad("a chunk extension's name is not a token") }
            state = byte == UInt8(ascii: "=") ? .extensionValueStart : .extensionNameStart
        case .extensionValueStart:
            if HTTPGrammar.isBlank(byte) { return }
            guard byte == UInt8(ascii: "\"") || HTTPGrammar.isToken(byte) else { throw .bad("a chunk extension has no value") }
            state = byte == UInt8(ascii: "\"") ? .extensionQuoted : .extensionToken
        case .extensionToken:
            if !HTTPGrammar.isToken(byte) { try endExtensionPart(byte, "a chunk extension's value is not a token") }
        case .extensionQuoted:
            guard HTTPGrammar.isFieldText(byte) else { throw .bad("a chunk extension has a control character in it") }
            if byte == UInt8(ascii: "\\") { state = .extensionEscape } else if byte == UInt8(ascii: "\"") { state = .extensionQuotedEnd }
        case .extensionEscape:
            guard HTTPGrammar.isFieldText(byte) else { throw .bad("a chunk extension has a control character in it") }
            state = .extensionQuoted
        default:
            try endExtensionPart(byte, "a chunk extension goes on behind its quoted value")
        }
    }

    /// Ends a size, a name or a value, behind which may come the end of the line, another extension or blanks before one.
    private mutating func endExtensionPart(_ byte: UInt8, _ otherwise: String) throws(HTTPParseError) {
        switch byte {
        case 0x0d: state = .chunkLF
        case UInt8(ascii: ";"): state = .extensionNameStart
        case 0x20, 0x09: state = .extensionGap
        default: throw .bad(otherwise)
        }
    }

    /// Trailers are checked like fields and dropped. Those that would change framing or routing are refused.
    private mutating func parseTrailer(_ byte: UInt8) throws(HTTPParseError) {
        trailerBytes += 1
        guard trailerBytes <= limits.headBytes else {
            throw HTTPParseError(431, "head_too_large", "the request's trailers are longer than \(limits.headBytes) bytes")
        }
        switch state {
        case .trailerStart:
            if byte == 0x0d {
                state = .trailersLF
                return
            }
            guard HTTPGrammar.isToken(byte) else { throw .bad("a trailer's name is not a token directly before its colon") }
            trailerCount += 1
            guard trailerCount + head.fields.count <= limits.fieldCount else {
                throw HTTPParseError(431, "head_too_large", "the request has more than \(limits.fieldCount) fields")
            }
            trailerName = [HTTPGrammar.lowercased(byte)]
            state = .trailerName
        case .trailerName:
            if HTTPGrammar.isToken(byte) {
                trailerName.append(HTTPGrammar.lowercased(byte))
                return
            }
            guard byte == UInt8(ascii: ":") else { throw .bad("a trailer's name is not a token directly before its colon") }
            for name in ["content-length", "transfer-encoding", "host"] where trailerName.elementsEqual(name.utf8) {
                throw .bad("\(name) is not allowed in trailers")
            }
            state = .trailerValue
        case .trailerValue:
            if HTTPGrammar.isFieldText(byte) { return }
            guard byte == 0x0d else { throw .bad("a trailer has a control character in it") }
            state = .trailerLF
        case .trailerLF:
            guard byte == 0x0a else { throw .bad("a trailer does not end in CRLF") }
            state = .trailerStart
        default:
            guard byte == 0x0a else { throw .bad("the trailers do not end in CRLF") }
            trailerName = []
            state = .done
        }
    }
}
