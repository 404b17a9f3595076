internal import ParleyHTTP
internal import ParleyServer
internal import ParleySystem

extension Client {
    /// A refusal of the server, with the command that helps.
    ///
    /// - Parameters:
    ///   - channel: The channel of the request; names the subject and appears in the commands.
    ///   - isAny: Whether the name may have meant a channel without an agent, or an agent.
    ///   - isWanted: Whether the channel may be created instead.
    ///   - verb: The right that the request needs, where the server named several verbs.
    func refusal(
        _ answer: Answer, of channel: String? = nil, isAny: Bool = false, isWanted: Bool = true, verb: Verb? = nil
    ) -> FollowError {
        guard let json = answer.json else {
            return FollowError(
                "\(baseURL) answered \(answer.status) without saying why. Is it a Parley server? --server or PARLEY_URL names another.")
        }
        let refusal = Refusal(
            json, answer.status, channel: channel, isWanted: isWanted, needs: needs.isEmpty ? [verb].compactMap { $0 } : needs)
        let pause = Refusal.pause(answer)
        // The server's own "try again later" says less than the time.
        let text = pause == nil ? refusal.text : refusal.text.replacing(". Try again later (", with: " (").replacing(". Wait (", with: " (")
        var sentences = [text, refusal.remedy, pause]
        if let agent = refusal.agent, ["channel_not_found", "unknown_agent", "unknown_agent_kind"].contains(refusal.code) {
            if let near = near(agent, refusal) {
                sentences.insert("Did you mean \(near)?", at: 1)
            } else if isAny {
                sentences.append("A channel without an agent is named /\(agent).")
            }
        } else if isAny, refusal.code == "channel_not_found", channel?.contains("/") == false {
            sentences.append("An agent is named <kind>/<id>.")
        }
        return FollowError(
            sentences.compactMap { $0 }.joined(separator: " "), exit: refusal.isMisuse ? .usage : .failed, code: refusal.code)
    }

    /// The agent or the kind whose name is nearest. The server may refuse to list them: then there is none.
    private func near(_ agent: String, _ refusal: Refusal) -> String? {
        let parts = agent.split(separator: "/").map(String.init)
        if refusal.code == "unknown_agent_kind" {
            return Suggestion.closest(to: parts[0], in: refusal.kinds).map { "\($0)/\(parts[1])" }
        }
        let list = try? request("GET", "/v1/agents?limit=1000").json?["agents"]?.array
        return Suggestion.closest(to: agent, in: (list ?? []).compactMap { $0["agent"]?.string.map(Refusal.agent) })
    }
}

/// A problem that the server reported, in the words of the command line.
struct Refusal {
    let code: String
    let kinds: [String]
    /// `<kind>/<id>`, if it is about an agent.
    let agent: String?
    private let json: JSON
    private let channel: String?
    /// As the command line names it: `<kind>/<id>`, or `/<channel>`.
    private let name: String
    private let status: Int
    /// Whether it may be created instead.
    private let isWanted: Bool
    /// The rights that the command needs, if they are known here.
    private let needs: [Verb]

    /// - Parameter channel: The channel of the request.
    init(_ json: JSON, _ status: Int, channel: String? = nil, isWanted: Bool = true, needs: [Verb] = []) {
        // Below /v1/stream/__ds/ the protocol wants another form.
        let json = json["error"].map { ["code": $0["code"] ?? .null, "detail": $0["message"] ?? .null] } ?? json
        (self.json, self.status, self.isWanted, self.needs, self.channel) = (json, status, isWanted, needs, channel)
        code = json["code"]?.string ?? ""
        kinds = (json["kinds"]?.array ?? []).compactMap(\.string)
        agent = channel.flatMap { $0.hasPrefix("agents/") ? Refusal.agent($0) : nil }
        name = channel.map(Refusal.name) ?? ""
    }

