internal import ParleySystem

extension ModelRequest {
    /// What makes two requests the same: model, messages and options.
    func digest(_ model: String) -> String {
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

    /// The request as `step.started` has it: its digest, and its parts by the hash of their content, or by the offsets in this channel that
    /// they were taken from. The content itself is not repeated.
    ///
    /// - Parameter digest: That of the request as the program made it, without what joined it: a replay compares it.
    func journal(_ model: String, digest: String?) -> JSON {
        let parts = messages.map { message in
            JSON.compact(
                ("role", .string(message.role.rawValue)),
                ("sha256", message.source == nil ? .string(SHA256.hex(message.content)) : nil),
                ("offset", message.source.map { .string($0) }))
        }
        return JSON.compact(
            ("sha256", digest.map { .string($0) }), ("model", .string(model)), ("parts", .array(parts)),
            ("tools", tools.isEmpty ? nil : .string(SHA256.hex(toolsContent))),
            ("options", (try? JSON(encoding: options)).flatMap { $0 == .object([]) ? nil : $0 }))
    }

    /// The content that the journal refers to by hash and that stands nowhere else in the channel.
    var contentByHash: [(digest: Bytes, content: Bytes)] {
        let contents = messages.filter { $0.source == nil }.map(\.content) + (tools.isEmpty ? [] : [toolsContent])
        return contents.map { (SHA256.digest($0), $0) }
    }

    private var toolsContent: Bytes { ((try? JSON(encoding: tools)) ?? .null).canonical }
}

extension ModelMessage {
    /// Whether it is more than a text.
    fileprivate var hasForm: Bool { !toolCalls.isEmpty || toolCallID != nil || returned != nil }

    /// What the journal keeps of it: the text, or a JSON object where there is more than that.
    fileprivate var content: Bytes {
        guard hasForm else { return Bytes(text.utf8) }
        let calls = toolCalls.isEmpty ? nil : try? JSON(encoding: toolCalls)
        return JSON.compact(
            ("text", .string(text)), ("tool_calls", calls), ("tool_call_id", toolCallID.map { .string($0) }), ("returned", returned)
        ).canonical
    }
}
