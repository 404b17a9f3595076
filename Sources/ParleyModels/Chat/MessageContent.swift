internal import ParleyAgents
internal import ParleySystem

/// The value of `content`: a text, or an array of parts.
struct MessageContent: Sendable {
    private(set) var text = ""
    private(set) var reasoning = ""
    private(set) var refusal = ""
    /// The kind of a part that no conversation here has a place for.
    private(set) var unknown: String?

    /// The content of a delta. Gateways put it under other names, into all or some of the pieces; where `content` has it, those repeat it.
    init(of delta: JSON, hasReasoning: Bool) {
        read(delta["content"] ?? .null)
        guard text.isEmpty, unknown == nil else { return }
        for name in MessageContent.otherNames where text.isEmpty {
            for block in delta[name]?.array ?? [delta[name] ?? .null] { read(block: block, hasReasoning: hasReasoning) }
        }
    }

    static let otherNames = ["text", "output_text", "content_blocks"]

    /// Reads a block, or the new part of one. Calls and signatures in blocks are in the members for them, too.
    private mutating func read(block: JSON, hasReasoning: Bool) {
        let part = block["delta"] ?? block["content_block"] ?? block
        text += part.string ?? MessageContent.text(part["text"])
        if !hasReasoning { reasoning += MessageContent.text(part["thinking"] ?? part["reasoning"]) }
    }

    private mutating func read(_ content: JSON) {
        switch content {
        case .null: break
        case .string(let text): self.text += text
        case .array(let parts): for part in parts { read(part) }
        case .object: read(part: content)
        case .bool, .integer, .unsigned, .number, .literal: unknown = content.kindName
        }
    }

    private mutating func read(part: JSON) {
        switch part["type"]?.string ?? (part["text"] == nil ? "" : "text") {
        case "text", "output_text", "input_text": text += MessageContent.text(part["text"])
        case "thinking", "reasoning", "reasoning_text":
            reasoning += MessageContent.text(part["thinking"] ?? part["reasoning"] ?? part["text"] ?? part["content"])
        case "refusal": refusal += MessageContent.text(part["refusal"] ?? part["text"])
        // The source of a statement, not its text.
        case "reference", "citation": break
        case let kind: unknown = kind.isEmpty ? "a part without a type" : kind
        }
    }

    /// A text, whether it is given directly, in parts or as a `value`.
    private static func text(_ value: JSON?) -> String {
        switch value {
        case .string(let text)?: text
        case .array(let parts)?: parts.map { text($0["text"] ?? $0) }.joined()
        case .object?: value?["value"]?.string ?? value?["text"]?.string ?? ""
        default: ""
        }
    }
}

/// The members that an answer with calls wants to see again when its results are sent: reasoning under the name it came by, signed blocks,
/// signatures.
///
/// The endpoints that send them refuse the next request without them; those that do not know them never sent any.
struct ReturnedMembers: Sendable {
    private var reasoning: (name: String, text: String)?
    private var kept: [JSON.Member] = []

    /// Lists that come in pieces, whose elements are told apart by `type` and `index`.
    private static let lists = ["reasoning_details", "thinking_blocks"]
    private static let values = [
        "extra_content", "reasoning_opaque", "reasoning_signature", "provider_specific_fields", "thought_signature",
    ]

    static let names = lists + values

    var members: JSON? {
        let all = (reasoning.map { [JSON.Member($0.name, .string($0.text))] } ?? []) + kept
        return all.isEmpty ? nil : .object(all)
    }

    mutating func reasoned(_ name: String, _ text: String) {
        if reasoning?.name == name { reasoning!.text += text } else if reasoning == nil { reasoning = (name, text) }
    }

    /// Keeps what of `delta` is wanted back.
    ///
    /// - Returns: what was kept, to be counted.
    mutating func keep(_ delta: JSON) -> JSON? {
        var found: [JSON.Member] = []
        for name in ReturnedMembers.lists {
            guard let pieces = delta[name]?.array, !pieces.isEmpty else { continue }
            found.append(JSON.Member(name, .array(pieces)))
            let known = kept.firstIndex { $0.name == name }
            let joined = ReturnedMembers.join(known.flatMap { kept[$0].value.array } ?? [], pieces)
            if let known { kept[known].value = .array(joined) } else { kept.append(JSON.Member(name, .array(joined))) }
        }
        for name in ReturnedMembers.values {
            guard let value = delta[name], value != .null else { continue }
            found.append(JSON.Member(name, value))
            if let known = kept.firstIndex(where: { $0.name == name }) {
                kept[known].value = value
            } else {
                kept.append(JSON.Member(name, value))
            }
        }
        return found.isEmpty ? nil : .object(found)
    }

    private static func join(_ list: [JSON], _ pieces: [JSON]) -> [JSON] {
        var list = list
        for piece in pieces {
            guard let last = list.last, let members = piece.members, last["type"] == piece["type"], last["index"] == piece["index"],
                last["id"] == nil || piece["id"] == nil || last["id"] == piece["id"], last["signature"].map({ $0 == .null }) ?? true
            else {
                list.append(piece)
                continue
            }
            list[list.count - 1] = .object(
                members.reduce(into: last.members!) { joined, member in
                    guard let known = joined.firstIndex(where: { $0.name == member.name }) else { return joined.append(member) }
                    if let one = joined[known].value.string, let two = member.value.string, texts.contains(member.name) {
                        joined[known].value = .string(one + two)
                    } else if member.value != .null {
                        joined[known].value = member.value
                    }
                })
        }
        return list
    }

    private static let texts: Set = ["text", "summary", "thinking", "data", "signature"]
}

extension ModelUsage {
    /// The usage that a chunk reports: beside the choices, or in a place of the endpoint's own. A value that is no number counts nothing.
    init?(chunk: JSON, choice: JSON?) {
        let places = [chunk["usage"], choice?["usage"], chunk["x_groq"]?["usage"]]
        guard let usage = places.lazy.compactMap({ $0 }).first(where: { $0.members?.isEmpty == false }) else { return nil }
        func tokens(_ names: [String]) -> Int {
            let value = names.lazy.compactMap { usage[$0] }.first
            let number = value?.double ?? value?.string.flatMap { Double($0) } ?? 0
            return number.isFinite ? Int(min(max(number, 0), 1e15)) : 0
        }
        self.init(inputTokens: tokens(ModelUsage.inputNames), outputTokens: tokens(ModelUsage.outputNames))
    }

    private static let inputNames = ["prompt_tokens", "input_tokens"]
    private static let outputNames = ["completion_tokens", "output_tokens"]
    static let names = inputNames + outputNames
}
