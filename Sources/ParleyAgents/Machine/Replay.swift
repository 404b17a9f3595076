internal import ParleySystem

/// The part of a turn's journal that the program, run again, has not yet asked for or been given.
///
/// A scope belongs to one task, which asks for one step after another: the next start of each scope is the only one that may come in it.
/// Between scopes the order may be another one than at first, when tasks wait for something outside the turn; such a start is waited for, unless
/// it is certain that nothing can ask for it any more. Results come in the order of the log, each when its step has been asked for.
struct Replay {
    enum Match: Equatable {
        case known
        /// The journal does not have it.
        case new
        /// The program has changed: it should have asked for something else.
        case differs(expected: String)
    }

    /// Starts that the program has not asked for, by scope, in the order of the log.
    private var starts: [Substring: Fifo<Start>] = [:]
    private(set) var missingCount: Int
    /// Which starts the program has asked for, by their number in the log.
    private var taken: [Bool]
    /// The program has asked for every start before it.
    private var missedFrom = 0
    /// Results that the program has not been given.
    private var results = Fifo<Journal.Completion>()
    private var cancellations = 0
    /// Results in a cancelled turn of steps that the program does not wait for.
    private var skipped: [String: Journal.Completion] = [:]
    /// Steps without a result that have not been taken up again.
    private(set) var open: [String: Journal.OpenStep]
    private let openOrder: [String]

    private struct Start {
        let start: Journal.Start
        /// Its number in the log's order.
        let number: Int
    }

    init(_ journal: Journal) {
        for (number, start) in journal.starts.enumerated() {
            starts[Replay.scope(of: start.path), default: Fifo()].append(Start(start: start, number: number))
        }
        missingCount = journal.starts.count
        taken = Array(repeating: false, count: journal.starts.count)
        open = journal.open
        openOrder = journal.starts.lazy.map(\.path).filter { journal.open[$0] != nil }
        for completion in journal.completions { add(completion) }
    }

    /// Everything was asked for, and every result given.
    var isOver: Bool { missingCount == 0 && results.isEmpty }

    // MARK: Starts

    /// Compares what the program asks for with what the journal has at its place.
    ///
    /// - Parameters:
    ///   - isCancelled: Whether the turn is: its program leaves out what it was about to do, at whatever place the cancellation reaches it.
    ///   - isNamed: Whether the scope has given out a name already; one that the journal has and the scope has not given out when its task
    ///     asks for something new was missed.
    mutating func match(_ request: StepRequest, isCancelled: Bool, isNamed: (Substring) -> Bool) -> Match {
        guard missingCount > 0 else { return .new }
        let scope = Replay.scope(of: request.path)
        if isCancelled { leaveOut(upTo: request.path, in: scope) }
        guard let recorded = starts[scope]?.first?.start else {
            let missed = isCancelled ? nil : missed(in: scope, isNamed: isNamed)
            return missed.map { .differs(expected: $0.text) } ?? .new
        }
        let isSame =
            recorded.path == request.path && recorded.kind == request.kind
            && (recorded.digest == nil || request.digest == nil || recorded.digest == request.digest
                || recorded.digest == request.earlierDigest)
        guard isSame else { return isCancelled && recorded.path != request.path ? .new : .differs(expected: recorded.text) }
        take(in: scope)
        return .known
    }

    private mutating func take(in scope: Substring) {
        taken[starts[scope]!.popFirst()!.number] = true
        while missedFrom < taken.count, taken[missedFrom] { missedFrom += 1 }
        if starts[scope]!.isEmpty { starts[scope] = nil }
        missingCount -= 1
    }

    /// The starts before that of `path`, which the journal has, will not be asked for.
    private mutating func leaveOut(upTo path: String, in scope: Substring) {
        guard misses(path) else { return }
        while let first = starts[scope]?.first, first.start.path != path { take(in: scope) }
    }

    /// A start in this scope, or below a name that it should have given out and has not.
    func missed(in scope: Substring, isNamed: (Substring) -> Bool) -> Journal.Start? {
        guard missingCount > 0 else { return nil }
        var missed: Start?
        for (key, below) in starts where key.utf8.starts(with: scope.utf8) {
            for start in below where missed.map({ start.number < $0.number }) ?? true {
                let name = Substring(start.start.path.utf8.dropFirst(scope.utf8.count).prefix { $0 != UInt8(ascii: "/") })
                if !isNamed(name) { missed = start }
            }
        }
        return missed?.start
    }

    /// Any start that the program has not asked for.
    var missed: Journal.Start? { starts.values.lazy.compactMap(\.first).min { $0.number < $1.number }?.start }

    /// Whether the program has still to ask for the step.
    func misses(_ path: String) -> Bool { recorded(path) != nil }

    /// A start that the program has not asked for.
    func recorded(_ path: String) -> Journal.Start? { starts[Replay.scope(of: path)]?.first { $0.start.path == path }?.start }

    /// When a step that was left open ends by itself.
    func due(of path: String) -> Timestamp? { open[path]?.due }

    private static func scope(of path: String) -> Substring {
        path.utf8.lastIndex(of: UInt8(ascii: "/")).map { path[...$0] } ?? ""
    }

    // MARK: Open steps

    /// The steps to take up again, in the order of their starts.
    var openPaths: [String] { openOrder.filter { open[$0] != nil } }

    mutating func takeOpen(_ path: String) -> Journal.OpenStep? { open.removeValue(forKey: path) }

    // MARK: Results

    /// Whether results wait to be given: later ones wait behind them.
    var hasResults: Bool { !results.isEmpty }

    var hasCancellation: Bool { cancellations > 0 }

    mutating func add(_ completion: Journal.Completion) {
        results.append(completion)
        if completion.cancellation != nil { cancellations += 1 }
    }

    /// Returns the next result, if the program already waits for it, and every start before it was asked for: a task that waits for something outside
    /// the turn is then as far as it was when the result came. A cancelled program may leave starts out.
    mutating func next(isCancelled: Bool, isReady: (Journal.Completion) -> Bool) -> Journal.Completion? {
        guard let first = results.first, first.cancellation != nil || isReady(first) else { return nil }
        guard isCancelled || missingCount == 0 || missedFrom >= first.startsBefore else { return nil }
        if first.cancellation != nil { cancellations -= 1 }
        return results.popFirst()
    }

    /// Whether the next results say that the program gave up the step.
    func isGivenUp(_ path: String) -> Bool { results.contains { $0.path == path && $0.isGivenUp } }

    /// Returns the next cancellation, whatever comes before it: for a program that does not get there.
    mutating func takeCancellation() -> Journal.Completion? {
        guard hasCancellation else { return nil }
        while let result = results.popFirst() {
            if result.cancellation != nil {
                cancellations -= 1
                return result
            }
            skipped[result.path] = result
        }
        return nil
    }

    /// Lets the next result wait for its step apart from the others: in a cancelled turn it may never be asked for.
    /// - Returns: whether there was one.
    mutating func skip() -> Bool {
        guard let result = results.popFirst() else { return false }
        if result.cancellation != nil { cancellations -= 1 } else { skipped[result.path] = result }
        return true
    }

    /// Returns a skipped result, for a step that is asked for after all, or that the program has given up again.
    mutating func takeSkipped(_ path: String, isGivenUp: Bool) -> Journal.Completion? {
        skipped[path]?.isGivenUp == isGivenUp ? skipped.removeValue(forKey: path) : nil
    }
}

extension Journal.Start {
    var text: String { "\(kind.rawValue) '\(path)'" + (digest.map { " (\($0.prefix(12)))" } ?? "") }
}
