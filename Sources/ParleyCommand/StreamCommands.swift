internal import Glibc
internal import ParleyHTTP
internal import ParleySystem

/// `parley create <channel>`: makes a plain channel.
enum CreateCommand: Command {
    static let name = "create"
    static let summary = "create a channel, or an agent that others can follow before it is spoken to"
    static let usage =
        "usage: parley create <channel> [--type <content type>] [--ttl <seconds> | --expires-at <time>] [--server <url>]"
    static let help = """
        \(usage)

        Creates an idle agent (assistant/me) or a plain channel (/orders/42), and prints its end offset. If it exists with the same properties,
        nothing changes, and the command says so. A deleted agent is started anew.

          --type <content type>  default application/json
          --ttl <seconds>        remove it this long after it was last read or written
          --expires-at <time>    remove it at this instant, e.g. 2030-01-31T12:00:00Z
        """
    static let options: [CommandOption] = [.value("type"), .value("ttl"), .value("expires-at"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try ChannelArgument.any(arguments.require(0, "the channel"))
        try arguments.requireAtMost(1)
        if channel.hasPrefix("agents/"), let option = ["ttl", "expires-at"].first(where: arguments.has) {
            throw UsageError("--\(option) is for plain channels; an agent ends when it is closed or deleted.")
        }
        let headers = try [("Content-Type", arguments["type"] ?? "application/json")] + StreamRequest.lifetime(arguments)
        let answer = try StreamRequest.answer("PUT", channel, headers, [], Client(arguments), expecting: [200, 201])
        Terminal.output("\(StreamRequest.tail(answer))\n")
        if answer.status == 200 {
            let type = answer.header("Content-Type").map { " with \($0)" } ?? ""
            Terminal.error(
                "\(line: Refusal.name(channel)) exists already\(line: type) and ends at \(line: StreamRequest.tail(answer)); nothing has changed"
            )
        }
        return .done
    }
}

/// `parley append <channel> <data>`: appends to a plain channel.
enum AppendCommand: Command {
    static let name = "append"
    static let summary = "append to a channel, from the command line, standard input or a file"
    static let usage = """
        usage: parley append <channel> [<data> | - | @<file>] [--type <content type>] [--if-tail <offset>]
                             [--key <key>] [--close] [--server <url>]
        """
    static let help = """
        \(usage)

        Appends JSON (each element of an array is one message) or, with another --type, the data as it is; - reads it from standard input,
        @<file> from a file. Prints the end offset once it is durable. To talk to an agent, use send, steer and the like.

          --type <content type>  the channel's; default application/json
          --if-tail <offset>     only if this is the end offset: nothing was appended since
          --key <key>            idempotency key: a repeat with the same key appends nothing
          --close                close the channel: nothing can be appended afterwards
        """
    static let options: [CommandOption] = [.value("type"), .value("if-tail"), .value("key"), .flag("close"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try ChannelArgument.any(arguments.require(0, "the channel"))
        let words = arguments.positional.dropFirst()
        let body = words.count == 1 ? try MessageArgument.bytes(of: words.first!).bytes : Bytes(words.joined(separator: " ").utf8)
        guard !body.isEmpty || arguments.has("close") else { throw UsageError("the data is missing.") }
        try arguments.check("if-tail", [])
        var headers: [(String, String)] = body.isEmpty ? [] : [("Content-Type", arguments["type"] ?? "application/json")]
        headers.append(("Idempotency-Key", arguments["key"] ?? Client.newIdempotencyKey()))
        if let offset = arguments["if-tail"] { headers.append(("If-Match", offset)) }
        if arguments.has("close") { headers.append(("Stream-Closed", "true")) }
        let answer = try StreamRequest.answer("POST", channel, headers, body, Client(arguments), expecting: [204], isPatient: true)
        Terminal.output("\(StreamRequest.tail(answer))\n")
        return .done
    }
}

/// `parley fork <channel> <new channel>`: makes a channel that begins with another's entries.
enum ForkCommand: Command {
    static let name = "fork"
    static let summary = "make a channel that begins with another's entries"
    static let usage =
        "usage: parley fork <channel> <new channel> [--offset <offset>] [--ttl <seconds> | --expires-at <time>] [--server <url>]"
    static let help = """
        \(usage)

        Creates a channel that shares the source's entries up to an offset, and prints its end offset. A fork of an agent's channel is a plain
        channel: a snapshot to read.

          --offset <offset>    where the fork leaves the source; default its end offset
          --ttl <seconds>, --expires-at <time>
                               when the fork is removed; default as the source
        """
    static let options: [CommandOption] = [.value("offset"), .value("ttl"), .value("expires-at"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let source = try ChannelArgument.any(arguments.require(0, "the channel"))
        let channel = try ChannelArgument.any(arguments.require(1, "the new channel"))
        try arguments.requireAtMost(2)
        try arguments.check("offset", ["-1"])
        var headers = try [("Stream-Forked-From", StreamRequest.path(source))] + StreamRequest.lifetime(arguments)
        if let offset = arguments["offset"] { headers.append(("Stream-Fork-Offset", offset)) }
        let answer = try StreamRequest.answer("PUT", channel, headers, [], Client(arguments), expecting: [200, 201], about: source)
        Terminal.output("\(StreamRequest.tail(answer))\n")
        if answer.status == 200 { Terminal.error("\(line: Refusal.name(channel)) exists already as this fork; nothing has changed") }
        return .done
    }
}

/// `parley delete <channel>`: removes a channel, or an agent.
enum DeleteCommand: Command {
    static let name = "delete"
    static let summary = "delete a channel, or an agent with all it has"
    static let usage = "usage: parley delete <kind>/<id> | /<channel> [--server <url>]"
    static let help = """
        \(usage)

        Removes an agent with its channel, saved state and files; a running turn is cancelled. Messages to it are then refused until
        `parley create <kind>/<id>` starts it anew.
        """
    static let options: [CommandOption] = [.value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try ChannelArgument.any(arguments.require(0, "the channel"))
        try arguments.requireAtMost(1)
        let client = try Client(arguments)
        let answer = try client.request("DELETE", StreamRequest.path(channel))
        guard answer.status == 204 else { throw client.refusal(answer, of: channel, isAny: true, isWanted: false) }
        if channel.hasPrefix("agents/") {
            let agent = Refusal.agent(channel)
            Terminal.error(
                "\(agent) was deleted, with its files. Messages to it are refused until `parley create \(agent)` starts it anew.")
        } else {
            Terminal.error("\(Refusal.name(channel)) was deleted. `parley create \(Refusal.name(channel))` starts it anew.")
        }
        return .done
    }
}

/// Requests to `/v1/stream/<channel>`.
enum StreamRequest {
    static func path(_ channel: String) -> String { "/v1/stream/" + PercentEncoding.encode(channel, keeping: "/") }

