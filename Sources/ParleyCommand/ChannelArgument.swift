internal import Parley

/// How channels are named on the command line. Names are checked here: a wrong one must not become a different URL.
enum ChannelArgument {
    /// `<kind>/<id>` of an agent, also with `agents/` before it; its channel.
    static func agent(_ text: String) throws(UsageError) -> String {
        var parts = text.split(separator: "/", omittingEmptySubsequences: false)[...]
        if parts.count == 3, parts.first == "agents" { parts = parts.dropFirst() }
        guard parts.count == 2, let name = AgentName(kind: parts.first!, id: parts.last!) else {
            if text.hasPrefix("/"), let channel = try? any(text) {
                let unslashed = (try? agent(channel)).map { " The agent is named \(Refusal.agent($0)), without the slash in front." } ?? ""
                throw UsageError(
                    "'\(text)' is a channel without an agent: read it with `parley tail /\(channel)`, write to it with `parley append /\(channel) <data>`."
                        + unslashed)
            }
            throw UsageError("'\(text)' is no agent; expected <kind>/<id>, each 1 to 128 of A-Z a-z 0-9 . _ ~ -, e.g. assistant/me.")
        }
        return name.channel
    }

    /// The agent that was probably meant by words of which the first names none: with a blank for the slash, within the text's quotes, behind the text.
    static func meant(by words: [String]) -> String? {
        func agent(_ text: some StringProtocol) -> String? { (try? ChannelArgument.agent(String(text))).map(Refusal.agent) }
        let first = words[0]
        if first.hasPrefix("/") { return nil }
        if let start = first.split(separator: " ").first, start.count < first.count, let agent = agent(start) {
            return "\(agent), with the quotes around the text alone"
        }
        if let later = words.dropFirst().first(where: { $0.contains("/") }), let agent = agent(later) {
            return "\(agent), which comes first"
        }
        return words.count > 1 ? agent("\(first)/\(words[1])") : nil
    }

    /// Two segments are an agent's name, and a text that begins with a slash is a channel's whole name. Anything else is neither: with a slash or an
    /// id forgotten, a command would create a channel by mistake.
    static func any(_ text: String) throws(UsageError) -> String {
        let name = text.hasPrefix("/") ? String(text.dropFirst()) : text
        let segments = name.split(separator: "/", omittingEmptySubsequences: false)
        if segments.first == "agents" {
            guard segments.count == 3 else {
                throw UsageError("'\(text)' is not a valid name of an agent's channel; expected agents/<kind>/<id>, or <kind>/<id>.")
            }
            return try agent(name)
        }
        if !text.hasPrefix("/"), segments.count == 2 { return try agent(name) }
        guard text.hasPrefix("/") else {
            throw UsageError("'\(text)' names neither an agent, which is <kind>/<id>, nor a channel, which begins with a slash: /\(text).")
        }
        guard segments.allSatisfy({ !["", ".", ".."].contains($0) }), name.utf8.count <= 1_024,
            name.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7F })
        else {
            throw UsageError(
                "'\(text)' is not a valid name of a channel; expected up to 1024 bytes without control characters, in segments that are neither empty nor . nor .., e.g. /orders/42."
            )
        }
        return name
    }
}