    /// A channel as it is typed in a shell.
    static func name(_ channel: String) -> String {
        let name = channel.hasPrefix("agents/") ? agent(channel) : "/" + channel
        let isPlain = name.utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
                || "/._~-:@+,=%".utf8.contains(byte)
        }
        return isPlain ? name : "'\(name.replacing("'", with: "'\\''"))'"
    }

    static func agent(_ channel: String) -> String { String(channel.dropFirst("agents/".count)) }

    /// The problem, with its code.
    var text: String {
        var said = own ?? json["detail"]?.string ?? json["title"]?.string ?? "the server answered \(status)"
        // A command sends one entry.
        if json["index"] == 0, said.hasPrefix("entry 0: ") { said.removeFirst("entry 0: ".count) }
        said = typed(said)
        return code.isEmpty ? said : "\(said.hasSuffix(".") ? String(said.dropLast()) : said) (\(code))."
    }

    /// Whether what is wrong was typed.
    var isMisuse: Bool { Refusal.misuses.contains(code) || code == "NOT_FOUND" && channel?.hasPrefix("__ds/") == true }

    private static let misuses: Set = [
        "invalid_json", "invalid_entry", "unknown_entry_type", "invalid_expires_at", "invalid_ttl", "invalid_token_request",
        "invalid_limit",
        "invalid_state", "invalid_type", "invalid_idempotency_key", "conflicting_headers", "conflicting_parameters", "not_supported",
        "reserved_name", "use_agent_fork",
    ]

    /// Fields of a request, and the options that they come from.
    private static let options = [
        ("Stream-Expires-At", "--expires-at"), ("Stream-TTL", "--ttl"), ("Stream-Fork-Offset", "--offset"), ("Idempotency-Key", "--key"),
        ("Content-Type is", "--type is"), ("Content-Type", "content type"),
    ]

    /// The server's words with the names of options, and of the request's channel, as they are typed.
    private func typed(_ said: String) -> String {
        var said = Refusal.options.reduce(said) { $0.replacing($1.0, with: $1.1) }
        // A parameter of a query has the option's name.
        if ["limit is ", "state is ", "type is "].contains(where: said.hasPrefix), code.hasPrefix("invalid_") { said = "--" + said }
        if code == "forbidden", let needed = needs.last?.name {
            said = said.replacing(Access.usualNeed, with: "; this needs '\(needed)'")
        }
        return channel.map { said.replacing("'\($0)'", with: name) } ?? said
    }

    /// Says it without HTTP, which the server's own words are about.
    private var own: String? {
        guard !name.isEmpty else { return nil }
        return switch code {
        case "channel_not_found", "unknown_agent": agent == nil ? "there is no channel \(name)" : "there is no agent \(name)"
        case "agent_deleted": "\(name) was deleted"
        case "channel_closed": "\(name) is closed and takes nothing more"
        case "offset_beyond_tail": "\(name) ends before that offset, which it has not given out"
        case "tail_moved": "the end offset of \(name) is \(json["tail"]?.string ?? "another one"), not that of --if-tail"
        case "idempotency_key_reused": "the key was used for another request to \(name)"
        default: nil
        }
    }

    /// The next step, as a command.
    var remedy: String? {
        switch code {
        case "unauthorized": "Set PARLEY_TOKEN to a key or token of this server, or name a file that holds one with --token-file."
        case "forbidden":
            json["channel"]?.string.flatMap { channel in
                neededVerbs.map {
                    "A token for it: parley token --allow '\(channel):\($0)' --name <name>, with a key as PARLEY_TOKEN."
                }
            }
        case "entry_too_large", "body_too_large": "Send it in parts."
        case "tls_required": "Name the server with https:// instead of http://."
        case "idempotency_key_reused": "Choose another --key, or none."
        case "route_not_found": "--server and PARLEY_URL take the server's address without a path, e.g. http://127.0.0.1:4437."
        case "unknown_agent_kind": "`parley agents` lists the kinds with their files."
        case _ where name.isEmpty: nil
        case _ where agent == nil: remedyOfChannel
        default: remedyOfAgent
        }
    }

    /// The verbs that a token needs: all that the command needs, so that the next request is not refused in turn.
    private var neededVerbs: String? {
        let accepted = (json["verbs"]?.array ?? []).compactMap(\.string)
        let names = needs.map(\.name)
        return names.contains(where: accepted.contains) ? names.joined(separator: ",") : json["verb"]?.string
    }

    /// How long to wait before the request is repeated, if the server says so.
    static func pause(_ answer: Client.Answer) -> String? {
        guard [429, 503].contains(answer.status), let seconds = answer.header("Retry-After").flatMap({ Int64($0) }) else { return nil }
        func counted(_ number: Int64, _ unit: String) -> String { "\(number) \(unit)\(number == 1 ? "" : "s")" }
        let rest = seconds % 60 == 0 ? "" : " " + counted(seconds % 60, "second")
        return "Try again in \(seconds < 60 ? counted(seconds, "second") : counted(seconds / 60, "minute") + rest)."
    }

    private var remedyOfChannel: String? {
        switch code {
        case "channel_not_found":
            "`parley ls /` lists the channels\(isWanted ? "; `parley create \(name)` creates this one." : ".")"
        case "content_type_mismatch": "Name the channel's type: --type '\(ownType ?? "<its content type>")'."
        case "channel_exists": "Choose another name, or remove that channel first: `parley delete \(name)`."
        case "use_agent_fork": "Name the fork as a channel: `parley fork \(name) /<new name>`."
        case "invalid_json": "A text needs quotes: '\"text\"'."
        case "offset_beyond_tail": "`parley tail \(name)` reads from the start."
        case "fork_source_not_found": "`parley ls /` lists the channels."
        case "channel_closed": "It can be read: `parley tail \(name)`."
        case "tail_moved": "`parley tail \(name)` shows what is new."
        default: nil
        }
    }

    /// The type that the server names as the channel's.
    private var ownType: String? {
        json["detail"]?.string?.split(separator: "the channel's is '").last?.split(separator: "'").first.map(String.init)
    }

    private var remedyOfAgent: String? {
        switch code {
        case "channel_not_found", "unknown_agent":
            "`parley ls` lists the agents"
                + (isWanted ? "; `parley run \(name) \"text\"` creates this one with a message, `parley create \(name)` without." : ".")
        case "invalid_json", "invalid_entry": "`parley send \(name) \"text\"` sends a message."
        case "offset_beyond_tail": "`parley tail \(name)` reads from the start."
        case "agent_deleted": "`parley create \(name)` starts it anew."
        case "channel_closed":
            "It can be read: `parley tail \(name)`. Another id starts another agent; to use this one again: `parley delete \(name)`, then `parley create \(name)`."
        case "fork_source_not_found": "`parley ls` lists the agents."
        case "channel_exists":
            "It can be read: `parley tail \(name)`. To use the name again: `parley delete \(name)`, then `parley create \(name)`."
        case "use_agent_fork": "Name the fork as a channel: `parley fork \(name) /<new name>`."
        case "turn_not_found": "`parley trace \(name)` lists the turns."
        case "inbox_full": "`parley cancel \(name)` ends its turn, `parley status \(name)` shows what waits."
        default: nil
        }
    }
}

