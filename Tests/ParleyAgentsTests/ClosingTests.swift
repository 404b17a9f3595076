import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Closing an agent` {
    @Test(arguments: 0..<40)
    func `a message that arrives while the agent closes gets its receipt`(seed: UInt64) throws {
        let (receipts, sent, inbox) = try SimulatedNode.simulate {
            let process = try SimulationProcess(seed: seed, now: Timestamp(milliseconds: 0)) { _ in [agent { text, _ in .string(text) }] }
            let accepted = Counter()
            func send(_ entry: NewEntry, after milliseconds: Int) {
                process.world.schedule(at: process.world.now.advanced(by: .milliseconds(milliseconds))) {
                    var append = Append(to: "agents/probe/a", [entry])
                    append.creates = ChannelRow(
                        name: "agents/probe/a", contentType: ContentType.json, isAgent: true, created: process.world.now)
                    append.isInput = true
                    process.channels.submit(append) { if case .success = $0 { accepted.add("entry") } }
                }
            }
            send(NewEntry(.close), after: 1)
            for number in 0..<20 { send(NewEntry(.message, nil, ("text", "x")), after: number) }
            try process.run(until: process.world.now.advanced(by: .seconds(100)), steps: 10_000)
            let channel = try #require(try process.channels.find("agents/probe/a"))
            var receipts = 0
            try process.channels.walk(channel, after: 0, upTo: channel.tail.head) { _, frame in
                receipts += frame.kind == .receipt ? 1 : 0
                return true
            }
            let inbox = try process.log.first(.inbox, from: channel.id.key, to: channel.id.keyEnd)
            return (receipts, accepted["entry"], inbox?.key)
        }
        #expect(receipts == sent)
        #expect(inbox == nil)
    }
}
