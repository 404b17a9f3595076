import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// An agent whose turns last ten seconds, and what it is sent at which second.
private func receipts(_ sent: [(second: Int, EntryKind, [(String, JSON?)])]) throws -> [String] {
    try SimulatedNode.simulate {
        let world = SimulatedWorld(seed: 1)
        let node = try SimulatedNode(
            world, SimulatedLog(),
            agents: [
                agent { text, turn in
                    try await turn.sleep(.seconds(10))
                    return .string(text)
                }
            ])
        let start = world.now
        for (second, kind, members) in sent {
            world.run(deadline: start.advanced(by: .seconds(second)))
            node.send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: name)
        }
        world.run(deadline: start.advanced(by: .seconds(100)))
        let entries = try node.entries(name)
        return entries.filter { $0["type"] == "receipt" }.map { receipt in
            let of = entries.first { $0["offset"] == receipt["of"] }
            return [of?["type"]?.string, receipt["state"]?.string, receipt["reason"]?.string].compactMap { $0 }.joined(separator: " ")
        }
    }
}

private func offset(_ value: UInt64) -> JSON { .string(Offset(value).token) }

@Suite struct `Entries with a condition` {
    // The channel after the first message: 1 message, 2 receipt, 3 turn.started, 4 step.started, 5 timer.set.

    @Test func `if_offset holds for the next entry only`() throws {
        #expect(
            try receipts([(0, .message, [("text", "a"), ("if_offset", offset(0))]), (5, .cancel, [("if_offset", offset(4))])])
                == ["message applied", "cancel rejected stale_offset"])
        #expect(
            try receipts([(0, .message, [("text", "a")]), (5, .cancel, [("if_offset", offset(5))])]) == [
                "message applied", "cancel applied",
            ])
        #expect(
            try receipts([(0, .message, [("text", "a")]), (50, .message, [("text", "b"), ("if_offset", offset(5))])])
                == ["message applied", "message rejected stale_offset"])
    }

    @Test func `an entry whose two conditions fail is decided once`() throws {
        for kind in [EntryKind.message, .cancel] {
            #expect(
                try receipts([
                    (0, .message, [("text", "a")]), (50, kind, [("text", "b"), ("if_turn", offset(4)), ("if_offset", offset(2))]),
                ])
                    == ["message applied", "\(kind) rejected stale_offset"])
        }
    }

    @Test func `if_turn is for the turn that runs`() throws {
        for kind in [EntryKind.interrupt, .cancel] {
            #expect(try receipts([(0, .message, [("text", "a")]), (5, kind, [("if_turn", offset(1))])]).last == "\(kind) applied")
            #expect(
                try receipts([(0, .message, [("text", "a")]), (50, kind, [("if_turn", offset(1))])]).last == "\(kind) rejected turn_ended")
            #expect(
                try receipts([(0, .message, [("text", "a")]), (20, .message, [("text", "b")]), (25, kind, [("if_turn", offset(1))])]).last
                    == "\(kind) rejected stale_turn")
        }
    }

    @Test func `an interrupt with a text does not become a message when it was for a turn that has ended`() throws {
        #expect(
            try receipts([(0, .message, [("text", "a")]), (50, .interrupt, [("text", "b"), ("if_turn", offset(1))])]).last
                == "interrupt rejected turn_ended")
    }

    @Test func `what is for a turn that waits for the one before it waits, too`() throws {
        // The second message has the offset 6.
        #expect(
            try receipts([
                (0, .message, [("text", "a")]), (5, .message, [("text", "b")]), (6, .cancel, [("if_turn", offset(6))]),
            ]) == ["message applied", "message applied", "cancel applied"])
        #expect(
            try receipts([
                (0, .message, [("text", "a")]), (5, .message, [("text", "b")]), (6, .steer, [("text", "c"), ("if_turn", offset(6))]),
            ]) == ["message applied", "message applied", "steer expired turn_ended"])
    }

    @Test func `what is for itself, or for an entry that begins no turn, is for no turn`() throws {
        #expect(
            try receipts([(0, .message, [("text", "a")]), (50, .steer, [("text", "b"), ("if_turn", offset(9))])]).last
                == "steer expired turn_ended")
        #expect(try receipts([(0, .steer, [("text", "b"), ("if_turn", offset(1))])]) == ["steer expired turn_ended"])
        #expect(try receipts([(0, .message, [("text", "b"), ("if_turn", offset(1))])]) == ["message rejected stale_turn"])
        #expect(try receipts([(0, .cancel, [("if_turn", offset(1))])]) == ["cancel rejected turn_ended"])
        #expect(try receipts([(0, .deny, [("approval", "none"), ("if_turn", offset(1))])]).count == 1)
        // The signal has the offset 6.
        #expect(
            try receipts([
                (0, .message, [("text", "a")]), (5, .signal, [("name", "s")]), (6, .steer, [("text", "c"), ("if_turn", offset(6))]),
            ]).last == "steer expired turn_ended")
        // Here, behind the turn, the signal has the offset 9.
        #expect(
            try receipts([
                (0, .message, [("text", "a")]), (20, .signal, [("name", "s")]), (21, .message, [("text", "b"), ("if_turn", offset(9))]),
            ]).last == "message rejected stale_turn")
    }

    @Test func `a close for a turn closes the agent once that turn has ended`() throws {
        #expect(
            try receipts([(0, .message, [("text", "a")]), (5, .close, [("if_turn", offset(1))])]) == ["message applied", "close applied"])
        // The second message has the offset 6: it is not refused by the close that waits for it.
        #expect(
            try receipts([
                (0, .message, [("text", "a")]), (5, .message, [("text", "b")]), (6, .close, [("if_turn", offset(6))]),
            ]) == ["message applied", "message applied", "close applied"])
    }

    @Test func `a message with if_turn is for that turn and whoever has just heard its end`() throws {
        #expect(
            try receipts([(0, .message, [("text", "a")]), (50, .message, [("text", "b"), ("if_turn", offset(1))])]).last
                == "message applied")
        #expect(
            try receipts([
                (0, .message, [("text", "a")]), (20, .message, [("text", "b")]), (50, .message, [("text", "c"), ("if_turn", offset(1))]),
            ]).last == "message rejected stale_turn")
    }

    @Test func `a signal for a turn that has ended is not kept`() throws {
        #expect(
            try receipts([(0, .message, [("text", "a")]), (50, .signal, [("name", "s"), ("if_turn", offset(1))])]).last
                == "signal rejected turn_ended")
    }
}
