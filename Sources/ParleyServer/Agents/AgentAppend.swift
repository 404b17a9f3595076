internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A client's append to an agent in one request: all of it, or nothing.
struct AgentAppend {
    struct Outcome: Sendable {
        let appended: Appended
        /// The answer to the client for each entry it sent.
        let entries: [Entry]

        /// The answer as text at once, because the entries may be very many.
        var json: Bytes {
            var output = Bytes("{\"entries\":[".utf8)
            for (index, entry) in entries.enumerated() {
                output.append(index == 0 ? "{\"offset\":\"" : ",{\"offset\":\"")
                entry.offset.write(to: &output)
                output.append("\",\"id\":")
                JSON.write(string: entry.id, to: &output)
                output.append(UInt8(ascii: "}"))
            }
            output.append("]}")
            return output
        }
    }

    struct Entry: Sendable {
        let offset: Offset
        let kind: EntryKind
        /// The client's own label; else the entry's offset is its id.
        let label: String?

        var id: String { label ?? offset.token }
    }

    private let context: ServerContext
    private let agent: AgentName
    private let head: AppendRequest
    private let body: Bytes
    private let inputs: [InputEntry]
    /// The bytes that an entry takes besides its own until it is in the log: its rows in the inbox and the index.
    static let entryBytes = 2 << 10
    /// The sender.
    private let principal: String

    /// - Throws: 403 `forbidden`, 404 `unknown_agent_kind`, 409 `content_type_mismatch`, 400 or 413 naming the index of a bad entry.
    init(context: ServerContext, agent: AgentName, head: AppendRequest, body: Bytes, by access: Access) throws(Problem) {
        self.context = context
        self.agent = agent
        self.head = head
        self.body = body
        principal = access.name
        // Before anything is said about the agent, or about what was sent.
        try AgentAppend.authorizeSome(context, agent, access)
        if let type = head.contentType, !ContentType.isJSON(type) {
            var problem = Problem(.mismatch(type, ContentTypeText.json))
            problem.detail += " Send the header 'Content-Type: \(ContentTypeText.json)'."
            throw problem
        }
        inputs = try AgentAppend.inputs(of: body, principal: principal)
        for (index, input) in inputs.enumerated() {
            do throws(Problem) { try access.require(input.entry.kind.verb, agent.channel) } catch {
                throw AgentAppend.located(error, index)
            }
        }
        if head.closes { try access.require(EntryKind.close.verb, agent.channel) }
    }

    var entryCount: Int { inputs.count }

    /// Checks what any body needs: its sender may say something to the agent, and the agent's kind exists.
    static func authorizeSome(_ context: ServerContext, _ agent: AgentName, _ access: Access) throws(Problem) {
        try requireSome(access, agent.channel)
        try StreamRoutes(context: context).requireKind(agent)
    }

    /// The rights of the entries that a client can send.
    private static let verbs = Verb.allCases.filter { verb in InputEntry.kinds.contains { $0.verb == verb } }

    private static func requireSome(_ access: Access, _ channel: String) throws(Problem) {
        guard !verbs.contains(where: { access.may($0, channel) }) else { return }
        throw Access.forbidden(verbs, channel, note: Access.usualNeed)
    }

    private static func located(_ problem: Problem, _ index: Int) -> Problem {
        var problem = problem
        problem.detail = "entry \(index): \(problem.detail)"
        problem.extra.append(.init("index", .integer(Int64(index))))
        return problem
    }

    private static func inputs(of body: Bytes, principal: String) throws(Problem) -> [InputEntry] {
        if body.isEmpty { return [] }
        let elements: [Range<Int>]
        do throws(Problem) { elements = try MessageCutter.cut(body) } catch {
            var problem = error
            if problem.code == "invalid_json" { problem.detail += "; expected an entry, e.g. {\"type\":\"message\",\"text\":\"Hello\"}." }
            throw problem
        }
        guard !elements.isEmpty else { throw .bad("empty_array", "the body is an empty array; expected at least one entry.") }
        var inputs: [InputEntry] = []
        inputs.reserveCapacity(elements.count)
        for (index, element) in elements.enumerated() {
            do throws(ChannelError) {
                inputs.append(try InputEntry(Bytes(body[element]), principal: principal, after: inputs.last))
            } catch {
                throw located(Problem(error), index)
            }
        }
        return inputs
    }

    /// Appends; the agent is made if it was never there, unless the request says that it must be. `done` is called once, on any thread.
    func submit(_ done: @escaping @Sendable (Result<Outcome, ChannelError>) -> Void) {
        var entries = inputs.map(\.entry)
        var labels = inputs.map { (kind: $0.entry.kind, id: $0.id) }
        if head.closes {
            entries.append(AgentAppend.close(by: principal))
            labels.append((.close, nil))
        }
        var append = Append(to: agent.channel, entries)
        if !head.mustExist {
            append.creates = ChannelRow(
                name: agent.channel, contentType: ContentTypeText.json, isAgent: true, created: context.channels.world.now)
        }
        append.isInput = true
        append.contentType = head.contentType
        append.sequence = head.sequence
        append.ifTail = head.ifTail
        append.producer = head.producer
        append.idempotency = head.idempotency(of: body)
        context.channels.submit(append) { [agent, labels] result in
            Failpoint.pass("answer.before")
            let result = result.mapError { $0.code == "channel_not_found" ? .unknownAgent(agent) : $0 }
            done(result.map { appended in Outcome(appended: appended, entries: AgentAppend.describe(labels, appended.offsets)) })
        }
    }

    /// A producer's duplicate is answered without offsets: the first answer is not kept.
    private static func describe(_ labels: [(kind: EntryKind, id: String?)], _ offsets: [UInt64]) -> [Entry] {
        zip(labels, offsets).map { label, offset in
            Entry(offset: Offset(offset), kind: label.kind, label: label.id)
        }
    }

    private static func close(by principal: String) -> NewEntry { NewEntry(.close, nil, ("by", .string(principal))) }
}

extension Verb {
    /// The right that an entry of this type needs; `nil` for one that no client can send.
    package init?(appending type: String) {
        guard let kind = InputEntry.kinds.first(where: { $0.name == type }) else { return nil }
        self = kind.verb
    }
}

extension EntryKind {
    /// The right that the append of an entry of this kind needs.
    fileprivate var verb: Verb {
        switch self {
        case .message, .signal: .append
        case .steer, .resume: .steer
        case .approve, .deny: .approve
        case .interrupt, .cancel, .close: .stop
        default: .admin  // None of a client's.
        }
    }
}
