internal import ParleySystem

/// The names that one task has given to its steps.
final class Scope: @unchecked Sendable {  // Guard: the turn's lane, which `claim` checks; the end has no other user left.
    private let task: TurnTask
    private let prefix: String
    private var owner: String?
    private var counts: [String: Int] = [:]
    private var numbers: SplitMix64

    init(_ task: TurnTask, prefix: String) {
        (self.task, self.prefix) = (task, prefix)
        numbers = SplitMix64(seed: prefix.utf8.reduce(task.seed) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 })
    }

    deinit { task.scopeEnded(prefix, Names(counts: counts)) }

    /// A random number that derives from the turn's seed and the calling task: other tasks do not affect it.
    func random() -> UInt64 { numbers.next() }

    /// The path of the scope itself; empty for the turn's.
    var path: String { String(prefix.dropLast()) }

    /// The path of the next step called `name`: the second and later ones are numbered.
    func next(_ name: String) throws -> String {
        let path = try claim(name)
        let count = counts[name, default: 0] + 1
        counts[name] = count
        return count == 1 ? path : "\(path)#\(count)"
    }

    /// The path of the first step named `name`, without taking the name.
    func path(_ name: String) -> String { prefix + name }

    /// Checks the name, and that the calling task owns the scope: the first that uses it does.
    func claim(_ name: String) throws -> String {
        try task.checkTask()
        guard (1...128).contains(name.utf8.count), !name.utf8.contains(where: { $0 == UInt8(ascii: "/") || $0 == UInt8(ascii: "#") }) else {
            throw TurnError.invalidName(name)
        }
        let caller = Scope.currentTask
        if owner == nil { owner = caller }
        guard owner == caller else { throw TurnError.concurrentScope(prefix + name) }
        return prefix + name
    }

    var names: Names { Names(counts: counts) }

    /// The names that a scope has given out.
    struct Names: Sendable {
        fileprivate let counts: [String: Int]

        /// Whether the scope has given out the segment: a name, with its number from the second on.
        func contains(_ segment: Substring) -> Bool {
            guard let mark = segment.utf8.firstIndex(of: UInt8(ascii: "#")) else { return counts[String(segment)] != nil }
            return (counts[String(segment[..<mark])] ?? 0) >= Int(segment[segment.utf8.index(after: mark)...]) ?? .max
        }
    }

    /// The number of the current task, as the runtime counts them: a task that is made where an ended one had its memory has another one.
    static var currentTask: String {
        withUnsafeCurrentTask { task in
            // A task is its own job; that is where the number can be read.
            task.map { "\(unsafeBitCast($0, to: UnownedJob.self))" } ?? ""
        }
    }
}
