package import ParleyAgents

/// An agent that is declared in a file: `agents/<kind>.md`, YAML front matter between two `---` lines and the instructions after it.
///
///     ---
///     kind: writer             # the file's name without .md; may be left out
///     model: openai:gpt-5-mini # <provider>:<model>; without it PARLEY_MODEL
///     continues: auto          # prefix, no or auto: whether the model continues from a prefix
///     input: text              # what a message holds; text is all there is
///     max_tokens: 800          # how long one answer may get
///     temperature: 0.3
///     first_token_timeout: 90s # how long the model may take until its answer begins
///     context: 24000           # how much of the conversation is sent
///     tools: [current_time, write_file]
///     approve: [current_time]  # tools that a person is asked about, beside those that always ask; or all
///     concurrent: steer        # what a message does that comes while a turn runs
///     ---
///     You write short, plain texts.
package struct AgentFile: Sendable, Equatable {
    package var kind: String
    /// `nil`: the default model.
    package var model: ModelSpec?
    package var continues: Continuation?
    package var maxTokens: Int?
    package var temperature: Double?
    /// How long the model may take until its answer begins; `nil`: PARLEY_MODEL_FIRST_BYTE.
    package var firstTokenTimeout: Duration?
    /// How much of the conversation goes into a call, in characters (Unicode scalars; English has about four to a token).
    ///
    /// Characters, because they can be counted without knowing the model's tokens. The newest messages are sent, whole ones only; the
    /// instructions and the newest message always, and neither is counted.
    package var contextCharacters = AgentFile.contextCharactersDefault
    /// Names of built-in tools.
    package var tools: [String] = []
    /// The tools among these that need a person's approval though they do not ask by themselves.
    package var approve: [String] = []
    package var concurrent = ConcurrentInput.queue
    /// The body without the empty lines around it.
    package var instructions: String
    /// The file it was read from.
    package var file: String

    /// About 6,000 tokens of English: enough for a long conversation, and within what any hosted model takes.
    package static let contextCharactersDefault = 24_000

    /// Whether a text may be a kind, and so a file's name.
    package static func isKind(_ text: String) -> Bool {
        (1...128).contains(text.utf8.count)
            && text.utf8.allSatisfy { byte in
                (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) || "._~-".utf8.contains(byte)
            }
    }

    /// The sampling options of each of its calls.
    package var options: ModelOptions { ModelOptions(maxTokens: maxTokens, temperature: temperature) }
}

extension AgentFile {
    /// The result of parsing: the agent, or all that is wrong with its file.
    package enum Outcome: Sendable, Equatable {
        case agent(AgentFile)
        case problems([AgentFileProblem])
    }

    /// Parses the text of the file `file` that declares `kind`.
    package static func parse(_ text: String, kind: String, file: String) -> Outcome {
        var parser = AgentFileParser(kind: kind, file: file)
        let agent = parser.parse(text)
        return parser.problems.isEmpty ? .agent(agent) : .problems(parser.problems.sorted { ($0.line ?? 0) < ($1.line ?? 0) })
    }
}
