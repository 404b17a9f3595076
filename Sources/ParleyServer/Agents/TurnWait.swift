internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A POST that waits for the end of its turn, as long as it said.
final class TurnWait: @unchecked Sendable {  // Guard: used on the exchange's loop only.
    private let exchange: Exchange
    private let headers: [HeaderField]
    private let entries: JSON
    private let readers: LoopReaders
    private var timeout: LoopTimer?
    private var question: (any Scheduled)?
    private var isDone = false

    init(_ exchange: Exchange, _ headers: [HeaderField], entries: JSON, _ readers: LoopReaders) {
        self.readers = readers
        self.exchange = exchange
        self.headers = headers
        self.entries = entries
    }

    func begin(_ turn: Offset, in channelName: String, _ agents: any AgentHost, for wait: Duration) {
        readers.add(self)
        timeout = exchange.loop.schedule(after: wait) { self.end() }
        exchange.responder.onClose = { [weak self] in _ = self?.settle() }
        exchange.responder.onHalfClose = {}  // It waits all the same.
        question = agents.outcome(of: turn, in: channelName) { entry in
            self.exchange.onLoop { self.ended(entry) }
        }
    }

    private func ended(_ entry: JSON) {
        // The entries are the sender's own; what the turn has said needs a right that is still good.
        if readers.authenticator?.problem(with: exchange.access) != nil { return end() }
        guard settle() else { return }
        let answer = JSON.compact(("entries", entries), ("output", entry["output"]), ("error", entry["error"]), ("ended", entry))
        exchange.respond(200, headers, json: answer)
    }

    /// The time is up, or the server stops: the entries are durable, and the turn's end will be in the channel.
    func end() {
        guard settle() else { return }
        exchange.respond(202, headers, json: ["entries": entries])
    }

    /// - Returns: whether the answer is still owed.
    private func settle() -> Bool {
        guard !isDone else { return false }
        isDone = true
        readers.remove(self)
        timeout?.cancel()
        question?.cancel()
        (timeout, question) = (nil, nil)
        return true
    }
}
