import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

/// Notes what it is told, up to a number of entries.
private struct ToldEntries: Projection {
    var limit = Int.max
    private(set) var output: [UInt64] = []

    var isComplete: Bool { output.count >= limit }

    mutating func apply(_ entry: LogEntry) { output.append(entry.offset) }
}

/// Is its own output.
private struct LastEmit: Projection {
    private(set) var name: String?
    private(set) var step: Position?

    mutating func apply(_ entry: LogEntry) {
        guard entry.kind == .emit else { return }
        (name, step) = (entry.body["name"]?.string, entry.position?.ofStep)
    }
}

@Suite struct `A projection` {
    private let name = "agents/k/i"

    /// Nine entries in four values of the log: three, one, three and two.
    private func filled() throws -> (Bench, Channel) {
        let bench = Bench()
        bench.create(name, isAgent: true)
        for count in [3, 1, 3, 2] {
            let place = Position(turn: 1, step: "s", attempt: 2)
            bench.append((0..<count).map { NewEntry(.emit, place, ("name", .string("\($0)"))) }, to: name)
        }
        return (bench, try bench.channel(name))
    }

    @Test func `is told every entry of a stretch once, in order, whatever values of the log they are in`() throws {
        let (bench, channel) = try filled()
        for after in 0...9 as ClosedRange<UInt64> {
            for upTo in after...9 {
                let told = try bench.channels.project(channel, after: after, upTo: upTo, ToldEntries())
                #expect(told == (after..<upTo).map { $0 + 1 })
            }
        }
        for head in 0...9 as ClosedRange<UInt64> {
            #expect(try bench.channels.projectBack(channel, from: head, ToldEntries()) == (0..<head).reversed().map { $0 + 1 })
        }
    }

    @Test(arguments: 1...9) func `is told nothing once it is complete`(limit: Int) throws {
        let (bench, channel) = try filled()
        let all = Array(1...9 as ClosedRange<UInt64>)
        #expect(try bench.channels.project(channel, after: 0, upTo: 9, ToldEntries(limit: limit)) == Array(all.prefix(limit)))
        #expect(try bench.channels.projectBack(channel, from: 9, ToldEntries(limit: limit)) == Array(all.reversed().prefix(limit)))
    }

    @Test func `is its own output where it has no other, and sees what entries have in them`() throws {
        let (bench, channel) = try filled()
        let last = try bench.channels.project(channel, after: 0, upTo: 7, LastEmit())
        #expect(last.name == "2" && last.step == Position(turn: 1, step: "s"))
    }

    @Test func `is not told of holes, which keep their offsets`() throws {
        let (bench, channel) = try filled()
        // In the place of the second value a hole; in the third value one before its last entry.
        var batch = Batch(partition: channel.id.partition)
        batch.put(.log, channel.id.key(4), hole(1))
        var frames = hole(2)
        NewEntry(.emit, nil, ("name", "left")).write(to: &frames, at: bench.world.now)
        batch.put(.log, channel.id.key(5), frames)
        try bench.log.commit([batch])
        #expect(try bench.channels.project(channel, after: 0, upTo: 9, ToldEntries()) == [1, 2, 3, 7, 8, 9])
        #expect(try bench.channels.project(channel, after: 5, upTo: 7, LastEmit()).name == "left")
        #expect(try bench.channels.projectBack(channel, from: 9, ToldEntries(limit: 4)) == [9, 8, 7, 3])
        #expect(try bench.channels.project(channel, after: 3, upTo: 6, ToldEntries()) == [])
    }

    @Test func `has no output where an entry cannot be read, unless it is complete before`() throws {
        let (bench, channel) = try filled()
        var batch = Batch(partition: channel.id.partition)
        batch.put(.log, channel.id.key(5), [0, 0, 0, 99, 0])
        try bench.log.commit([batch])
        let error = #expect(throws: LogError.self) { try bench.channels.project(channel, after: 0, upTo: 9, ToldEntries()) }
        #expect(error?.code == .damaged && error?.message.contains("'\(name)' at offset \(Offset(5))") == true)
        #expect(throws: LogError.self) { try bench.channels.projectBack(channel, from: 9, ToldEntries()) }
        #expect(try bench.channels.project(channel, after: 0, upTo: 9, ToldEntries(limit: 4)) == [1, 2, 3, 4])
        #expect(try bench.channels.projectBack(channel, from: 9, ToldEntries(limit: 2)) == [9, 8])
    }

    private func hole(_ count: UInt64) -> Bytes {
        var bytes: Bytes = [0, 0, 0, 10, EntryKind.hole.rawValue, 0]
        bytes.append(bigEndian: count)
        return bytes
    }
}
