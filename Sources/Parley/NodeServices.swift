internal import ParleyAgents
internal import ParleyLog
internal import ParleyModels
internal import ParleyServer
internal import ParleySystem
internal import Synchronization

/// The services of a node for its routes and its agents, besides running them.
final class NodeServices: NodeHost {
    private let declared: DeclaredAgents
    /// The kinds that are written in Swift.
    private let written: [String]
    private let log: RocksLog
    /// Turns that failed and have been logged, by agent and cause.
    private let failing = Mutex<Set<String>>([])
    private static let failingMax = 10_000

    init(_ declared: DeclaredAgents, written: [String], log: RocksLog) {
        (self.declared, self.written, self.log) = (declared, written, log)
    }

    var kinds: [JSON] {
        let swift: [JSON] = written.map { ["kind": .string($0), "source": "swift"] }
        let files = declared.kinds.filter { !written.contains($0.file.kind) }.map(\.json)
        return (files + swift).sorted { ($0["kind"]?.string ?? "") < ($1["kind"]?.string ?? "") }
    }

    func backUp(to folder: String) throws {
        try log.backUp(to: folder)
        Diagnostics.log(.info, "the data folder was backed up", ["folder": folder])
    }

    /// The observers of the agents' runtime.
    var observers: AgentObservers {
        var observers = AgentObservers()
        observers.turnFailed = { [self] in turnFailed($0, $1) }
        observers.removed = { [self] in removeFiles(of: $0) }
        return observers
    }

    /// Logs each cause once for each agent: one that fails every minute would hide the others.
    private func turnFailed(_ channel: String, _ failure: StepFailure) {
        let isNew = failing.withLock { $0.count < NodeServices.failingMax && $0.insert("\(channel) \(failure.code)").inserted }
        guard isNew else { return }
        let agent = String(channel.dropFirst("agents/".count))
        // Without the message: the text of a model's server or of a program may hold a secret or a person's words.
        Diagnostics.log(
            .warning, "a turn failed; further ones of this agent with this code are not logged",
            ["agent": agent, "code": failure.code, "see": "parley trace \(agent)"])
    }

    private func removeFiles(of channel: String) {
        do { try declared.tools.removeFiles(of: channel) } catch {
            Diagnostics.log(.error, "the files of a deleted agent stay", ["channel": channel, "reason": "\(error)"])
        }
    }
}