    static func lifetime(_ arguments: Arguments) throws(UsageError) -> [(String, String)] {
        if let ttl = arguments["ttl"], Int64(ttl) == nil || ttl.hasPrefix("-") || ttl.hasPrefix("+") {
            throw UsageError("--ttl is '\(ttl)'; expected seconds, e.g. 3600.")
        }
        if let ttl = arguments["ttl"], Int64(ttl) == 0 {
            throw UsageError("--ttl is '\(ttl)', which is over at once; expected at least 1 (seconds).")
        }
        try arguments.checkInstant("expires-at")
        if let text = arguments["expires-at"], let instant = Timestamp(text), instant <= Terminal.now {
            throw UsageError("--expires-at is '\(text)', which is in the past; expected a later instant.")
        }
        if arguments.has("ttl"), arguments.has("expires-at") { throw UsageError("there are --ttl and --expires-at; expected one of them.") }
        return [("Stream-TTL", arguments["ttl"]), ("Stream-Expires-At", arguments["expires-at"])].compactMap { name, value in
            value.map { (name, $0) }
        }
    }

    /// - Parameter subject: The channel that a refusal is about, if not `channel`.
    static func answer(
        _ method: String, _ channel: String, _ headers: [(String, String)], _ body: Bytes, _ client: Client, expecting statuses: [Int],
        isPatient: Bool = false, about subject: String? = nil
    ) throws -> Client.Answer {
        let headers = headers.map { (name: $0.0, value: $0.1) }
        let answer =
            isPatient
            ? try client.requestPatiently(method, path(channel), headers: headers, body: body)
            : try client.request(method, path(channel), headers: headers, body: body)
        guard statuses.contains(answer.status) else {
            let isAboutChannel = subject == nil || answer.json?["code"] == "channel_exists"
            throw client.refusal(answer, of: isAboutChannel ? channel : subject, isAny: true)
        }
        return answer
    }

    /// The end offset that the server answers with.
    static func tail(_ answer: Client.Answer) -> String { answer.header("Stream-Next-Offset") ?? "" }

    static func standardInput() throws -> Bytes { try contents(STDIN_FILENO, "standard input") }

    /// Everything up to the end of an open file.
    static func contents(_ descriptor: Int32, _ name: String) throws -> Bytes {
        var (bytes, buffer) = (Bytes(), Bytes(repeating: 0, count: 64 << 10))
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw FollowError("\(name) cannot be read: \(String(cString: strerror(errno)))") }
            guard count > 0 else { return bytes }
            bytes += buffer[..<count]
        }
    }
}
