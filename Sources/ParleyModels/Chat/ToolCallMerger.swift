internal import ParleyAgents
internal import ParleySystem

/// Puts the pieces of tool calls in order: one number per call, its id and its name once, its arguments once and in pieces.
///
/// In the standard each piece carries `index`, and the first one `id` and `name`. Servers differ: some leave the index out or call every one 0, some
/// give no ids, or another with each piece, some repeat the name, some give the arguments whole, as an object, twice, or with each piece all that
/// there is so far. So a call begins
///
/// - with an index, or without one an id, that has not been there;
/// - with another name;
/// - with a name, or another id, when the arguments before it are a complete object.
///
/// Everything else belongs to a call that has begun. Fragments that cannot be told apart are joined as they came: then the arguments are no JSON, and
/// the model is told that its call is refused, instead of a call being run that it did not make.
struct ToolCallMerger: Sendable {
    private struct Call {
        var upstreamIndex: Int64?
        var id: String?
        var name: String?
        var arguments = ArgumentText()
    }

    /// One element of `delta.tool_calls`.
    fileprivate struct Piece {
        var index: Int64?
        var id: String?
        var name: String?
        var arguments: Bytes
        var returned: [JSON.Member]

        init(_ piece: JSON) {
            index = piece["index"]?.integer ?? piece["index"]?.string.flatMap { Int64($0) }
            // Some write the word where the standard has nothing.
            id = piece["id"]?.string.flatMap { ["", "null", "None"].contains($0) ? nil : $0 } ?? piece["id"]?.integer.map(String.init)
            let function = piece["function"] ?? piece
            name = function["name"]?.string.flatMap { $0.isEmpty ? nil : $0 }
            switch function["arguments"] {
            case .string(let text)?: arguments = Bytes(text.utf8)
            case nil, .null?: arguments = []
            // The reader of the arguments refuses what is no object.
            case let value?: arguments = value.bytes
            }
            returned = (piece.members ?? []).filter {
                !["index", "id", "type", "function", "name", "arguments"].contains($0.name) && $0.value != .null
            }
            let more = (piece["function"]?.members ?? []).filter { !["name", "arguments"].contains($0.name) && $0.value != .null }
            if !more.isEmpty { returned.append(JSON.Member("function", .object(more))) }
        }
    }

    /// The tools that the model was offered: they tell the pieces of a name from another name.
    private let tools: Set<String>
    private static let indexesOfChoice: Int64 = 1 << 32
    private var calls: [Call] = []
    /// The calls that the elements of the last array without indexes belonged to.
    private var row: [Int] = []

    init(tools: [String] = []) { self.tools = Set(tools) }

    /// The pieces of calls in `delta`; `nil` when they are not understood.
    static func pieces(in delta: JSON) -> [JSON]? {
        switch delta["tool_calls"] ?? .null {
        case .null, .array([]), .string(""), .bool(false): break
        case .array(let calls): return calls.allSatisfy { $0.members != nil || $0 == .null } ? calls : nil
        case .object(let call): return [.object(call)]
        case .string(let text): return LenientJSON.parse(Bytes(text.utf8), uniqueNames: true).flatMap { pieces(in: ["tool_calls": $0]) }
        default: return nil
        }
        // The form before `tool_calls`: one call, without index and id.
        guard let call = delta["function_call"], call.members != nil else { return [] }
        return [["index": 0, "function": call]]
    }

    var isEmpty: Bool { calls.isEmpty }

    /// Whether a call has come to its end without a name.
    var lacksName: Bool { calls.contains { $0.name == nil } }

    /// Whether `calls` say once more, in the same order, what all calls have said so far; their ids may be others.
    func isRepeated(by calls: [JSON]) -> Bool {
        guard !calls.isEmpty, calls.count == self.calls.count else { return false }
        return zip(self.calls, calls.map(Piece.init)).allSatisfy { known, piece in
            known.name == piece.name && known.arguments.isSame(as: piece.arguments)
        }
    }

    /// The events for `delta.tool_calls`.
    ///
    /// - Parameter choice: The number of the choice that has them: its indexes are its own.
    mutating func merge(_ pieces: [JSON], of choice: Int64 = 0) -> [ModelEvent] {
        let pieces = pieces.filter { $0.members != nil }.map { piece in
            var piece = Piece(piece)
            piece.index = piece.index.map { $0 &+ choice &* ToolCallMerger.indexesOfChoice }
            return piece
        }
        var events: [ModelEvent] = []
        var row: [Int] = []
        for (position, piece) in pieces.enumerated() {
            if calls.isEmpty && piece.isNote {
                events.append(.returned(call: nil, .object(piece.returned)))
                continue
            }
            let number = place(piece, position: position, of: pieces.count)
            row.append(number)
            events += take(piece, into: number)
        }
        if !row.isEmpty { self.row = row }
        return events
    }

