package import ParleyLog
internal import ParleySystem

/// What can be asked of the channels of a node, as data. The writer decides one command after another, against the log and what it has staged.
enum Command: Sendable {
    case append(Append)
    case create(CreateChannel)
    case delete(DeleteChannel)
    case change(RowChange)
    case checkLifetime(LifetimeCheck)
    case trim(Trim)
    case subscription(SubscriptionCommand)
    case linkNew(NewStream)
    case deliver(Delivery)
    case forget(MessageRemoval)
    case followAgain(FollowAgain)
    case open(PartitionOpening)
    case close(UInt16)
    /// Evicts channels without watchers. Only between two commits is it certain that nothing is staged in them.
    case evictIdle
}

/// The writer's decision on a command. Its writes are in the stage; effects and reply wait until they are durable.
struct Decision {
    /// `nil`: one of the effects answers the request.
    var reply: Reply?
    /// In the order in which they are carried out, before the answer.
    var effects: [Effect] = []
}

/// The answer to a command that was not refused.
enum Reply: Sendable {
    case appended(Appended)
    case created(CreateChannel.Created)
    /// Whether the row was written.
    case changed(Bool)
    case subscription(SubscriptionAnswer)
    case done
}

/// An effect that follows once a command is durable.
enum Effect {
    case inputCommitted(Channel, ClosedRange<UInt64>)
    case outboxCommitted(ChannelID, rows: Int)
    case outboxRemoved(ChannelID, rows: Int)
    case agentDeleted(Channel)
    case lifetimeDue(Timestamp)
    case trimAgain(Trim)
    case subscriptionDecided(SubscriptionEffects)
    /// The subscription has a link to the stream.
    case linked(subscription: String, stream: String)
    /// Notifies the agent with this channel of news in what it follows.
    case followed(String)
    /// Gives the answer in its time.
    case search(any SubscriptionWork)
    case opened(PartitionOpening)
    case closed(UInt16)
    case evictIdle
    /// Answers when the owner of the source has reported the outcome.
    case forkOrdered(ForkOrder)
    case forkDecided(ForkOrder.Request, Result<Reply, ChannelError>)
}

extension Command {
    /// Where it can be decided; `nil`: where the names lead that it has.
    var partition: UInt16? {
        switch self {
        case .change(let change): change.partition
        case .checkLifetime(let check): check.id.partition
        case .trim(let trim): trim.id.partition
        case .subscription(let command): Placement.partition(of: command.id)
        case .linkNew(let stream): stream.id.partition
        case .deliver(let delivery): delivery.destination
        case .forget(let removal): removal.route.source
        case .followAgain(let again): again.key.channel.partition
        case .append, .create, .delete, .open, .close, .evictIdle: nil
        }
    }

    /// About how many bytes of memory it holds.
    var cost: Int {
        switch self {
        case .append(let append): append.entries.reduce(256) { $0 + $1.cost }
        case .create(let create): create.entries.reduce(512) { $0 + $1.cost }
        case .change(let change): 128 + change.key.count + (change.value?.count ?? 0)
        case .subscription: 1_024
        case .deliver(let delivery): delivery.messages.reduce(256) { $0 + $1.message.count }
        case .forget(let removal): 128 + 8 * removal.sequences.count
        case .trim: 64 << 10
        case .delete, .checkLifetime, .linkNew, .followAgain, .open, .close: 256
        case .evictIdle: 0
        }
    }

    /// Whether it is refused while too many commands wait. Not refused: commands whose number is bounded otherwise, and that others wait for.
    var isBounded: Bool {
        switch self {
        case .append(let append): !append.owner.epoch.isOwner
        case .change(let change): change.isBounded
        case .subscription(let command): command.isBounded
        // One of a pair of partitions, and one of a step that waits or of a row.
        case .deliver, .forget, .followAgain, .linkNew: false
        case .open, .close: false
        case .create, .delete, .checkLifetime, .trim, .evictIdle: true
        }
    }

    /// Whether a client or a program waits for it.
    var isUrgent: Bool {
        if case .append(let append) = self { !append.owner.isLazy } else { true }
    }

    /// Writer's thread. A refusal has changed nothing.
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        switch self {
        case .append(let append): return try append.decide(channels, in: &stage)
        case .create(let create): return try create.decide(channels, in: &stage)
        case .delete(let delete): return try delete.decide(channels, in: &stage)
        case .change(let change):
            return Decision(reply: .changed(try ChannelRefusal.wrap { () throws(LogError) in try change.decide(in: &stage) }))
        case .checkLifetime(let check):
            let due = try ChannelRefusal.wrap { () throws(LogError) in try check.decide(channels, in: &stage) }
            return Decision(reply: .done, effects: due.map { [.lifetimeDue($0)] } ?? [])
        case .trim(let trim):
            let isLate = try ChannelRefusal.wrap { () throws(LogError) in try trim.decide(channels, in: &stage) }
            return Decision(reply: .done, effects: isLate ? [.trimAgain(trim)] : [])
        case .subscription(let command): return try command.decide(channels, in: &stage)
        case .linkNew(let stream):
            try ChannelRefusal.wrap { () throws(LogError) in try stream.decide(channels, in: &stage) }
            return Decision(reply: .done)
        case .deliver(let delivery):
            return try ChannelRefusal.wrap { () throws(LogError) in try delivery.decide(channels, in: &stage) }
        case .forget(let removal):
            removal.decide(in: &stage)
            return Decision(reply: .done)
        case .followAgain(let again):
            return try ChannelRefusal.wrap { () throws(LogError) in try again.decide(channels, in: &stage) }
        case .open(let opening):
            stage.open(opening.partition, epoch: opening.epoch)
            return Decision(reply: .done, effects: [.opened(opening)])
        case .close(let partition):
            stage.close(partition)
            return Decision(reply: .done, effects: [.closed(partition)])
        case .evictIdle: return Decision(reply: .done, effects: [.evictIdle])
        }
    }
}

