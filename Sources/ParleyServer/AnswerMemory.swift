internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A value made for a client, in the room that there is for it.
enum Made<Value: Sendable>: Sendable {
    /// `nil`: it is too small to be counted.
    case value(Value, MemoryReservation?)
    /// It was discarded: there is no room for so many bytes now.
    case needs(Int)
}

/// The memory for answers until their clients have taken them.
///
/// An answer is counted where it is made, before it is given on, so that none of those that wait for a loop or a socket is forgotten.
struct AnswerMemory: Sendable {
    let budget: MemoryBudget

    /// A smaller answer is not counted: connections hold more than that anyway.
    static let uncountedBytes = 2 << 10
    /// A larger one can hardly be made short: one message, or a record of one step.
    private static let shortenedBytesMax = 1 << 20
    /// The size of a short answer.
    static let shortBytes = 8 << 10

    init(bytesMax: Int) { budget = MemoryBudget(bytesMax: bytesMax) }

    /// The weight of an answer of so many bytes: never more than one account could get.
    private func weight(_ count: Int) -> Int { min(count, budget.bytesMax / 2) }

    /// Room for an answer that is there already; `nil` when it is too small to be counted.
    /// - Throws: 503 `overloaded` when there is none.
    func room(for count: Int, of account: @autoclosure () -> String) throws(Problem) -> MemoryReservation? {
        guard count > AnswerMemory.uncountedBytes else { return nil }
        guard let room = reserve(count, for: account()) else { throw .answersOverloaded }
        return room
    }

    func reserve(_ count: Int, for account: String) -> MemoryReservation? { budget.reserve(weight(count), for: account) }

    /// Counts an answer that must be given, however little room is left.
    func owe(_ count: Int, of account: @autoclosure () -> String) -> MemoryReservation? {
        guard count > AnswerMemory.uncountedBytes else { return nil }
        let room = MemoryReservation(budget, account: account())
        room.resize(to: weight(count), isOwed: true)
        return room
    }

    /// Makes an answer and counts it: as long as it would be, else short, else not at all.
    ///
    /// - Parameters:
    ///   - room: The room found for it, if it had to wait.
    ///   - make: Makes the answer, or a short one; `nil` when there is none.
    func make<Value>(
        for account: String, in room: MemoryReservation?, weight count: (Value) -> Int,
        _ make: (_ isShort: Bool) throws(ChannelError) -> Value?
    ) throws(ChannelError) -> Made<Value> {
        guard let value = try make(false) else { return .needs(0) }
        if count(value) <= AnswerMemory.uncountedBytes { return .value(value, nil) }
        let room = room ?? MemoryReservation(budget, account: account)
        if room.resize(to: weight(count(value))) { return .value(value, room) }
        guard count(value) <= AnswerMemory.shortenedBytesMax, let short = try make(true) else { return .needs(count(value)) }
        return room.resize(to: weight(count(short))) ? .value(short, room) : .needs(count(short))
    }
}

/// The answers of one loop that wait until there is room for them, the longest first.
final class WaitingAnswers: @unchecked Sendable {  // Guard: used on the loop only.
    private struct Waiting {
        let account: String
        let count: Int
        /// Milliseconds of the loop's time.
        let deadline: Int64
        let isWanted: () -> Bool
        let go: (MemoryReservation?) -> Void
    }

    private let loop: EventLoop
    private let memory: AnswerMemory
    private var waiting: [Waiting] = []
    private var timer: LoopTimer?

    /// How long a client waits for an answer before it is told to retry.
    static let patience = Duration.seconds(5)
    private static let period = Duration.milliseconds(20)

    init(_ loop: EventLoop, _ memory: AnswerMemory) { (self.loop, self.memory) = (loop, memory) }

    var count: Int { waiting.count }

    /// Calls `go` with room for `count` bytes when there is some, or with `nil` when none has come in time; not at all once the answer is no longer
    /// wanted.
    ///
    /// - Parameter patience: `nil`: as long as it takes.
    func wait(
        for count: Int, of account: String, patience: Duration?, isWanted: @escaping () -> Bool,
        _ go: @escaping (MemoryReservation?) -> Void
    ) {
        let deadline = patience.map { loop.nowMilliseconds + $0.milliseconds } ?? .max
        waiting.append(Waiting(account: account, count: count, deadline: deadline, isWanted: isWanted, go: go))
        lookLater()
    }

    private func lookLater() {
        guard timer?.isWaiting != true, !waiting.isEmpty else { return }
        timer = loop.schedule(after: WaitingAnswers.period) { [weak self] in self?.look() }
    }

    private func look() {
        let now = loop.nowMilliseconds
        // The smallest size that found no room, by account: one as large finds none either.
        var refused: [String: Int] = [:]
        let before = waiting
        waiting = []
        for one in before where one.isWanted() {
            if one.count < refused[one.account] ?? .max, let room = memory.reserve(one.count, for: one.account) {
                one.go(room)
            } else if now >= one.deadline {
                one.go(nil)
            } else {
                refused[one.account] = min(one.count, refused[one.account] ?? .max)
                waiting.append(one)
            }
        }
        lookLater()
    }
}

extension Problem {
    /// There is no memory for an answer.
    static var answersOverloaded: Problem { .overloaded(answersFull) }

    static let answersFull = "answers that clients have not taken hold as much of the server's memory as they may"
}
