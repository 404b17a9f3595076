internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem
internal import ParleyWebhooks
internal import Synchronization

/// Counts the connections and the bytes that they hold.
struct ConnectionCounters {
    var open = 0
    /// Bytes of requests until they are answered.
    var requestBytes = 0
    /// Bytes of answers that wait to be sent, and of input behind them.
    var waitingBytes = 0
}

/// The state that the routes of one server share.
final class ServerContext: Sendable {
    let tails: TailDirectory
    var channels: Channels { tails.channels }
    let agents: (any AgentHost)?
    let node: (any NodeHost)?
    let subscriptions: SubscriptionDelivery?
    let configuration: ServerConfiguration
    let reads: ReadPool
    let authenticator: Authenticator
    let places: ReaderPlaces
    let rates: RateLimiter?
    let refusals = RefusalCounter()
    let answers: AnswerMemory
    /// Further measures for `/metrics`.
    let measures: @Sendable () -> [Measure]
    private let readersByLoop: [ObjectIdentifier: LoopReaders]
    private let draining = Atomic(false)
    private let connectionCounters = Mutex<@Sendable () -> ConnectionCounters>({ ConnectionCounters() })

    init(
        tails: TailDirectory, agents: (any AgentHost)?, node: (any NodeHost)?, subscriptions: SubscriptionDelivery?,
        configuration: ServerConfiguration, loops: [EventLoop],
        measures: @escaping @Sendable () -> [Measure]
    ) {
        self.tails = tails
        (self.agents, self.node) = (agents, node)
        self.subscriptions = subscriptions
        self.configuration = configuration
        self.measures = measures
        let reads = ReadPool(queuedMax: configuration.queuedReadsMax)
        self.reads = reads
        rates = configuration.rate.map { RateLimiter(rate: $0) }
        let authenticator = Authenticator(configuration, world: tails.channels.world)
        self.authenticator = authenticator
        places = ReaderPlaces(total: configuration.readersPerLoopMax * loops.count, share: configuration.readersPerAccountMax)
        let answers = AnswerMemory(bytesMax: configuration.answerBytesMax)
        self.answers = answers
        let unfitText = UnfitText()
        let readers = loops.map {
            let readers = LoopReaders(
                loop: $0, channels: tails.channels, reads: reads, configuration: configuration, unfitText: unfitText,
                authenticator: authenticator,
                answers: answers)
            return (ObjectIdentifier($0), readers)
        }
        readersByLoop = Dictionary(uniqueKeysWithValues: readers)
    }

    var allReaders: [LoopReaders] { Array(readersByLoop.values) }

    var readerCount: Int { readersByLoop.values.reduce(0) { $0 + $1.count } }

    var connections: ConnectionCounters { connectionCounters.withLock { $0 }() }

    /// Says how to count connections; the server that knows is made after this.
    func count(_ counters: @escaping @Sendable () -> ConnectionCounters) { connectionCounters.withLock { $0 = counters } }

    /// The live readers of a connection's loop.
    func readers(on loop: EventLoop) -> LoopReaders { readersByLoop[ObjectIdentifier(loop)]! }

    var isDraining: Bool {
        get { draining.load(ordering: .relaxed) }
        set { draining.store(newValue, ordering: .relaxed) }
    }

    // MARK: Access

    /// Whose share of a limit a request counts against.
    func account(of exchange: Exchange) -> String { exchange.account }

    /// Runs `body` on the exchange's loop, unless the request's credential is no longer valid by then: the exchange is answered with that.
    func answer(_ exchange: Exchange, _ body: @escaping @Sendable () -> Void) {
        exchange.onLoop { [self] in
            if let problem = authenticator.problem(with: exchange.access) { return exchange.respond(problem) }
            body()
        }
    }

    // MARK: Channels

    /// Calls `body` on the exchange's loop with the channel, or answers that there is none.
    ///
    /// A channel in memory costs no hop; any other is looked for on the read pool.
    func withChannel(_ name: StreamName, _ exchange: Exchange, _ body: @escaping @Sendable (Channel) -> Void) {
        if let channel = channels.resident(name.text) {
            return channel.isSoftDeleted ? exchange.respond(Problem(ChannelError.gone(name.text))) : body(channel)
        }
        read(for: exchange) { [self] () throws(ChannelError) in
            try find(name)
        } then: {
            body($0)
        }
    }

    /// Calls `then` on `loop` with the channel, at once when it is in memory, or with the reason why there is none.
    func find(_ name: StreamName, on loop: EventLoop, _ then: @escaping @Sendable (Result<Channel, ChannelError>) -> Void) {
        if let channel = channels.resident(name.text) {
            return then(channel.isSoftDeleted ? .failure(ChannelError.gone(name.text)) : .success(channel))
        }
        look(on: loop, { [self] () throws(ChannelError) in try find(name) }, then)
    }

