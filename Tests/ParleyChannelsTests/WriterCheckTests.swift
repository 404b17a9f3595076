import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// What the writer makes sure of as it assembles a commit. `Scripts/mutations.sh` takes the checks out one by one: then these tests fail.
@Suite struct `The writer's checks` {
    private let world = SimulatedWorld(seed: 1)

    /// Appends one message and commits; gives the answer.
    private func append(_ channels: Channels, _ writer: GroupCommit, _ configure: (inout Append) -> Void = { _ in }) throws -> Result<
        Appended, ChannelError
    > {
        let answer = Mutex<Result<Appended, ChannelError>?>(nil)
        var append = Append(to: "agents/probe/a", [NewEntry(.message, nil, ("by", "tester"), ("text", "hi"))])
        append.creates = ChannelRow(name: "agents/probe/a", contentType: ContentType.json, isAgent: true, created: world.now)
        configure(&append)
        channels.submit(append) { result in
            answer.withLock { $0 = result }
        }
        while writer.pump() {}
        return try #require(answer.withLock { $0 })
    }

    private func makeChannels(_ log: any CommitLog) -> (Channels, GroupCommit) {
        let writer = GroupCommit(log: log)
        return (Channels(log: log, writer: writer, world: world), writer)
    }

    private func code(_ result: Result<Appended, ChannelError>) -> String? {
        if case .failure(let error) = result { error.code } else { nil }
    }

    @Test func `a stale owner appends nothing`() throws {
        let (channels, writer) = makeChannels(MemoryLog())
        _ = try append(channels, writer).get()
        _ = try append(channels, writer) { $0.owner.epoch = .takes(after: 0) }.get()
        _ = try append(channels, writer) { $0.owner.epoch = .takes(after: 1) }.get()
        let head = try channels.find("agents/probe/a")?.tail.head
        #expect(code(try append(channels, writer) { $0.owner.epoch = .holds(1) }) == "fenced")
        #expect(code(try append(channels, writer) { $0.owner.epoch = .takes(after: 1) }) == "fenced")
        #expect(try channels.find("agents/probe/a")?.tail.head == head)
        _ = try append(channels, writer) { $0.owner.epoch = .holds(2) }.get()
    }

    @Test func `a producer's repetition is in the log once, a gap and an old producer are refused`() throws {
        let (channels, writer) = makeChannels(MemoryLog())
        func send(_ epoch: UInt64, _ sequence: UInt64) throws -> Result<Appended, ChannelError> {
            try append(channels, writer) { $0.producer = ProducerClaim(id: "p", epoch: epoch, sequence: sequence) }
        }
        #expect(try send(1, 0).get().isReplay == false)
        #expect(try send(1, 0).get().isReplay)
        #expect(try channels.find("agents/probe/a")?.tail.head == 1)
        #expect(code(try send(1, 2)) == "producer_gap")
        #expect(try send(2, 0).get().isReplay == false)
        #expect(code(try send(1, 1)) == "producer_fenced")
        #expect(try channels.find("agents/probe/a")?.tail.head == 2)
    }

    @Test func `while a commit is in flight, no submission is answered and no reader sees it`() throws {
        struct Seen: Equatable {
            var head: UInt64?
            var answers: Int
        }
        let found = Mutex<Channels?>(nil)
        let answers = Atomic(0)
        let seen = Mutex<[Seen]>([])
        let log = SimulatedLog(outcome: { _, _ in
            let head = (try? found.withLock { $0 }?.find("agents/probe/a"))?.tail.head
            seen.withLock { $0.append(Seen(head: head, answers: answers.load(ordering: .relaxed))) }
            return .acknowledged
        })
        let (channels, writer) = makeChannels(log)
        found.withLock { $0 = channels }
        _ = try append(channels, writer).get()
        let channel = try #require(try channels.find("agents/probe/a"))
        for _ in 0..<2 {
            let append = Append(to: channel.name, [NewEntry(.message, nil, ("by", "tester"), ("text", "hi"))])
            channels.submit(append) { _ in
                answers.add(1, ordering: .relaxed)
            }
            while writer.pump() {}
        }
        #expect(seen.withLock { Array($0.suffix(2)) } == [Seen(head: 1, answers: 0), Seen(head: 2, answers: 1)])
        #expect(channel.tail.head == 3)
    }
}
