import ParleyAgents
import ParleySystem
import ParleyTesting
import Synchronization

/// A model that answers call by call what a test wrote down, each event 10 ms behind the one before; it falls silent behind an answer without an end.
final class PlayedModel: Model {
    private struct State {
        var answers: [[ModelEvent]]
        var requests: [ModelRequest] = []
        var cancelled = 0
        var continues: Continuation
    }

    let name = "played:"
    private let world: any World
    private let state: Mutex<State>

    /// - Parameter answers: One for each call; the last one is given to all further calls.
    convenience init(_ world: any World, continues: Continuation = .no, _ answers: [ModelEvent]...) {
        self.init(world, continues: continues, answers: answers)
    }

    init(_ world: any World, continues: Continuation = .no, answers: [[ModelEvent]]) {
        self.world = world
        state = Mutex(State(answers: answers, continues: continues))
    }

    var continues: Continuation { state.withLock { $0.continues } }
    var requests: [ModelRequest] { state.withLock { $0.requests } }
    var cancelledCalls: Int { state.withLock { $0.cancelled } }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        let events: [ModelEvent] = state.withLock { state in
            state.requests.append(request)
            let events = state.answers.count > 1 ? state.answers.removeFirst() : state.answers[0]
            // As a model does that has been refused once.
            if case .failed(let failure) = events.last, failure.code == "prefix_refused" { state.continues = .no }
            return events
        }
        let call = Call { self.state.withLock { $0.cancelled += 1 } }
        for (index, event) in events.enumerated() {
            world.schedule(at: world.now.advanced(by: .milliseconds(10 * (index + 1)))) {
                if !call.isCancelled { sink.received(event) }
            }
        }
        return call
    }

    private final class Call: ModelCall {
        private let cancelled = Mutex(false)
        private let onCancel: @Sendable () -> Void

        init(_ onCancel: @escaping @Sendable () -> Void) { self.onCancel = onCancel }

        var isCancelled: Bool { cancelled.withLock { $0 } }

        func cancel() {
            let isFirst = cancelled.withLock { was in
                defer { was = true }
                return !was
            }
            if isFirst { onCancel() }
        }
    }
}