// MARK: - Asking

extension Channels {
    /// Has the writer append; `answer` is called once, on its thread, or here when it takes nothing.
    package func submit(_ append: Append, _ answer: @escaping Append.Answer = { _ in }) {
        submit(.append(append), answer) { if case .appended(let appended) = $0 { appended } else { nil } }
    }

    /// As ``submit(_:_:)-(Append,_)``.
    package func submit(_ create: CreateChannel, _ answer: @escaping CreateChannel.Answer = { _ in }) {
        submit(.create(create), answer) { if case .created(let created) = $0 { created } else { nil } }
    }

    /// As ``submit(_:_:)-(Append,_)``.
    package func submit(_ delete: DeleteChannel, _ answer: @escaping @Sendable (Result<Void, ChannelError>) -> Void = { _ in }) {
        submit(.delete(delete)) { answer($0.map { _ in }) }
    }

    /// As ``submit(_:_:)-(Append,_)``; the answer says whether the row was written.
    package func submit(_ change: RowChange, _ answer: @escaping @Sendable (Result<Bool, ChannelError>) -> Void = { _ in }) {
        submit(.change(change), answer) { if case .changed(let isChanged) = $0 { isChanged } else { nil } }
    }

    /// As ``submit(_:_:)-(Append,_)``.
    package func submit(_ again: FollowAgain) { submit(.followAgain(again)) }

    /// - Parameter read: What the reply to such a command says; `nil` for that to another.
    func submit<Value>(
        _ command: Command, _ answer: @escaping @Sendable (Result<Value, ChannelError>) -> Void,
        _ read: @escaping @Sendable (Reply) -> Value?
    ) {
        submit(command) { result in
            answer(
                result.map { reply in
                    guard let value = read(reply) else { preconditionFailure("a command is answered with \(reply)") }
                    return value
                })
        }
    }

    func submit(_ command: Command, _ answer: @escaping CommandSubmission.Answer = { _ in }) {
        do throws(LogError) {
            try writer.submit(CommandSubmission(self, command, answer), isBounded: command.isBounded)
        } catch { answer(.failure(ChannelError(error))) }
    }
}

/// A command on its way through the writer: the one place where what was decided is carried out.
final class CommandSubmission: Submission, @unchecked Sendable {  // Guard: `decided` is touched by the writer's thread only.
    typealias Answer = @Sendable (Result<Reply, ChannelError>) -> Void

    private let channels: Channels
    private let command: Command
    private let answer: Answer
    private var decided: Result<Decision, ChannelError>?

    init(_ channels: Channels, _ command: Command, _ answer: @escaping Answer) {
        (self.channels, self.command, self.answer) = (channels, command, answer)
    }

    var partition: UInt16? { command.partition }
    var cost: Int { command.cost }
    var isUrgent: Bool { command.isUrgent }

    func stage(into stage: inout Stage) throws(LogError) {
        decided = try ChannelRefusal.outcome { () throws(ChannelRefusal) in try command.decide(channels, in: &stage) }
    }

    func committed() {
        channels.publish()
        switch decided {
        case .success(let decision):
            for effect in decision.effects { carryOut(effect) }
            if let reply = decision.reply { answer(.success(reply)) }
        case .failure(let error): answer(.failure(error))
        case nil: preconditionFailure("a command was settled before it was staged")
        }
    }

    func failed(_ error: LogError) {
        if case .success(let decision) = decided {
            for case .search(let search) in decision.effects { search.abandon() }
        }
        answer(.failure(ChannelError(error)))
    }

    private func carryOut(_ effect: Effect) {
        switch effect {
        case .inputCommitted(let channel, let offsets): channels.notifyInput(channel, offsets: offsets)
        case .outboxCommitted(let id, let rows): channels.outbox?.committed(id, rows: rows)
        case .outboxRemoved(let id, let rows): channels.outbox?.removed(id, rows: rows)
        case .agentDeleted(let channel): channels.notifyDeleted(channel)
        case .lifetimeDue(let due): channels.expiry.set(due)
        case .trimAgain(let trim): channels.submit(.trim(trim))
        case .subscriptionDecided(let effects): effects.carryOut()
        case .linked(let subscription, let stream): channels.linked(stream, to: subscription)
        case .followed(let follower): channels.notifyFollowed(follower)
        case .search(let search): search.start(answer)
        case .opened(let opening): channels.opened(opening)
        case .closed(let partition): channels.closed(partition)
        case .evictIdle: channels.evictIdle()
        case .forkOrdered(let order): channels.messages.answers.wait(order, answer)
        case .forkDecided(let request, let result): channels.messages.answers.give(result, to: request)
        }
    }
}

/// Why staging stops: the channel says no, or the log cannot be read.
enum ChannelRefusal: Error {
    case refused(ChannelError)
    case log(LogError)

    /// What was decided: a refusal is an answer, too.
    static func outcome<Value>(_ decide: () throws(ChannelRefusal) -> Value) throws(LogError) -> Result<Value, ChannelError> {
        do {
            return .success(try decide())
        } catch {
            switch error {
            case .refused(let reason): return .failure(reason)
            case .log(let error): throw error
            }
        }
    }

    static func wrap<Value>(_ body: () throws(LogError) -> Value) throws(ChannelRefusal) -> Value {
        do { return try body() } catch { throw .log(error) }
    }
}

extension ChannelError {
    package init(_ error: LogError) {
        self.init(error.code == .overloaded ? "overloaded" : error.code.text, error.message)
    }
}