    private func look<Found: Sendable>(
        on loop: EventLoop, _ work: @escaping @Sendable () throws(ChannelError) -> Found,
        _ then: @escaping @Sendable (Result<Found, ChannelError>) -> Void
    ) {
        let isTaken = reads.run {
            let result: Result<Found, ChannelError>
            do throws(ChannelError) { result = .success(try work()) } catch { result = .failure(error) }
            loop.execute { then(result) }
        }
        if !isTaken { then(.failure(ChannelError("overloaded", "too many reads wait for the log. Try again later."))) }
    }

    private func find(_ name: StreamName) throws(ChannelError) -> Channel {
        guard let channel = try channels.readable(name.text) else { throw missing(name) }
        return channel
    }

    /// The reason why there is no such channel: one of an unknown kind cannot be created.
    private func missing(_ name: StreamName) -> ChannelError {
        guard let kind = name.agent?.kind, let kinds = agents?.kinds, !kinds.contains(kind) else { return .notFound(name.text) }
        return .unknownKind(kind, of: kinds)
    }

    // MARK: Tails

    /// Calls `body` on the exchange's loop with the tail of the channel, whichever node owns it, or answers that there is none.
    ///
    /// - Parameter offset: The offset at which its reader wants to begin.
    func withTail(
        _ name: StreamName, reaching offset: UInt64, _ exchange: Exchange, _ body: @escaping @Sendable (any Tail) -> Void
    ) {
        do throws(ChannelError) {
            if let tail = try tails.resident(name.text, reaching: offset) { return body(tail) }
        } catch { return exchange.respond(Problem(error)) }
        read(for: exchange) { [self] () throws(ChannelError) in
            try findTail(name, offset)
        } then: {
            body($0)
        }
    }

    /// As ``find(_:on:_:)``, whichever node owns the channel.
    func findTail(
        _ name: StreamName, reaching offset: UInt64, on loop: EventLoop,
        _ then: @escaping @Sendable (Result<any Tail, ChannelError>) -> Void
    ) {
        do throws(ChannelError) {
            if let tail = try tails.resident(name.text, reaching: offset) { return then(.success(tail)) }
        } catch { return then(.failure(error)) }
        look(on: loop, { [self] () throws(ChannelError) in try findTail(name, offset) }, then)
    }

    private func findTail(_ name: StreamName, _ offset: UInt64) throws(ChannelError) -> any Tail {
        guard let tail = try tails.find(name.text, reaching: offset) else { throw missing(name) }
        return tail
    }

    /// Gives an event to all readers that follow its channel, on every loop.
    ///
    /// - Returns: false when so many are on their way already that it is dropped.
    func deliver(_ event: EphemeralDelivery) -> Bool { readersByLoop.values.allSatisfy { $0.deliver(event) } }

    /// Runs `work` on the read pool and `then` with its result on the exchange's loop; a failure is answered.
    func read<Value: Sendable>(
        for exchange: Exchange, _ work: @escaping @Sendable () throws(ChannelError) -> Value, then: @escaping @Sendable (Value) -> Void
    ) {
        let isTaken = reads.run { [self] in
            do throws(ChannelError) {
                let value = try work()
                answer(exchange) { then(value) }
            } catch {
                let problem = Problem(error)
                answer(exchange) { exchange.respond(problem) }
            }
        }
        if !isTaken { exchange.respond(.overloaded("too many reads wait for the log")) }
    }

    /// As ``read(for:_:then:)`` for an answer that may be large: it is counted in the memory for answers, and waits for room where there is none.
    ///
    /// - Parameter work: Makes the answer, or a shorter one; `nil` when there is none. Called once more after a wait.
    func readLarge<Value: Sendable>(
        for exchange: Exchange, weight: @escaping @Sendable (Value) -> Int,
        _ work: @escaping @Sendable (_ isShort: Bool) throws(ChannelError) -> Value?,
        then: @escaping @Sendable (Value, MemoryReservation?) -> Void
    ) {
        attempt(LargeRead(exchange: exchange, account: exchange.account, weight: weight, work: work, then: then), in: nil)
    }

    private struct LargeRead<Value: Sendable>: Sendable {
        let exchange: Exchange
        let account: String
        let weight: @Sendable (Value) -> Int
        let work: @Sendable (_ isShort: Bool) throws(ChannelError) -> Value?
        let then: @Sendable (Value, MemoryReservation?) -> Void
    }

    private func attempt<Value>(_ read: LargeRead<Value>, in room: MemoryReservation?) {
        self.read(for: read.exchange) { [answers] () throws(ChannelError) in
            try answers.make(for: read.account, in: room, weight: read.weight, read.work)
        } then: { [self] made in
            switch made {
            case .value(let value, let room): read.then(value, room)
            case .needs(let count): wait(for: count, read)
            }
        }
    }

    private func wait<Value>(for count: Int, _ read: LargeRead<Value>) {
        let exchange = read.exchange
        readers(on: exchange.loop).waiting.wait(
            for: count, of: read.account, patience: WaitingAnswers.patience, isWanted: { exchange.responder.isOpen }
        ) { [self] room in
            guard let room else { return exchange.respond(.answersOverloaded) }
            attempt(read, in: room)
        }
    }
}
