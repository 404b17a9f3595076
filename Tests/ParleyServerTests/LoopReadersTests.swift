import ParleyChannels
import ParleySystem
import Testing

@testable import ParleyServer

/// The order in which a loop serves its readers.
@Suite struct `The readers of a loop` {
    /// The readers whose turn came, in order.
    private final class Turns: @unchecked Sendable {  // Guard: written on the loop, read when that has stopped.
        var names: [String] = []
        var awaited = Int.max
        var onTurn: (String) -> Void = { _ in }
    }

    /// Notes its turns, each of which takes 0.3 ms.
    private final class Recorder: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
        private let name: String
        private let turns: Turns

        init(_ name: String, _ channel: Channel, _ turns: Turns, _ readers: LoopReaders) {
            (self.name, self.turns) = (name, turns)
            super.init(channel, after: 0, view: .raw, cursorFloor: 0, expires: nil, readers)
        }

        override var hasShownToRead: Bool { name == "reads" }

        override func advance() {
            turns.names.append(name)
            turns.onTurn(name)
            let end = readers.loop.preciseNanoseconds + 300_000
            while readers.loop.preciseNanoseconds < end {}
        }
    }

    @Test func `who has shown to read comes first, also between the turns of those who have not`() throws {
        let server = try TestServer()
        let path = try server.stream()
        let channel = try #require(try server.channels.find(String(path.dropFirst(server.root.count))))
        let pool = ReadPool(queuedMax: 1)
        defer { pool.stop() }
        let loop = EventLoop(name: "recorded")
        let readers = LoopReaders(loop: loop, channels: server.channels, reads: pool, configuration: ServerConfiguration())
        let turns = Turns()
        let news = (0..<20).map { "new \($0)" }
        let isDone = Monitor(false)
        // While the first of the others has its turn, there is something new for all.
        turns.onTurn = { name in
            if turns.names == ["reads", "new 0"] { readers.channelChanged(channel) }
            // Then all others have their turn once more, including those that still wait for the first change.
            if name == "reads", turns.names.count > 1 { turns.awaited = turns.names.count + news.count }
            if turns.names.count == turns.awaited { isDone.withLock(signal: true) { $0 = true } }
        }
        loop.start()
        loop.execute {
            for name in news + ["reads"] { #expect(readers.add(Recorder(name, channel, turns, readers))) }
            readers.channelChanged(channel)
        }
        _ = isDone.wait(timeout: .seconds(20)) { $0 ? true : nil }
        loop.stop()

        let between = try #require(turns.names.dropFirst().firstIndex(of: "reads")) - 1
        #expect((1...4).contains(between), "a slice is 1 ms")
        var expected = ["reads"]
        expected += news[..<between]
        expected.append("reads")
        expected += news[between...]
        expected += news[..<between]
        #expect(turns.names == expected)
    }
}
