package import ParleySystem

extension ScriptedUpstream {
    /// How the upstream answers, and in what way it is broken.
    package struct Behaviour: Sendable {
        package enum Fault: Sendable, Equatable {
            case none
            /// Refuses with this status, and `Retry-After` in seconds when given.
            case status(Int, retryAfter: Int? = nil)
            /// Takes the request and says nothing, not even a head.
            case neverAnswers
            /// Closes the connection after so many tokens, without an end.
            case closes(afterTokens: Int)
            /// Falls silent after so many tokens and keeps the connection.
            case stalls(afterTokens: Int)
            /// Sends something that is not JSON after so many tokens.
            case garbage(afterTokens: Int)
            /// Sends exactly this.
            case plays(Played)
            /// Sends an error object inside the stream after so many tokens.
            case errorEvent(afterTokens: Int)
        }

        /// An answer byte by byte.
        package struct Played: Sendable, Equatable {
            package var status = 200
            /// Without a content type it has none.
            package var headers: [[String]] = []
            package var body: Bytes
            /// The connection is left as it is behind the body, and the body's last line is said again every 20 ms.
            package var staysOpen = false
            /// The connection is closed behind the body, in the middle of the message: the last chunk does not come.
            package var breaksOff = false

            package init(_ body: Bytes) { self.body = body }
        }

        package var tokens = 200
        /// Tokens a second; 0 sends all at once.
        package var rate = 100
        package var fault = Fault.none
        /// Whether it continues from a trailing assistant message; without that it starts over, as many hosted models do.
        package var continues = true
        /// Some servers end without `[DONE]`, some do not count.
        package var sendsDone = true
        package var sendsUsage = true
        package var lineEnd = "\n"
        /// Cuts each event in two sends, inside a UTF-8 scalar where there is one of several bytes.
        package var splitsWrites = false

        /// The calls that follow the tokens in the answer to a request that offers tools, and does not end with a tool's result.
        package var toolCalls: [(name: String, arguments: String)] = []

        package init() {}
    }

    /// Token number `index` of the text: numbered, so that a gap and a repetition show, and with scalars of several bytes.
    package static func token(_ index: Int) -> String {
        (index == 0 ? "" : " ") + "é\(index)" + (index % 10 == 9 ? "🦊\n" : "")
    }

    /// The text that a request without a prefix gets.
    package static func text(tokens count: Int) -> String { (0..<count).map(token).joined() }

    /// The answer to one request, token by token.
    struct Answer: Sendable {
        var tokens: [String]
        var toolCalls: [(name: String, arguments: String)] = []
        var finishReason = "stop"
        /// The text that the request continues from.
        var prefix: String?
        /// The request continued from a text that is not the upstream's own: a client that mixes answers up.
        var hasForeignPrefix = false

        /// The way ``ChatCompletionsModel`` finds out whether an upstream continues.
        private static let probePrefix = "one, two, three, four, five,"

        init(to body: JSON, _ behaviour: Behaviour) {
            let last = body["messages"]?.array?.last
            prefix = last?["role"]?.string == "assistant" ? last?["content"]?.string : nil
            if prefix == Answer.probePrefix {
                tokens = behaviour.continues ? [" six", ",", " seven", ","] : ["One", ",", " two"]
            } else if let prefix, behaviour.continues {
                tokens = Answer.rest(after: prefix, tokens: behaviour.tokens) ?? []
                hasForeignPrefix = Answer.rest(after: prefix, tokens: behaviour.tokens) == nil
            } else {
                tokens = (0..<behaviour.tokens).map(ScriptedUpstream.token)
            }
            if body["tools"] != nil, last?["role"]?.string != "tool", !behaviour.toolCalls.isEmpty {
                (toolCalls, finishReason) = (behaviour.toolCalls, "tool_calls")
            }
            if let limit = (body["max_tokens"] ?? body["max_completion_tokens"])?.integer, Int(limit) < tokens.count {
                tokens = Array(tokens.prefix(Int(limit)))
                finishReason = "length"
            }
        }

        /// The tokens behind `prefix`, the first of them perhaps only in part; `nil` when the text does not begin so. White space at its end is
        /// sent again, because it belongs to the next token.
        private static func rest(after prefix: String, tokens count: Int) -> [String]? {
            var known = Bytes(prefix.utf8)[...]
            while let last = known.last, last == 0x20 || last == 0x0A { known.removeLast() }
            for index in 0..<count {
                let token = Bytes(ScriptedUpstream.token(index).utf8)
                guard known.count < token.count || known.starts(with: token) else { return nil }
                guard known.starts(with: token) else {
                    guard token.starts(with: known) else { return nil }
                    return [Bytes(token[known.count...]).text] + (index + 1..<count).map(ScriptedUpstream.token)
                }
                known.removeFirst(token.count)
            }
            return known.isEmpty ? [] : nil
        }
    }
}

// MARK: - Events

extension ScriptedUpstream {
    static func event(_ data: String, _ behaviour: Behaviour) -> Bytes {
        Bytes(("data: " + data + behaviour.lineEnd + behaviour.lineEnd).utf8)
    }

    static func chunk(text: String, _ behaviour: Behaviour) -> Bytes {
        event(JSON.compact(("choices", [["index": 0, "delta": ["content": .string(text)], "finish_reason": .null]])).text, behaviour)
    }

    /// A call as upstreams send it: its id and name first, then the arguments in pieces.
    private static func chunks(of call: (name: String, arguments: String), index: Int, _ behaviour: Behaviour) -> Bytes {
        let half = call.arguments.index(call.arguments.startIndex, offsetBy: call.arguments.count / 2)
        let pieces = [call.arguments[..<half], call.arguments[half...]].map(String.init)
        let first: JSON = [
            "index": .integer(Int64(index)), "id": .string("call_\(index)"), "type": "function",
            "function": ["name": .string(call.name), "arguments": ""],
        ]
        let rest: [JSON] = pieces.map { ["index": .integer(Int64(index)), "function": ["arguments": .string($0)]] }
        return ([first] + rest).flatMap { call in
            event(JSON.compact(("choices", [["index": 0, "delta": ["tool_calls": [call]], "finish_reason": .null]])).text, behaviour)
        }
    }

    /// The bytes behind the last token of a whole answer.
    static func ending(_ answer: Answer, inputBytes: Int, _ behaviour: Behaviour) -> Bytes {
        let finish = JSON.compact(("choices", [["index": 0, "delta": [:], "finish_reason": .string(answer.finishReason)]]))
        var bytes = answer.toolCalls.enumerated().flatMap { index, call in chunks(of: call, index: index, behaviour) }
        bytes += event(finish.text, behaviour)
        if behaviour.sendsUsage {
            let usage: JSON = ["prompt_tokens": .integer(Int64(inputBytes / 4)), "completion_tokens": .integer(Int64(answer.tokens.count))]
            bytes += event(JSON.compact(("choices", []), ("usage", usage)).text, behaviour)
        }
        if behaviour.sendsDone { bytes += event("[DONE]", behaviour) }
        return bytes
    }
}
