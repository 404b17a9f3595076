import ParleyChannels
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

private let megabyte = 1 << 20

@Suite struct `The memory for answers` {
    private let memory = AnswerMemory(bytesMax: 4 * megabyte)

    private func make(_ count: Int, short: Int?, in room: MemoryReservation? = nil) throws -> Made<Int> {
        try memory.make(for: "a", in: room, weight: { $0 }) { isShort in isShort ? short : count }
    }

    @Test func `has no count of small ones`() throws {
        guard case .value(1_000, nil) = try make(1_000, short: nil) else { throw TestFailure("it is counted") }
        #expect(memory.budget.usedBytes == 0)
    }

    @Test func `makes an answer short where there is no room for a long one`() throws {
        let held = try #require(memory.reserve(2 * megabyte, for: "a"))
        guard case .value(9_000, let room?) = try make(megabyte, short: 9_000) else { throw TestFailure("it is not short") }
        #expect(room.bytes == 9_000 && memory.budget.usedBytes == 2 * megabyte + 9_000)
        withExtendedLifetime(held) {}
    }

    @Test func `gives up what cannot be short, and finds it in the room that was kept for it`() throws {
        var held = memory.reserve(2 * megabyte, for: "a")
        guard case .needs(megabyte) = try make(megabyte, short: nil) else { throw TestFailure("it has room") }
        held = nil
        let room = try #require(memory.reserve(megabyte, for: "a"))
        guard case .value(megabyte, let kept?) = try make(megabyte, short: nil, in: room) else { throw TestFailure("it has no room") }
        #expect(kept === room && held == nil)
    }

    @Test func `takes one answer that is larger than it, and no second`() throws {
        guard case .value(_, let room?) = try make(100 * megabyte, short: nil) else { throw TestFailure("it never has room") }
        #expect(room.bytes == 2 * megabyte)
        guard case .needs = try make(100 * megabyte, short: nil) else { throw TestFailure("there are two") }
    }

    @Test func `lets answers wait for room, one after the other, and tells those whose time is up`() throws {
        let loop = EventLoop(name: "answers")
        loop.start()
        defer { loop.stop() }
        let waiting = WaitingAnswers(loop, memory)
        let (events, held) = (Monitor<[String]>([]), Monitor(memory.reserve(2 * megabyte, for: "a")))
        let rooms = Monitor<[MemoryReservation]>([])
        @Sendable func wait(_ name: String, _ count: Int, _ patience: Duration?, isWanted: Bool = true) {
            waiting.wait(for: count, of: "a", patience: patience, isWanted: { isWanted }) { room in
                if let room { rooms.withLock { $0.append(room) } }
                events.withLock(signalAll: true) { $0.append(room == nil ? "\(name) is late" : name) }
            }
        }
        loop.execute {
            wait("unwanted", 10_000, nil, isWanted: false)
            wait("impatient", megabyte, .milliseconds(100))
            wait("first", megabyte, nil)
            wait("second", megabyte, nil)
            wait("third", megabyte, .seconds(1))
            wait("small", 10_000, nil)
        }
        #expect(events.wait(timeout: .seconds(10)) { $0.count == 2 ? $0 : nil } == ["small", "impatient is late"])
        held.withLock { $0 = nil }
        let late = events.wait(timeout: .seconds(10)) { $0.count == 4 ? $0 : nil }
        #expect(Set(late?.suffix(2) ?? []) == ["first", "third is late"])
        rooms.withLock { $0 = [] }
        #expect(events.wait(timeout: .seconds(10)) { $0.count == 5 ? $0.last : nil } == "second")
    }
}
