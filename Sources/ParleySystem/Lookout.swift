/// A thread that sleeps until it is woken, and then looks at something again and again, as long as there is something to look at.
///
/// It is started when it is first woken. It holds what it looks at.
final class Lookout: Sendable {
    private struct State {
        var isStarted = false
        var isAwake = false
    }

    private let state = Monitor(State())
    private let name: String
    private let interval: Duration

    /// - Parameters:
    ///   - name: The name of the thread.
    ///   - interval: The time from one look to the next.
    init(name: String, every interval: Duration) { (self.name, self.interval) = (name, interval) }

    /// Has `look` called from now on, until it returns false.
    /// - Parameter look: The same at each call.
    func wake(_ look: @escaping @Sendable () -> Bool) {
        let isFirst = state.withLock(signal: true) { state in
            defer { (state.isStarted, state.isAwake) = (true, true) }
            return !state.isStarted
        }
        guard isFirst else { return }
        _ = SystemThread(name: name) { [state, interval] in
            while true {
                _ = state.wait { state in
                    defer { state.isAwake = false }
                    return state.isAwake ? true : nil
                }
                while look() { _ = state.wait(timeout: interval) { _ in nil as Bool? } }
            }
        }
    }
}
