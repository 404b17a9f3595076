internal import Glibc
internal import ParleyServer
internal import ParleySystem

/// The content of a message: text, or data for agents that take more than text.
enum MessageBody {
    static let help = """
          "text"          the message; - reads it from standard input, @<file> from a file
          --data <json>   structured input instead of text, for agents that take it; - and @<file> as for the text
        """

    /// - Throws: ``UsageError`` for a message that has neither text nor data, has both, or is no JSON.
    static func read(_ arguments: Arguments) throws -> JSON.Member {
        guard let source = arguments["data"] else { return JSON.Member("text", .string(try MessageArgument.text(arguments))) }
        if arguments.positional.count > 1 { throw UsageError("there are a text and --data; a message has one of them.") }
        let text = try MessageArgument.content(of: source)
        do { return JSON.Member("data", try JSON.parse(Bytes(text.utf8))) } catch {
            throw UsageError("--data has \(error). A text needs quotes: --data '\"text\"'.")
        }
    }
}

/// The words behind the agent's name, and what they become.
enum MessageArgument {
    static func text(_ arguments: Arguments) throws -> String {
        let words = arguments.positional.dropFirst()
        guard let first = words.first else { throw UsageError("the text is missing.") }
        let text = words.count == 1 ? try content(of: first) : words.joined(separator: " ")
        guard !text.allSatisfy(\.isWhitespace) else { throw UsageError("the text is empty; expected at least one character.") }
        return text
    }

    /// The word itself, standard input for `-`, or the contents of the file behind an `@`, without the line end at their end.
    static func content(of word: String) throws -> String {
        let (bytes, source) = try bytes(of: word)
        return try source.map { try decoded(bytes, $0) } ?? word
    }

    /// The same as it is, and where it comes from if not from the word.
    static func bytes(of word: String) throws -> (bytes: Bytes, source: String?) {
        if word == "-" { return (try StreamRequest.standardInput(), "standard input") }
        guard word.hasPrefix("@"), word.count > 1, !word.contains(where: \.isWhitespace) else { return (Bytes(word.utf8), nil) }
        let path = String(word.dropFirst())
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw UsageError(
                "the file '\(path)' cannot be read: \(String(cString: strerror(errno))). Send a text that begins with @ through -.",
                showsUsage: false)
        }
        defer { close(descriptor) }
        return (try StreamRequest.contents(descriptor, "the file '\(path)'"), "the file '\(path)'")
    }

    private static func decoded(_ bytes: Bytes, _ source: String) throws -> String {
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw UsageError("\(source) is not UTF-8 text.", showsUsage: false)
        }
        return text.hasSuffix("\n") ? String(text.dropLast()) : text
    }

    /// Sends the message once, however often it has to be tried, and returns its offset.
    static func send(_ message: JSON.Member, to channel: String, _ client: Client, key: String?) throws -> String {
        try append(.object([JSON.Member("type", "message"), message]), to: channel, client, key: key)
    }

    /// Appends an entry once, however often it has to be tried, and returns its offset.
    ///
    /// - Parameter mustExist: No agent is created for it.
    static func append(_ body: JSON, to channel: String, _ client: Client, key: String?, mustExist: Bool = false) throws -> String {
        let key = key ?? Client.newIdempotencyKey()
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)] + (mustExist ? [("If-Match", "*")] : [])
        let answer = try client.requestPatiently("POST", "/v1/" + channel, headers: headers, body: body.bytes)
        guard answer.status == 202, let offset = answer.json?["entries"]?.array?.first?["offset"]?.string else {
            throw client.refusal(answer, of: channel, verb: body["type"]?.string.flatMap { Verb(appending: $0) })
        }
        return offset
    }
}
