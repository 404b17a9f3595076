import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Turns that wait` {
    @Test(arguments: 0..<60)
    func `a sleep that ends while its agent is leaving memory is not slept through`(seed: UInt64) throws {
        let (output, status) = try SimulatedNode.simulate {
            let process = try SimulationProcess(seed: seed, now: Timestamp(milliseconds: 0)) { _ in
                [
                    agent { _, turn in
                        // As long as an idle agent stays in memory, give or take what a commit takes.
                        try await turn.sleep(.milliseconds(1_990 + Int(seed)))
                        return "woken"
                    }
                ]
            }
            let message = Append(process.channels, to: "agents/probe/a", [NewEntry(.message, nil, ("text", "x"))]) { _ in }
            message.creates = ChannelRow(name: "agents/probe/a", contentType: ContentType.json, isAgent: true, created: process.world.now)
            message.isInput = true
            message.submit()
            try process.run(until: process.world.now.advanced(by: .seconds(100)), steps: 10_000)
            let channel = try #require(try process.channels.find("agents/probe/a"))
            var output: JSON?
            try process.channels.walk(channel, after: 0, upTo: channel.tail.head) { _, frame in
                if frame.kind == .turnCompleted { output = frame.body["output"] }
                return true
            }
            return (output, try process.channels.row(channel)?.status)
        }
        #expect(output == "woken")
        #expect(status == .idle)
    }
}
