internal import ParleyChannels
internal import ParleySystem

/// The latest requests of a turn to models, so that the next one need say only what it adds.
///
/// It keeps the last request of each conversation, a conversation being the calls of one name in one scope. Bounded in number and in bytes: after a
/// forgotten one, the next request is listed whole once more.
struct RequestLedger: Sendable {
    /// An earlier call whose request begins as the one at hand does.
    struct Base: Sendable {
        /// The offset of its `step.started`.
        var offset: UInt64
        /// How many messages of it are shared.
        var keep: Int
        var tools: Bytes?

        var token: String { Offset(offset).token }
    }

    private struct Noted {
        var conversation: Substring
        var offset: UInt64
        var parts: RequestParts
        var tools: Bytes?
    }

    private var noted: [Noted] = []

    private static let countMax = 256
    private static let bytesMax = 8 << 20
    /// A request with fewer in common is listed whole: it is short enough, and read without the one before it.
    private static let keepMin = 8
    /// How many conversations besides its own are looked at: one often begins as another did.
    private static let neighbours = 4

    /// Notes the request of the call whose start has `offset`.
    mutating func note(_ path: String, _ request: ModelRequest, at offset: UInt64) {
        let conversation = RequestLedger.conversation(path)
        let new = Noted(conversation: conversation, offset: offset, parts: request.parts, tools: request.toolsDigest)
        noted.removeAll { $0.conversation == conversation }
        noted.append(new)
        var bytes = noted.reduce(0) { $0 + $1.parts.identities.count }
        while noted.count > 1, noted.count > RequestLedger.countMax || bytes > RequestLedger.bytesMax {
            bytes -= noted.removeFirst().parts.identities.count
        }
    }

    /// The call that a request of the step at `path` can be told by, if it has enough in common with one.
    func base(of request: ModelRequest, at path: String) -> Base? {
        let conversation = RequestLedger.conversation(path)
        let parts = request.parts
        let candidates = noted.suffix(RequestLedger.neighbours) + noted.filter { $0.conversation == conversation }
        let bases = candidates.map { Base(offset: $0.offset, keep: parts.commonCount(with: $0.parts), tools: $0.tools) }
        return bases.max { $0.keep < $1.keep }.flatMap { $0.keep >= RequestLedger.keepMin ? $0 : nil }
    }

    /// The path without the number of its last segment.
    private static func conversation(_ path: String) -> Substring {
        let last = path.lastIndex(of: "/") ?? path.startIndex
        return path[last...].lastIndex(of: "#").map { path[..<$0] } ?? path[...]
    }
}
