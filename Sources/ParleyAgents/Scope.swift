/// The names that one task has given to its steps.
final class Scope: @unchecked Sendable {  // Guard: the turn's lane, which `claim` checks; the end is nobody else's any more.
    private let core: TurnCore
    private let prefix: String
    private var owner: String?
    private var counts: [String: Int] = [:]

    init(_ core: TurnCore, prefix: String) { (self.core, self.prefix) = (core, prefix) }

    deinit { core.scopeEnded(prefix, Names(counts: counts)) }

    /// The path of the next step called `name`: the second and later ones are numbered.
    func next(_ name: String) throws -> String {
        let path = try claim(name)
        let count = counts[name, default: 0] + 1
        counts[name] = count
        return count == 1 ? path : "\(path)#\(count)"
    }

    /// Where the first step called `name` is, without calling one.
    func path(_ name: String) -> String { prefix + name }

    /// Checks the name, and that the calling task owns the scope: the first that uses it does.
    func claim(_ name: String) throws -> String {
        try core.checkLane()
        guard (1...128).contains(name.utf8.count), !name.utf8.contains(where: { $0 == UInt8(ascii: "/") || $0 == UInt8(ascii: "#") }) else {
            throw TurnError.invalidName(name)
        }
        let task = Scope.currentTask
        if owner == nil { owner = task }
        guard owner == task else { throw TurnError.concurrentScope(prefix + name) }
        return prefix + name
    }

    var names: Names { Names(counts: counts) }

    /// What a scope has given out.
    struct Names: Sendable {
        fileprivate let counts: [String: Int]

        /// Whether the scope has given out the segment: a name, with its number from the second on.
        func contains(_ segment: Substring) -> Bool {
            guard let mark = segment.utf8.firstIndex(of: UInt8(ascii: "#")) else { return counts[String(segment)] != nil }
            return (counts[String(segment[..<mark])] ?? 0) >= Int(segment[segment.utf8.index(after: mark)...]) ?? .max
        }
    }

    /// The number of the current task, as the runtime counts them: a task that is made where an ended one had its memory has another one.
    private static var currentTask: String {
        withUnsafeCurrentTask { task in
            // A task is its own job; that is where the number can be read.
            task.map { "\(unsafeBitCast($0, to: UnownedJob.self))" } ?? ""
        }
    }
}