/// A receipt that says no: why, and the command that helps.
enum Verdict {
    static func text(_ state: String, _ reason: String, _ agent: String) -> TerminalText {
        guard let (why, remedy) = meaning(reason, agent) else { return "\(state): \(reason)" }
        return "\(state): \(line: why) (\(reason)). \(line: remedy)"
    }

    private static func meaning(_ reason: String, _ agent: String) -> (why: String, remedy: String)? {
        switch reason {
        case "turn_ended":
            (
                "no turn is running, or it ended before this came",
                "`parley status \(agent)` shows its state, `parley run \(agent) \"text\"` starts a turn."
            )
        case "not_parked":
            (
                "the agent is neither parked nor stalled",
                "`parley status \(agent)` shows its state, `parley cancel \(agent)` ends a turn that runs."
            )
        case "unknown_approval":
            ("the agent has not asked for this approval", "`parley status \(agent)` shows what waits for one.")
        case "already_decided":
            ("it was decided before", "`parley audit \(agent) --type approval` shows who decided.")
        case "approval_expired":
            ("nobody decided it in time", "`parley audit \(agent) --type approval` shows when it expired.")
        case "arguments_changed":
            ("--args-sha256 is not the digest of what the agent asks for", "`parley approve \(agent)` shows and approves what it asks for.")
        case "busy":
            (
                "a turn is running, and this kind takes no message meanwhile",
                "`parley tail \(agent)` shows when it ends, `parley cancel \(agent)` ends it."
            )
        case "closing":
            ("the agent is closing", "`parley tail \(agent)` shows its end. Another id starts another agent.")
        case "stale_offset":
            ("the channel has an entry after --if-offset", "`parley tail \(agent)` shows what is new.")
        case "stale_turn":
            ("the turn of --if-turn is not running", "`parley status \(agent)` names the one that is.")
        default: nil
        }
    }
}
