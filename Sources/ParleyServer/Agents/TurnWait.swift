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
        let (answers, account) = (exchange.answers, exchange.account)
        question = agents.outcome(of: turn, in: channelName) { error in
            // Where another node knows, it is asked; the entries are durable.
            self.exchange.onLoop { if error.code == "partition_unavailable" { self.end() } else { self.refuse(Problem(error)) } }
        } _: { byteCount, json in
            // The turn's text would be in the answer twice. Without room it is left in the channel.
            do throws(Problem) {
                let room = try answers?.room(for: 2 * byteCount, of: account)
                let entry = json()
                self.exchange.onLoop { self.ended(entry, room) }
            } catch {
                self.exchange.onLoop { self.end() }
            }
        }
    }

    private func ended(_ entry: Bytes, _ room: MemoryReservation?) {
        // The entries are the sender's own; the turn's text needs a right that is still valid.
        if readers.authenticator?.problem(with: exchange.access) != nil { return end() }
        guard settle() else { return }
        exchange.respond(200, headers, jsonText: answer(entry), in: room)
    }

    /// Put together from text: values would take many times as much.
    private func answer(_ entry: Bytes) -> Bytes {
        var answer = Bytes("{\"entries\":".utf8) + entries.bytes
        var scanner = JSONScanner(entry, depthMax: JSONScanner.storedDepthMax)
        do throws(JSONError) {
            try scanner.members { (name, scanner) throws(JSONError) in
                let range = try scanner.skip()
                guard name == "output" || name == "error" else { return }
                answer.append(contentsOf: ",\"\(name)\":".utf8)
                answer.append(contentsOf: entry[range])
            }
        } catch { preconditionFailure("an entry that was written here is no object: \(error.description)") }
        answer.append(contentsOf: ",\"ended\":".utf8)
        answer.append(contentsOf: entry)
        answer.append(UInt8(ascii: "}"))
        return answer
    }

    /// The time is up, the server stops, or there is no memory for the turn's text: the entries are durable, and the turn's end will be in the
    /// channel.
    func end() {
        guard settle() else { return }
        exchange.respond(202, headers, json: ["entries": entries])
    }

    private func refuse(_ problem: Problem) { if settle() { exchange.respond(problem) } }

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
