import Foundation
import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization

/// Whether sweeps are to be as wide as `./test --long` wants them.
let isLong = ProcessInfo.processInfo.environment["PARLEY_LONG"] == "1"

extension SimulatedWorld {
    /// Lets so much time go by.
    func go(_ duration: Duration = .seconds(60)) { run(deadline: now.advanced(by: duration)) }
}

/// A model that takes more than half a second for its answer.
func thirtyTokens(_ world: any World) -> ScriptedModel {
    var options = ScriptedModel.Options()
    (options.tokens, options.rate) = (30, 50)
    return ScriptedModel(options, world: world)
}

// MARK: - Waiting outside the turn

/// Waits in simulated time, as a body of a step that waits for something outside.
func pause(_ world: any World, _ duration: Duration) async {
    await withCheckedContinuation { continuation in
        world.schedule(at: world.now.advanced(by: duration)) { continuation.resume() }
    }
}

/// Waits in simulated time as `Task.sleep` does in the system's: a cancelled task does not wait.
func rest(_ world: any World, _ duration: Duration) async throws {
    let continuation = Mutex<CheckedContinuation<Void, Never>?>(nil)
    let resume = { @Sendable in
        let waiting = continuation.withLock { continuation in
            defer { continuation = nil }
            return continuation
        }
        waiting?.resume()
    }
    await withTaskCancellationHandler {
        await withCheckedContinuation { waiting in
            continuation.withLock { $0 = waiting }
            if Task.isCancelled { resume() } else { world.schedule(at: world.now.advanced(by: duration), resume) }
        }
    } onCancel: {
        resume()
    }
    try Task.checkCancellation()
}

// MARK: - Sending

extension SimulatedNode {
    /// Sends an entry that ann has written.
    func send(_ kind: EntryKind, to channel: String = "agents/probe/a", _ members: (String, JSON?)...) {
        send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: channel)
    }

    /// Appends a number to a plain channel, which it creates if need be.
    func publish(_ number: Int, to channel: String, closes: Bool = false) {
        var append = Append(to: channel, [NewEntry(data: JSON.integer(Int64(number)).bytes)])
        append.creates = ChannelRow(name: channel, contentType: ContentType.json, isAgent: false, created: world.now)
        append.closes = closes
        channels.submit(append)
    }
}

// MARK: - Two processes

typealias TurnProgram = @Sendable (Turn, SimulatedWorld) async throws -> JSON

/// Sends a message to an agent, ends the process after a while, and lets another one continue for a day.
///
/// - Parameters:
///   - duration: How long the first process lives.
///   - second: The program of the agent in the second process, if that is another one.
///   - clock: How far the clock is set forwards, or back, between them.
///   - prepare: Runs before the message is sent.
///   - act: Runs once the second process has started.
/// - Returns: the entries of the agent's channel.
func twoProcesses(
    _ first: @escaping TurnProgram, for duration: Duration, _ second: TurnProgram? = nil, clock: Duration = .zero,
    prepare: @escaping @Sendable (SimulatedNode) -> Void = { _ in }, then act: @escaping @Sendable (SimulatedNode) -> Void = { _ in }
) throws -> [JSON] {
    try SimulatedNode.simulate {
        let world = SimulatedWorld(seed: 1)
        let node = try SimulatedNode(world, SimulatedLog(), agents: [agent { _, turn in try await first(turn, world) }])
        prepare(node)
        node.send("x", to: "agents/probe/a")
        world.run(deadline: world.now.advanced(by: duration))
        let after = SimulatedWorld(seed: 2, now: world.now.advanced(by: clock))
        let next = try SimulatedNode(
            after, node.log.reopen(), agents: [agent { _, turn in try await (second ?? first)(turn, after) }])
        act(next)
        after.run(deadline: after.now.advanced(by: .seconds(86_400)))
        return try next.entries("agents/probe/a")
    }
}

// MARK: - Reads that fail

/// A read of a log that fails once: the one with that number (from 0) since it was armed, of those that are meant.
final class ReadFault: Sendable {
    private let number: Int
    private let code: LogError.Code
    private let isMeant: @Sendable (Family) -> Bool
    /// How many reads there were; `nil`: it is not armed.
    private let count: Mutex<Int?>

    init(at number: Int, as code: LogError.Code = .damaged, isArmed: Bool = false, _ isMeant: @escaping @Sendable (Family) -> Bool) {
        (self.number, self.code, self.isMeant) = (number, code, isMeant)
        count = Mutex(isArmed ? 0 : nil)
    }

    func arm() { count.withLock { $0 = 0 } }
    func disarm() { count.withLock { $0 = nil } }

    /// Whether the read came since it was armed.
    var hasFailed: Bool { count.withLock { ($0 ?? 0) > number } }

    var readError: SimulatedLog.ReadError {
        { [self] family, _ in
            guard isMeant(family) else { return nil }
            return count.withLock { count in
                guard let before = count else { return nil }
                count = before + 1
                return before == number ? LogError(code, "unreadable for a moment") : nil
            }
        }
    }
}

// MARK: - Looking at entries

/// The outcome of the last entry of a type: the state in its receipt, and the reason.
func receipt(_ entries: [JSON], of type: String) -> String? {
    let offset = entries.last { $0["type"]?.string == type }?["offset"]
    guard let offset, let receipt = entries.first(where: { $0["type"] == "receipt" && $0["of"] == offset }) else { return nil }
    return [receipt["state"]?.string, receipt["reason"]?.string].compactMap { $0 }.joined(separator: " ")
}

/// Entries in a line each, but for steps whose names begin with an s: for the report of a test that fails.
func short(_ entries: [JSON]) -> [String] {
    entries.filter { $0["step"]?.string?.split(separator: "/").last?.hasPrefix("s") != true }.map {
        "\($0["offset"]!.string!.suffix(5)) \($0["type"]!.string!) \($0["step"]?.string ?? "") \($0["state"]?.string ?? "") \($0["reason"]?.text ?? "") \($0["error"]?["code"]?.string ?? "") \($0["output"]?.text ?? "") \($0["message"]?.string?.prefix(150) ?? "")"
    }
}
