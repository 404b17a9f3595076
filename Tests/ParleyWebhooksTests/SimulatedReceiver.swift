import ParleyChannels
import ParleyHTTP
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization

@testable import ParleyWebhooks

/// A request to a receiver.
struct Delivery: Sendable {
    var at: Timestamp
    var request: OutgoingRequest
    var isTaken = false
    let body: JSON
    let id: String
    let channel: String
    let offset: String

    init(at: Timestamp, _ request: OutgoingRequest) {
        (self.at, self.request) = (at, request)
        body = (try? JSON.parse(request.body)) ?? .null
        id = request.headers.first { $0.name == "webhook-id" }?.value ?? ""
        channel = body["channel"]?.string ?? ""
        offset = body["offset"]?.string ?? ""
    }

    func header(_ name: String) -> String? { request.headers.first { $0.name.lowercased() == name.lowercased() }?.value }
}

/// A receiver in a simulated world, which outlives the processes that call it.
final class SimulatedReceiver: Sendable {
    enum Answer: Sendable {
        case status(Int, headers: [(name: String, value: String)] = [], bodyBytes: Int = 0)
        /// Below HTTP. `isTaken`: the request arrived, and its answer was lost.
        case fails(String, isTaken: Bool = false)
        /// The head, and the beginning of a body whose rest does not come.
        case breaksOff(Int, body: String)
        case silence
    }

    private struct State {
        var deliveries: [Delivery] = []
        var inFlight: [String: Int] = [:]
        var inFlightMax = 0
        /// Attempts at once for one channel.
        var inFlightPerChannelMax = 0
        var cancelled = 0
    }

    private let state = Mutex(State())
    private let answer: @Sendable (_ number: Int, _ delivery: Delivery) -> (Answer, after: Duration)

    init(
        _ answer: @escaping @Sendable (_ number: Int, _ delivery: Delivery) -> (Answer, after: Duration) = { _, _ in (.status(204), .zero) }
    ) {
        self.answer = answer
    }

    var deliveries: [Delivery] { state.withLock { $0.deliveries } }
    var taken: [Delivery] { deliveries.filter(\.isTaken) }
    var inFlightMax: (all: Int, perChannel: Int) { state.withLock { ($0.inFlightMax, $0.inFlightPerChannelMax) } }
    var cancelled: Int { state.withLock { $0.cancelled } }

    /// How one process reaches it.
    func transport(_ world: SimulatedWorld) -> any OutgoingTransport { ScriptedTransport { self.start($0, $1, world) } }

    private final class Call: OutgoingCall {
        let isOver = Mutex(false)
        let end: @Sendable (_ isCancelled: Bool) -> Void

        init(_ end: @escaping @Sendable (_ isCancelled: Bool) -> Void) { self.end = end }

        func cancel() { finish(true) }

        @discardableResult
        func finish(_ isCancelled: Bool) -> Bool {
            let isFirst = isOver.withLock { isOver in
                defer { isOver = true }
                return !isOver
            }
            if isFirst { end(isCancelled) }
            return isFirst
        }
    }

    private func start(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate, _ world: SimulatedWorld) -> any OutgoingCall {
        var delivery = Delivery(at: world.now, request)
        let channel = delivery.channel
        let (answer, delay) = answer(deliveries.count, delivery)
        switch answer {
        case .status(200..<300, _, _), .fails(_, isTaken: true): delivery.isTaken = true
        default: break
        }
        state.withLock { [delivery] state in
            state.deliveries.append(delivery)
            state.inFlight[channel, default: 0] += 1
            state.inFlightMax = max(state.inFlightMax, state.inFlight.values.reduce(0, +))
            state.inFlightPerChannelMax = max(state.inFlightPerChannelMax, state.inFlight[channel]!)
        }
        let call = Call { isCancelled in
            self.state.withLock { state in
                state.inFlight[channel]! -= 1
                if state.inFlight[channel] == 0 { state.inFlight[channel] = nil }
                if isCancelled { state.cancelled += 1 }
            }
        }
        if case .silence = answer { return call }
        world.schedule(at: world.now.advanced(by: delay)) {
            guard !call.isOver.withLock({ $0 }) else { return }
            if case .status(let status, let headers, let bodyBytes) = answer {
                delegate.received(status: status, headers: headers)
                let piece = Bytes(repeating: 0, count: 1_000)
                for _ in 0..<(bodyBytes / 1_000) where !call.isOver.withLock({ $0 }) {
                    piece.withUnsafeBytes { delegate.received(body: $0) }
                }
            }
            if case .breaksOff(let status, let body) = answer {
                delegate.received(status: status, headers: [])
                Bytes(body.utf8).withUnsafeBytes { delegate.received(body: $0) }
            }
            guard call.finish(false) else { return }
            switch answer {
            case .fails(let code, _): delegate.ended(OutgoingError(code: code, message: code))
            case .breaksOff: delegate.ended(OutgoingError(code: "upstream_closed", message: "broken", reason: "broken"))
            default: delegate.ended(nil)
            }
        }
        return call
    }

