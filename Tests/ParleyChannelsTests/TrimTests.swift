import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Sealed text` {
    @Test func `of a step goes, and not that of another step or turn beside it`() throws {
        let bench = Bench()
        bench.world.drive { bench.writer.pump() }
        let trims = TrimService(channels: bench.channels, world: bench.world, retention: .seconds(1))
        bench.create("agents/k/i", isAgent: true)
        // In one commit, and so in one value of the log; then in values of their own.
        bench.append(
            [.piece("a", at: 0), .piece("x", at: 0, step: "t"), .piece("b", at: 1), .piece("o", at: 0, turn: 2)], to: "agents/k/i")
        bench.append([.piece("c", at: 2, attempt: 2)], to: "agents/k/i")
        bench.append([.piece("y", at: 1, step: "t")], to: "agents/k/i")
        bench.append([NewEntry(.emit, nil, ("name", "sealed"))], to: "agents/k/i") { append in
            append.owner.rows = [trims.row(SealedText(channelName: "agents/k/i", turn: 1, step: "s", from: 1))]
        }
        trims.sealed()
        bench.append([.piece("d", at: 3)], to: "agents/k/i")
        func shown() throws -> [String] { try bench.whole("agents/k/i").compactMap { $0["delta"]?.string } }
        #expect(try shown() == ["a", "x", "b", "o", "c", "y", "d"])
        bench.world.run(deadline: bench.world.now.advanced(by: .seconds(2)))
        // All attempts of the step, up to where it was sealed.
        #expect(try shown() == ["x", "o", "y", "d"])
        #expect(try bench.channel("agents/k/i").tail.head == 8)
    }
}
