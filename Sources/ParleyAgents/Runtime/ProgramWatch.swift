internal import ParleySystem
internal import Synchronization

/// Programs that are not where their turns believe them, and how many bodies of steps run.
final class ProgramWatch: Sendable {
    private let bodies = Atomic<Int>(0)
    /// How many tasks of each kind's programs are left that neither continue nor end.
    private let parked = Mutex<[String: Int]>([:])
    /// Turns that continued, by something outside of them, when they had been passivated because they seemed only to wait.
    private let strays = Mutex<[String: UInt64]>([:])

    private static let parkedMax = 256

    /// How many bodies of steps run.
    var runningBodies: Int { bodies.load(ordering: .relaxed) }
    func bodyBegan() { bodies.add(1, ordering: .relaxed) }
    func bodyEnded() { bodies.subtract(1, ordering: .relaxed) }

    /// A program of that kind kept making calls after its turn had lost its right to run: one of its tasks is lost for as long as the process lives.
    func parked(_ kind: String) {
        let count = parked.withLock { parked in
            parked[kind, default: 0] += 1
            return parked[kind]!
        }
        guard count == 1 || count == ProgramWatch.parkedMax else { return }
        Diagnostics.log(
            .error, "a program goes on whatever its turn throws, and holds memory for ever: let Passivated and Fenced pass through",
            ["kind": kind, "tasks": "\(count)"])
    }

    /// Whether waiting turns of that kind stay in memory: each passivation of one would leak its memory.
    func keepsInMemory(_ kind: String) -> Bool { parked.withLock { $0[kind, default: 0] >= ProgramWatch.parkedMax } }

    func strayed(_ name: String, turn: UInt64) { strays.withLock { $0[name] = turn } }
    func noStray(_ name: String, turn: UInt64) { strays.withLock { if $0[name] == turn { $0[name] = nil } } }
    func noStray(_ name: String) { strays.withLock { $0[name] = nil } }
    /// Whether the turn must not be passivated, because it also waits for something outside.
    func hasStrayed(_ name: String, turn: UInt64) -> Bool { strays.withLock { $0[name] == turn } }
}