    /// Forgets the calls of a process that is gone.
    func forgetCalls() { state.withLock { $0.inFlight = [:] } }
}

/// A process with a webhook, in a simulated world.
final class WebhookProcess: Sendable {
    static let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

    let world: SimulatedWorld
    let log: SimulatedLog
    let writer: GroupCommit
    let channels: Channels
    let delivery: WebhookDelivery

    init(
        seed: UInt64 = 1, now: Timestamp = Timestamp(milliseconds: 1_767_225_600_000), _ receiver: SimulatedReceiver,
        on log: SimulatedLog = SimulatedLog(), events: String? = nil, allowsPrivate: Bool = false
    ) throws {
        world = SimulatedWorld(seed: seed, now: now)
        self.log = log
        writer = GroupCommit(log: log)
        let configuration = try WebhookConfiguration(
            url: "https://hooks.example.com/parley?key=hidden", events: events, secret: WebhookProcess.secret, allowsPrivate: allowsPrivate)
        channels = Channels(log: log, writer: writer, world: world, outbox: Outbox(kinds: configuration.events))
        delivery = WebhookDelivery(configuration, channels: channels, world: world, transport: receiver.transport(world))
        world.drive { [writer] in writer.pump() }
        try delivery.prepare()
        delivery.start()
    }

    /// The next process, on the same log.
    func reopened(
        _ receiver: SimulatedReceiver, seed: UInt64 = 2, outcome: @escaping SimulatedLog.Decision = { _, _ in .acknowledged }
    ) throws -> WebhookProcess {
        receiver.forgetCalls()
        return try WebhookProcess(seed: seed, now: world.now, receiver, on: log.reopen(outcome: outcome))
    }

    /// Submits entries to an agent's channel, as its owner would.
    func append(_ entries: [NewEntry], to name: String = "agents/waiter/a") {
        var append = Append(to: name, entries)
        append.creates = ChannelRow(name: name, contentType: ContentType.json, isAgent: true, created: world.now)
        channels.submit(append)
    }

    func delete(_ name: String) { channels.submit(DeleteChannel(name)) }

    func run(_ duration: Duration = .seconds(10 * 86_400)) { world.run(deadline: world.now.advanced(by: duration)) }

    func rows() throws -> Int {
        var count = 0
        try log.scan(.outbox, from: [0, 0], to: [255, 255], reversed: false) { _, _ in
            count += 1
            return true
        }
        return count
    }

    func entries(_ name: String = "agents/waiter/a") throws -> [JSON] {
        guard let channel = try channels.find(name) else { return [] }
        return try JSON.parse(try channels.page(channel, after: 0, view: .raw, bytesMax: .max).body).array ?? []
    }
}

extension NewEntry {
    static func approval(_ number: Int = 1) -> NewEntry {
        NewEntry(
            .approvalRequested, Position(turn: 1, step: "order", attempt: 1), ("approval", "0000000000000001/order"),
            ("action", "order"), ("args", ["what": .integer(Int64(number))]), ("args_sha256", "abc"))
    }

    static let stalled = NewEntry(.agentStalled, nil, ("reason", "journal_mismatch"), ("remedy", "mend it"))
    static let note = NewEntry(.emit, nil, ("name", "note"), ("data", 1))
}
