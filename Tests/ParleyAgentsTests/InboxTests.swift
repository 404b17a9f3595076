import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

extension SimulatedNode {
    /// Sends entries in one request; returns the answer.
    fileprivate func send(_ entries: [NewEntry], to channel: String = name) -> Answer {
        let answer = Answer()
        var append = Append(to: channel, entries)
        append.creates = ChannelRow(name: channel, contentType: ContentType.json, isAgent: true, created: world.now)
        append.isInput = true
        channels.submit(append) { answer.store($0) }
        world.settle()
        return answer
    }
}

private final class Answer: @unchecked Sendable {  // Guard: the simulation's one thread.
    private(set) var code: String?
    func store(_ result: Result<Appended, ChannelError>) {
        switch result {
        case .success: code = "accepted"
        case .failure(let error): code = error.code
        }
    }
}

private func signal(_ name: String, _ data: JSON = .null) -> NewEntry {
    NewEntry(.signal, nil, ("by", "ann"), ("name", .string(name)), ("data", data))
}

@Suite struct `An agent's inbox` {
    @Test func `takes a hundred thousand entries and no more, and still a cancel`() throws {
        let (first, over, cancel, state, after) = try SimulatedNode.simulate {
            let node = try SimulatedNode(
                SimulatedWorld(seed: 1), SimulatedLog(), agents: [agent { _, turn in try await turn.wait(for: "go") }])
            _ = node.send([NewEntry(.message, nil, ("by", "ann"), ("text", "x"))])
            let first = node.send((0..<100_000).map { _ in signal("other") })
            let over = node.send([signal("other")])
            let entries = try #require(try node.channels.find(name)).tail.head
            let cancel = node.send([NewEntry(.cancel, nil, ("by", "ann"))])
            node.world.settle()
            let state = try node.runtime.status(of: name)?["state"]
            return (first.code, over.code, cancel.code, state, entries)
        }
        #expect(first == "accepted" && over == "inbox_full" && cancel == "accepted")
        #expect(state == "idle", "the cancel was decided")
        #expect(after == 100_004 || after == 100_005, "what is refused stores nothing")
    }

    @Test func `refuses controls beyond a thousand`() throws {
        let codes = try SimulatedNode.simulate {
            let node = try SimulatedNode(SimulatedWorld(seed: 1), SimulatedLog(), agents: [])
            let cancels = (0..<1_000).map { _ in NewEntry(.cancel, nil, ("by", "ann")) }
            return [node.send(cancels).code, node.send([cancels[0]]).code, node.send([signal("x")]).code]
        }
        #expect(codes == ["accepted", "inbox_full", "accepted"])
    }

    @Test func `finds the signal that a wait asks for behind many that it does not`() throws {
        let output = try SimulatedNode.simulate {
            let node = try SimulatedNode(
                SimulatedWorld(seed: 1), SimulatedLog(),
                agents: [
                    agent { _, turn in
                        let first = try await turn.wait(for: "go", match: ["n": 19_000])
                        let second = try await turn.wait(for: "go", match: ["n": 3])
                        return .array([first, second])
                    }
                ])
            _ = node.send((0..<20_000).map { signal("go", ["n": .integer(Int64($0))]) })
            _ = node.send([NewEntry(.message, nil, ("by", "ann"), ("text", "x"))])
            node.world.run(deadline: node.world.now.advanced(by: .seconds(1)))
            return try node.entries(name).last?["output"]
        }
        #expect(output == [["n": 19_000], ["n": 3]])
    }

    @Test func `decides in the order of the log, whatever the kinds`() throws {
        let (signalFirst, interruptFirst) = try SimulatedNode.simulate {
            func run(_ entries: [NewEntry]) throws -> JSON? {
                let node = try SimulatedNode(
                    SimulatedWorld(seed: 1), SimulatedLog(),
                    agents: [
                        agent { _, turn in
                            do { return try await turn.wait(for: "go") } catch is Interrupted { return "interrupted" }
                        }
                    ])
                _ = node.send([NewEntry(.message, nil, ("by", "ann"), ("text", "x"))])
                _ = node.send(entries)
                node.world.run(deadline: node.world.now.advanced(by: .seconds(1)))
                return try node.entries(name).last { $0["type"] == "turn.completed" }?["output"]
            }
            let interrupt = NewEntry(.interrupt, nil, ("by", "ann"))
            return (try run([signal("go", "signalled"), interrupt]), try run([interrupt, signal("go", "signalled")]))
        }
        #expect(signalFirst == "signalled")
        #expect(interruptFirst == "interrupted")
    }

    @Test func `decides many entries whose condition fails, and many that queue behind a close`() throws {
        let (receipts, closed) = try SimulatedNode.simulate {
            let node = try SimulatedNode(SimulatedWorld(seed: 1), SimulatedLog(), agents: [agent { text, _ in .string(text) }])
            _ = node.send([NewEntry(.message, nil, ("by", "ann"), ("text", "x"))])
            let stale = JSON.string(Offset(1).token)
            _ = node.send((0..<3_000).map { _ in NewEntry(.steer, nil, ("by", "ann"), ("text", "y"), ("if_turn", stale)) })
            let expired = try node.entries(name).filter { $0["type"] == "receipt" && $0["state"] == "expired" }.count
            let other = "agents/probe/b"
            _ = node.send(
                [NewEntry(.close, nil, ("by", "ann"))] + (0..<3_000).map { _ in NewEntry(.message, nil, ("by", "ann"), ("text", "y")) },
                to: other)
            let closing = try node.entries(other).filter { $0["reason"] == "closing" }.count
            return (expired, closing)
        }
        #expect(receipts == 3_000)
        #expect(closed == 3_000)
    }
}
