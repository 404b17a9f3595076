internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// The header fields of a POST, checked.
struct AppendRequest {
    let contentType: String?
    let closes: Bool
    let producer: ProducerClaim?
    let sequence: String?
    let idempotencyKey: String?
    /// The required end offset.
    let ifTail: UInt64?
    /// `If-Match: *`: nothing is created for it.
    let mustExist: Bool

    private static let idBytesMax = 256
    /// 2^53 - 1: every client's numbers are exact up to here.
    private static let integerMax: UInt64 = 9_007_199_254_740_991

    /// - Throws: 400 `empty_body`, `missing_content_type`, `invalid_producer`, `invalid_if_match` or `conflicting_headers`.
    init(_ request: HTTPRequest) throws(Problem) {
        closes = AppendRequest.isClosing(request)
        producer = try AppendRequest.producer(of: request)
        sequence = request.header(StreamHeader.sequence)
        ifTail = try AppendRequest.ifTail(of: request)
        mustExist = request.header("If-Match")?.trimmingSpaces == "*"
        idempotencyKey = try AppendRequest.idempotencyKey(of: request)
        if producer != nil, idempotencyKey != nil {
            throw .bad("conflicting_headers", "Idempotency-Key and Producer-Id are both given; each alone makes a retry safe. Send one.")
        }
        if request.body.isEmpty {
            guard closes else { throw .bad("empty_body", "the body is empty; expected data, or Stream-Closed: true to close the stream.") }
            contentType = nil  // Closing says nothing about content.
        } else {
            guard let type = request.header("Content-Type"), !type.isEmpty else {
                throw .bad("missing_content_type", "Content-Type is missing; expected the channel's.")
            }
            contentType = type
        }
    }

    /// A JSON body that came by another way than a POST.
    init(idempotencyKey: String?) {
        (contentType, closes, producer, sequence) = (ContentTypeText.json, false, nil, nil)
        (self.idempotencyKey, ifTail, mustExist) = (idempotencyKey, nil, false)
    }

    /// The identity of an append, equal for a repeat: the body, its content type, and whether it was the last.
    func idempotency(of body: Bytes) -> IdempotencyKey? {
        idempotencyKey.map { IdempotencyKey(key: $0, body: body, contentType: contentType, closes: closes) }
    }

    static func isClosing(_ request: HTTPRequest) -> Bool { request.header(StreamHeader.closed)?.lowercased() == "true" }

    /// The offset of `If-Match`, in quotes as an entity tag has them, or as it was given out.
    static func ifTail(of request: HTTPRequest) throws(Problem) -> UInt64? {
        guard let text = request.header("If-Match")?.trimmingSpaces, text != "*" else { return nil }
        let token = text.hasPrefix("\"") && text.hasSuffix("\"") && text.utf8.count > 1 ? String(text.dropFirst().dropLast()) : text
        guard let offset = Offset(token: token) else {
            throw .bad("invalid_if_match", "If-Match is '\(text.prefix(64))'; expected a Stream-Next-Offset as it was given, or *.")
        }
        return offset.value
    }

    private static func idempotencyKey(of request: HTTPRequest) throws(Problem) -> String? {
        guard let key = request.header("Idempotency-Key") else { return nil }
        guard (1...idBytesMax).contains(key.utf8.count) else {
            throw .bad("invalid_idempotency_key", "Idempotency-Key has \(key.utf8.count) bytes; expected 1 to \(idBytesMax).")
        }
        return key
    }

    private static func producer(of request: HTTPRequest) throws(Problem) -> ProducerClaim? {
        let (id, epoch, sequence) = (
            request.header(StreamHeader.producerID), request.header(StreamHeader.producerEpoch),
            request.header(StreamHeader.producerSequence)
        )
        if id == nil && epoch == nil && sequence == nil { return nil }
        guard let id, let epoch, let sequence else {
            throw .bad("invalid_producer", "Producer-Id, Producer-Epoch and Producer-Seq go together; at least one is missing.")
        }
        guard (1...idBytesMax).contains(id.utf8.count) else {
            throw .bad("invalid_producer", "Producer-Id has \(id.utf8.count) bytes; expected 1 to \(idBytesMax).")
        }
        return ProducerClaim(
            id: id, epoch: try integer(epoch, StreamHeader.producerEpoch), sequence: try integer(sequence, StreamHeader.producerSequence))
    }

    private static func integer(_ text: String, _ name: String) throws(Problem) -> UInt64 {
        guard !text.isEmpty, text.utf8.allSatisfy({ (48...57).contains($0) }), let value = UInt64(text), value <= integerMax else {
            throw .bad("invalid_producer", "\(name) is '\(text)'; expected an integer from 0 to \(integerMax).")
        }
        return value
    }
}
