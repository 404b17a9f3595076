import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@Suite struct `Between commit and publication` {
    /// A log in memory that calls back when a commit is durable and no submitter has been told.
    final class PausingLog: CommitLog {
        let memory = MemoryLog()
        let afterCommit = Mutex<@Sendable () -> Void>({})

        func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
            let failures = try memory.commit(batches)
            afterCommit.withLock { $0 }()
            return failures
        }

        func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? { try memory.get(family, key) }

        func scan(
            _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
            _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
        ) throws(LogError) { try memory.scan(family, from: lower, to: upper, reversed: reversed, visit) }

        func close() { memory.close() }
    }

    private func row(_ name: String) -> ChannelRow {
        ChannelRow(name: name, contentType: "text/plain", isAgent: false, created: Timestamp(milliseconds: 0))
    }

    @Test func `a reader that looks just then does not get an object of its own, which nobody would tell anything`() throws {
        let log = PausingLog()
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: TestServer.world)
        let early = Mutex<[Bool]>([])
        log.afterCommit.withLock {
            $0 = { early.withLock { found in found.append((try? channels.find("a")) != nil) } }
        }
        channels.submit(CreateChannel(row("a")))
        writer.pump()
        #expect(early.withLock { $0 } == [false])
        let channel = try #require(try channels.find("a"))
        #expect(channel === channels.resident("a"))
        channels.submit(Append(to: "a", [NewEntry(data: [1])]))
        writer.pump()
        #expect(early.withLock { $0 } == [false, true])
        #expect(channel.tail.head == 1)
    }

    @Test func `an append that is refused has created nothing`() throws {
        let log = MemoryLog()
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: TestServer.world)
        let codes = Mutex<[String]>([])
        for refused in [ProducerClaim(id: "p", epoch: 0, sequence: 1), nil] {
            var append = Append(to: "a", [NewEntry(data: [1])])
            append.creates = row("a")
            append.producer = refused
            append.contentType = refused == nil ? "application/json" : nil
            channels.submit(append) { result in
                if case .failure(let error) = result { codes.withLock { $0.append(error.code) } }
            }
        }
        writer.pump()
        #expect(codes.withLock { $0 } == ["producer_gap", "content_type_mismatch"])
        #expect(try channels.find("a") == nil)
    }
}
