internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// The webhooks of a simulated week: they answer, fail, are slow, or are down for hours.
final class WeekReceiver: @unchecked Sendable {  // Guard: as `SimulatedWeek`.
    unowned var week: SimulatedWeek!
    /// Answers at once, and has done everything.
    var isPatient = false
    private var downUntil = Timestamp(milliseconds: 0)
    /// Calls in flight, by subscription.
    private(set) var inFlightCount = 0

    func transport(_ world: SimulatedWorld) -> any OutgoingTransport { ScriptedTransport { self.start($0, $1, world) } }

    private final class Call: OutgoingCall {
        let isOver = Atomic(false)
        func cancel() { isOver.store(true, ordering: .relaxed) }
    }

    private enum Answer { case done, taken, status(Int), silence, unreachable }

    private func start(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate, _ world: SimulatedWorld) -> any OutgoingCall {
        let call = Call()
        guard let wake = try? JSON.parse(request.body), let id = wake["subscription_id"]?.string,
            let subscriber = week.subscribers.first(where: { $0.id == id }), week.process?.world === world
        else { return call }
        let answer = answer(world.now)
        let (isTaken, isDone) =
            switch answer {
            case .done: (true, true)
            case .taken: (true, false)
            default: (false, false)
            }
        week.note("\(id) is called: \(wake["generation"]?.text ?? "") \(answer)")
        subscriber.received(wake, isTaken: isTaken, isDone: isDone)
        if case .silence = answer { return call }
        let takes: [Duration] = isPatient ? [.milliseconds(5)] : [.milliseconds(1), .milliseconds(80), .seconds(2), .seconds(14)]
        world.schedule(at: world.now.advanced(by: takes.randomElement(using: &week.random)!)) {
            guard !call.isOver.load(ordering: .relaxed) else { return }
            switch answer {
            case .done:
                delegate.received(status: 200, headers: [])
                Bytes("{\"done\":true}".utf8).withUnsafeBytes { delegate.received(body: $0) }
                delegate.ended(nil)
            case .taken:
                delegate.received(status: 204, headers: [])
                delegate.ended(nil)
            case .status(let status):
                delegate.received(status: status, headers: [])
                delegate.ended(nil)
            case .unreachable: delegate.ended(OutgoingError(code: "upstream_unreachable", message: "nobody is there"))
            case .silence: break
            }
        }
        return call
    }

    private func answer(_ now: Timestamp) -> Answer {
        if isPatient { return .done }
        if now < downUntil { return .unreachable }
        if week.chance(30) {
            downUntil = now.advanced(by: week.length / 20)
            return .unreachable
        }
        return switch week.random.next() % 8 {
        case 0...2: .done
        case 3, 4: .taken
        case 5: .status(503)
        case 6: .status(410)
        default: .silence
        }
    }
}
