internal import ParleyHTTP
package import ParleySystem
internal import Synchronization

/// A reader that follows a channel over SSE and keeps what it got. Connecting again after a break is the test's decision.
package final class EndToEndReader: Sendable {
    package struct Seen: Sendable {
        package var entries: [JSON] = []
        /// The offset at which it resumes: that of the last control event.
        package var offset: String
        /// Data whose control event has not come: not taken, because it is sent again after a break.
        var pending: [JSON] = []
        /// The status of the connection's answer; 0 while there is none.
        package var status = 0
        /// The connection is over, cleanly or not.
        package var isOver = true
        package var isClean = false
        /// The last event was a control event.
        package var endsWithControl = false
        package var isClosed = false
        var events = ServerSentEventParser()
        var generation = 0
        /// Kept: the node must not end during a read.
        var node: EndToEndNode?
        var call: (any OutgoingCall)?

        /// The first entry of this type, if there is one.
        package func first(_ type: String) -> JSON? { entries.first { $0["type"]?.string == type } }
    }

    private let channel: String
    private let view: String
    private let state: Monitor<Seen>

    package convenience init(of agent: String, from offset: String = "-1", view: String = "raw") {
        self.init(channel: "agents/\(agent)", from: offset, view: view)
    }

    /// - Parameter channel: The whole name of any JSON channel.
    package init(channel: String, from offset: String = "-1", view: String = "raw") {
        self.channel = channel
        self.view = view
        state = Monitor(Seen(offset: offset))
    }

    deinit { state.withLock { $0.call }?.cancel() }

    package var seen: Seen { state.withLock { $0 } }

    /// Connects at the offset reached.
    package func attach(to node: EndToEndNode) {
        let (offset, generation) = state.withLock { state in
            state.generation += 1
            state.node = node
            (state.events, state.pending, state.status, state.isOver) = (ServerSentEventParser(), [], 0, false)
            (state.isClean, state.endsWithControl) = (false, false)
            return (state.offset, state.generation)
        }
        let request = OutgoingRequest(url: "\(node.url)/v1/stream/\(channel)?offset=\(offset)&live=sse&view=\(view)")
        let call = EndToEndHTTP.transport.start(request, Connection(self, generation))
        state.withLock { $0.call = call }
    }

    /// Goes away.
    package func detach() {
        state.withLock(signalAll: true) { state in
            state.generation += 1
            state.isOver = true
            return state.call
        }?.cancel()
    }

    /// Waits until `find` makes something of what was seen; continues when the node ends the connection because its time is up.
    @discardableResult
    package func wait<Value>(_ phase: String, timeout: Duration = .seconds(60), _ find: (Seen) -> Value?) throws -> Value {
        let deadline = ContinuousClock.now + timeout
        while true {
            let found = state.wait(timeout: max(.zero, deadline - ContinuousClock.now)) { seen -> Value?? in
                if let value = find(seen) { return .some(value) }
                return seen.isOver && seen.isClean && seen.endsWithControl && !seen.isClosed ? .some(nil) : nil
            }
            if case .some(.some(let value)) = found { return value }
            let seen = seen
            guard found != nil, let node = seen.node else {
                let last = seen.entries.last?.text.prefix(300) ?? "nothing"
                let state = "\(seen.entries.count) entries, status \(seen.status), over: \(seen.isOver)"
                throw Missed("waited \(timeout) for \(phase); \(state), last: \(last)")
            }
            attach(to: node)
        }
    }

    /// Waits for the end of a turn.
    @discardableResult
    package func waitForTurnEnd(_ phase: String = "the end of the turn", timeout: Duration = .seconds(90)) throws -> JSON {
        try wait(phase, timeout: timeout) { seen in seen.entries.first { EndToEndReader.ends.contains($0["type"]?.string) } }
    }

    private static let ends: Set<String?> = ["turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled", "agent.stalled", "agent.parked"]

    // MARK: Events

    private final class Connection: OutgoingCallDelegate {
        private weak let reader: EndToEndReader?
        private let generation: Int

        init(_ reader: EndToEndReader, _ generation: Int) { (self.reader, self.generation) = (reader, generation) }

        func received(status: Int, headers: [(name: String, value: String)]) { update { $0.status = status } }

        func received(body: UnsafeRawBufferPointer) {
            update { seen in
                guard seen.status == 200 else { return }
                var events: [ServerSentEvent] = []
                try? seen.events.feed(body) { events.append($0) }
                for event in events { EndToEndReader.take(event, &seen) }
            }
        }

        func ended(_ error: OutgoingError?) {
            update { seen in
                seen.isOver = true
                seen.isClean = error == nil
            }
        }

        private func update(_ body: (inout Seen) -> Void) {
            reader?.state.withLock(signalAll: true) { seen in if seen.generation == generation { body(&seen) } }
        }
    }

    private static func take(_ event: ServerSentEvent, _ seen: inout Seen) {
        guard let json = try? JSON.parse(event.data) else { return }
        seen.endsWithControl = event.name == "control"
        switch event.name {
        case "data": seen.pending += json.array ?? []
        case "control":
            seen.entries += seen.pending
            seen.pending = []
            if let offset = json["streamNextOffset"]?.string { seen.offset = offset }
            seen.isClosed = json["streamClosed"]?.bool == true
        default: break
        }
    }
}
