/// The header fields of the Durable Streams protocol.
enum StreamHeader {
    static let nextOffset = "Stream-Next-Offset"
    static let upToDate = "Stream-Up-To-Date"
    static let closed = "Stream-Closed"
    static let cursor = "Stream-Cursor"
    static let sequence = "Stream-Seq"
    static let dataEncoding = "Stream-SSE-Data-Encoding"
    static let producerID = "Producer-Id"
    static let producerEpoch = "Producer-Epoch"
    static let producerSequence = "Producer-Seq"
    static let producerExpectedSequence = "Producer-Expected-Seq"
    static let producerReceivedSequence = "Producer-Received-Seq"

    /// The fields that a page of another origin may read.
    static let exposed = [
        nextOffset, upToDate, closed, cursor, dataEncoding, producerEpoch, producerSequence, producerExpectedSequence,
        producerReceivedSequence,
        ttl, expiresAt, "Location", "ETag", "Idempotent-Replayed", "Retry-After",
    ]

    /// Any client may have written what a stream holds: in a browser, it is a document without scripts, and of no origin.
    static let inert = (name: "Content-Security-Policy", value: "sandbox")

    static let ttl = "Stream-TTL"
    static let expiresAt = "Stream-Expires-At"
    static let forkedFrom = "Stream-Forked-From"
    static let forkOffset = "Stream-Fork-Offset"
    static let forkSubOffset = "Stream-Fork-Sub-Offset"
}
