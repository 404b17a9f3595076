internal import ParleyAgents
internal import ParleySystem

/// Puts the pieces of tool calls in order: one number per call, its id and its name once.
///
/// By the standard each piece carries `index`, and the first one `id` and `name`. Servers differ: some leave the index out or call every
/// one 0, some repeat id and name in each piece, some give the arguments as an object.
struct ToolCallMerger: Sendable {
    private struct Call {
        var upstreamIndex: Int64?
        var id: String?
        var isNamed = false
    }

    private var calls: [Call] = []

    /// The event for one element of `delta.tool_calls`; `nil` when it says nothing new.
    mutating func merge(_ piece: JSON) -> ModelEvent? {
        let id = piece["id"]?.string.flatMap { $0.isEmpty ? nil : $0 }
        let number = place(upstreamIndex: piece["index"]?.integer, id: id)
        var event: (id: String?, name: String?) = (nil, nil)
        if let id, calls[number].id == nil {
            calls[number].id = id
            event.id = id
        }
        if let name = piece["function"]?["name"]?.string, !name.isEmpty, !calls[number].isNamed {
            calls[number].isNamed = true
            event.name = name
        }
        let arguments =
            switch piece["function"]?["arguments"] {
            case .string(let text)?: text
            case .object(let members)?: JSON.object(members).text
            default: ""
            }
        guard event.id != nil || event.name != nil || !arguments.isEmpty else { return nil }
        return .toolCall(index: number, id: event.id, name: event.name, arguments: arguments)
    }

    /// The number of the call that a piece belongs to; a new one where its id is another than the one known there.
    private mutating func place(upstreamIndex: Int64?, id: String?) -> Int {
        let known = upstreamIndex.map { index in calls.lastIndex { $0.upstreamIndex == index } } ?? (calls.isEmpty ? nil : calls.count - 1)
        if let known, id == nil || calls[known].id == nil || calls[known].id == id { return known }
        calls.append(Call(upstreamIndex: upstreamIndex))
        return calls.count - 1
    }
}
