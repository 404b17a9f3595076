internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// The name of a channel, from the path of its URL.
struct StreamName: Sendable {
    let text: String
    /// The agent whose channel it is.
    let agent: AgentName?

    static let prefix = "/v1/stream/"
    static let bytesMax = 1_024
    /// Names that only the server itself creates.
    private static let reserved = ["llm", "__ds", "__parley"]
    /// The message about such a name.
    static let reservedText = "names that begin with llm/, __ds/ or __parley/ belong to the server. Choose another first segment"

    init(agent: AgentName) {
        self.agent = agent
        text = agent.channel
    }

    /// - Parameter path: The part of the path behind ``prefix``, percent-encoded.
    /// - Throws: 400 `invalid_stream_name`, or 404 for a name under `agents/` that is not an agent's.
    init(path: ArraySlice<UInt8>) throws(Problem) {
        guard let text = PercentEncoding.decode(path) else {
            throw .bad("invalid_stream_name", "the path is not properly percent-encoded UTF-8.")
        }
        try self.init(text)
    }

    /// - Throws: as ``init(path:)``.
    init(_ text: String) throws(Problem) {
        guard text.utf8.count <= StreamName.bytesMax else {
            throw .bad("invalid_stream_name", "the channel's name has \(text.utf8.count) bytes; expected 1 to \(StreamName.bytesMax).")
        }
        guard !text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7f }) else {
            throw .bad("invalid_stream_name", "the channel's name has control characters.")
        }
        guard StreamName.hasProperSegments(text) else {
            throw .bad(
                "invalid_stream_name",
                "the channel's name is '\(text)'; expected segments that are neither empty nor '.' nor '..', separated by '/'.")
        }
        self.text = text
        // Byte for byte: to Swift, a slash with an accent behind it is another character.
        if text.utf8.elementsEqual("agents".utf8) || text.utf8.starts(with: "agents/".utf8) {
            guard let agent = AgentName(channel: text) else {
                throw Problem(
                    status: 404, code: "channel_not_found",
                    detail:
                        "'\(text)' is not a valid name of an agent's channel; expected agents/<kind>/<id>, each 1 to 128 characters of A-Z a-z 0-9 . _ ~ -."
                )
            }
            self.agent = agent
        } else {
            agent = nil
        }
    }

    /// Whether no segment is empty or means another place in a path.
    private static func hasProperSegments(_ text: String) -> Bool {
        var (count, isDots) = (0, true)
        for byte in text.utf8 {
            if byte == UInt8(ascii: "/") {
                guard isProper(count, isDots) else { return false }
                (count, isDots) = (0, true)
            } else {
                count += 1
                if byte != UInt8(ascii: ".") { isDots = false }
            }
        }
        return isProper(count, isDots)
    }

    private static func isProper(_ count: Int, _ isDots: Bool) -> Bool { count > 0 && !(isDots && count <= 2) }

    /// Whether clients may neither create nor append to it.
    var isReserved: Bool {
        StreamName.reserved.contains { name in
            guard text.utf8.starts(with: name.utf8) else { return false }
            let rest = text.utf8.dropFirst(name.utf8.count)
            return rest.isEmpty || rest.first == UInt8(ascii: "/")
        }
    }
}
