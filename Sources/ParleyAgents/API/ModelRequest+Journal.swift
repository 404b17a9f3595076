internal import Glibc
internal import ParleySystem

extension ModelRequest {
    /// A digest that is equal for equal requests: of the model, messages, tools and options. It hashes the messages' hashes, not their texts, so that
    /// a conversation of a thousand calls does not cost the square of its length.
    func digest(_ model: String) -> String {
        var bytes = Bytes("2 ".utf8)
        bytes.append(model)
        bytes.append(0)
        bytes.append(contentsOf: parts.identities)
        if !tools.isEmpty { bytes.append(contentsOf: SHA256.digest(toolsContent)) }
        bytes.append(0)
        bytes.append(contentsOf: ((try? JSON(encoding: options)) ?? .null).bytes)
        return SHA256.hex(bytes)
    }

    /// The digest as in journals that were written before ``digest(_:)`` took its present form.
    func earlierDigest(_ model: String) -> String {
        var bytes = Bytes(model.utf8)
        for message in messages {
            bytes.append(0)
            bytes.append(message.role.rawValue)
            bytes.append(0)
            bytes.append(message.text)
            if message.hasForm { bytes.append(contentsOf: message.content) }
        }
        if !tools.isEmpty {
            bytes.append(0)
            bytes.append(contentsOf: toolsContent)
        }
        bytes.append(0)
        bytes.append(contentsOf: ((try? JSON(encoding: options)) ?? .null).bytes)
        return SHA256.hex(bytes)
    }

    var parts: RequestParts { identified ?? RequestParts(messages) }

    /// The request as `step.started` has it: its digest, and its parts by the hash of their content, or by the offsets in this channel that
    /// they were taken from. The content itself is not repeated, nor are the parts that it shares with the request of an earlier call.
    ///
    /// - Parameters:
    ///   - digest: That of the request as the program made it, without what joined it: a replay compares it.
    ///   - base: The call whose parts come first.
    ///   - listing: The parts beyond that.
    func journal(_ model: String, digest: String?, base: RequestLedger.Base?, _ listing: RequestListing) -> JSON {
        JSON.compact(
            ("sha256", digest.map { .string($0) }), ("model", .string(model)), ("base", base.map { .string($0.token) }),
            ("keep", base.map { .integer(Int64($0.keep)) }), ("parts", .array(listing.parts)),
            ("tools", tools.isEmpty ? nil : .string(SHA256.hex(toolsContent))),
            ("options", journaledOptions))
    }

    /// The differences from a request of a journal, in words.
    func differences(from recorded: JSON, _ model: String) -> String {
        var found: [String] = []
        if let name = recorded["model"]?.string, name != model { found.append("model (was '\(name)', is '\(model)')") }
        if recorded["tools"]?.string != toolsDigest.map({ hexadecimal($0) }) { found.append("tools") }
        let options = journaledOptions
        if recorded["options"] != options { found.append("options (were \(recorded["options"]?.text ?? "{}"), are \(options?.text ?? "{}"))") }
        return found.isEmpty ? "messages" : found.joined(separator: ", ")
    }

    private var journaledOptions: JSON? { (try? JSON(encoding: options)).flatMap { $0 == .object([]) ? nil : $0 } }

    /// The content that the journal refers to by hash and that is nowhere else in the channel, but for that of the base.
    func content(beyond base: RequestLedger.Base?, _ listing: RequestListing) -> [(digest: Bytes, content: Bytes)] {
        var contents = listing.stored.map { ($0.contentDigest, $0.content) }
        if !tools.isEmpty {
            let tools = toolsContent
            let digest = SHA256.digest(tools)
            if digest != base?.tools { contents.append((digest, tools)) }
        }
        return contents
    }

    /// The digest of the tools; `nil` without any.
    var toolsDigest: Bytes? { tools.isEmpty ? nil : SHA256.digest(toolsContent) }

    private var toolsContent: Bytes { ((try? JSON(encoding: tools)) ?? .null).canonical }
}

/// The part of the journal that describes a request's messages.
struct RequestListing {
    /// Turns of the conversation are told by two offsets, and anything else message by message: the log grows by what is new in a turn, and not by
    /// all that was said before it.
    private(set) var parts: [JSON] = []
    /// The messages that are nowhere else in the channel.
    private(set) var stored: [ModelMessage] = []

    /// - Parameters:
    ///   - messages: Those that no earlier call of the turn has recorded.
    ///   - history: The conversation that the turn began with.
    init(_ messages: ArraySlice<ModelMessage>, history: [HistoryItem]) {
        var rest = messages
        while let message = rest.first {
            if let turns = EarlierTurns(beginning: rest, in: history) {
                parts.append(turns.part)
                rest = rest.dropFirst(turns.messageCount)
            } else {
                parts.append(message.part)
                if message.source == nil { stored.append(message) }
                rest = rest.dropFirst()
            }
        }
    }
}

/// The messages of a request by what they are: two requests are compared, and hashed, without their texts.
struct RequestParts: Sendable {
    /// Role, form and SHA-256 of the content of each message, one after another.
    private(set) var identities = Bytes()

    private static let stride = 34

    init(_ messages: [ModelMessage]) {
        identities.reserveCapacity(messages.count * RequestParts.stride)
        for message in messages { identities.append(contentsOf: message.identity) }
    }

    /// How many messages both begin with.
    func commonCount(with other: RequestParts) -> Int {
        let count = min(identities.count, other.identities.count) / RequestParts.stride
        return identities.withUnsafeBytes { own in
            other.identities.withUnsafeBytes { other in
                func begin(with count: Int) -> Bool {
                    count == 0 || memcmp(own.baseAddress!, other.baseAddress!, count * RequestParts.stride) == 0
                }
                // As a rule one continues the other; else the place where they part is searched for.
                if begin(with: count) { return count }
                var (same, different) = (0, count)
                while different - same > 1 {
                    let middle = (same + different) / 2
                    if begin(with: middle) { same = middle } else { different = middle }
                }
                return same
            }
        }
    }
}

extension ModelMessage {
    /// Whether it is more than a text.
    var hasForm: Bool { !toolCalls.isEmpty || toolCallID != nil || returned != nil }

    /// The message as a request's journal lists it.
    fileprivate var part: JSON {
        JSON.compact(
            ("role", .string(role.rawValue)), ("sha256", source == nil ? .string(hexadecimal(contentDigest)) : nil),
            ("offset", source.map { .string($0) }), ("json", source == nil && hasForm ? true : nil))
    }

    /// The message as the journal keeps it: the text, or a JSON object where there is more than that.
    var content: Bytes {
        guard hasForm else { return Bytes(text.utf8) }
        let calls = toolCalls.isEmpty ? nil : try? JSON(encoding: toolCalls)
        return JSON.compact(
            ("text", .string(text)), ("tool_calls", calls), ("tool_call_id", toolCallID.map { .string($0) }), ("returned", returned)
        ).canonical
    }

    /// The SHA-256 of its content.
    var contentDigest: Bytes { Bytes(identity[2...]) }

    /// Role, form and the SHA-256 of the content.
    var identity: Bytes {
        cache.identity {
            let roles: [Role] = [.system, .user, .assistant, .tool]
            return [UInt8(roles.firstIndex(of: role)! + 1), hasForm ? 1 : 0] + SHA256.digest(content)
        }
    }
}