    // MARK: Choosing the call

    private mutating func place(_ piece: Piece, position: Int, of count: Int) -> Int {
        guard calls.count <= AnswerBounds.callsMax else { return calls.count - 1 }
        if let known = known(piece, position: position, of: count), !begins(piece, after: known) { return known }
        calls.append(Call(upstreamIndex: piece.index))
        return calls.count - 1
    }

    /// The call that a piece belongs to, if it begins none.
    private func known(_ piece: Piece, position: Int, of count: Int) -> Int? {
        if let index = piece.index {
            if let known = calls.lastIndex(where: { $0.upstreamIndex == index }) { return known }
            guard piece.name == nil, let last = calls.indices.last else { return nil }
            // Counted from the second piece on only, or with another number each time.
            let isRest = calls[last].upstreamIndex == nil || piece.id == nil && !calls[last].arguments.isComplete
            return piece.id.flatMap(number) ?? (isRest ? last : nil)
        }
        if let known = piece.id.flatMap(number) { return known }
        if piece.name == nil, count > 1, row.indices.contains(position) { return row[position] }
        return calls.isEmpty ? nil : calls.count - 1
    }

    private func number(_ id: String) -> Int? { calls.lastIndex { $0.id == id } }

    private func begins(_ piece: Piece, after known: Int) -> Bool {
        let call = calls[known]
        let hasOtherID = piece.id != nil && call.id != nil && piece.id != call.id
        guard let name = piece.name, let known = call.name else {
            // Another id and an object of its own, behind a complete one: a call whose name comes later, or never.
            return hasOtherID && call.arguments.isComplete && piece.beginsObject
        }
        if name != known, !isRest(name, of: known) { return true }
        switch call.arguments.state {
        case .complete:
            if hasOtherID { return true }
            // Without another id, the same once more is a repetition; and an empty object may have held the place of the real one.
            if piece.id != nil, piece.id == call.id, call.arguments.isPlaceholder { return false }
            return piece.beginsObject && !call.arguments.isSame(as: piece.arguments)
        case .empty: return hasOtherID && piece.arguments.isEmpty
        case .open(let isInString):
            return hasOtherID && !isInString && piece.beginsObject && !piece.arguments.starts(with: call.arguments.bytes)
        }
    }

    /// Whether `piece` continues with a name that has come in part.
    private func isRest(_ piece: String, of name: String) -> Bool {
        !tools.contains(name) && !tools.contains(piece) && tools.contains { $0.hasPrefix(name + piece) }
            || !tools.contains(name) && tools.contains(name + piece)
    }

    // MARK: The new part

    private mutating func take(_ piece: Piece, into number: Int) -> [ModelEvent] {
        let arguments = calls[number].arguments.isEmpty && piece.hasNoArguments ? [] : calls[number].arguments.add(piece.arguments)
        var event: (id: String?, name: String?, arguments: Bytes) = (nil, nil, arguments)
        if let id = piece.id, calls[number].id == nil {
            calls[number].id = id
            event.id = id
        }
        if let name = piece.name {
            if calls[number].name == nil {
                calls[number].name = name
                event.name = name
            } else if name != calls[number].name, isRest(name, of: calls[number].name!) {
                calls[number].name! += name
                event.name = name
            }
        }
        let returned: [ModelEvent] = piece.returned.isEmpty ? [] : [.returned(call: number, .object(piece.returned))]
        guard event.id != nil || event.name != nil || !event.arguments.isEmpty else { return returned }
        return [.toolCall(index: number, id: event.id, name: event.name, arguments: event.arguments.text)] + returned
    }
}

extension ToolCallMerger.Piece {
    /// It has no part of a call: its content belongs to a call that has begun, or to the message.
    fileprivate var isNote: Bool { id == nil && name == nil && arguments.isEmpty && !returned.isEmpty }

    /// White space, the word for nothing, or an empty list (PHP's empty object) is how some write a call without arguments.
    fileprivate var hasNoArguments: Bool {
        arguments.count < 16 && ["", "null", "None", "[]"].contains(arguments.text.trimmed)
    }

    fileprivate var beginsObject: Bool { arguments.first { ![0x20, 0x09, 0x0A, 0x0D].contains($0) } == UInt8(ascii: "{") }
}
