import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@Suite struct `Group commit` {
    private let journal = Journal()

    private func put(_ number: UInt64, bytes: Int = 10) -> TestSubmission {
        TestSubmission("\(number)", journal) { stage in stage.put(.producers, key(1, 1, number), Bytes(repeating: 1, count: bytes)) }
    }

    private func limits(_ change: (inout GroupCommit.Limits) -> Void) -> GroupCommit.Limits {
        var limits = GroupCommit.Limits()
        change(&limits)
        return limits
    }

    @Test func `a pump commits what was submitted, in order, with one commit, and then there is nothing to do`() throws {
        let log = MemoryLog()
        let group = GroupCommit(log: log)
        for number: UInt64 in 0..<3 { try group.submit(put(number)) }
        #expect(journal.events.isEmpty)
        #expect(group.queued == 3)
        #expect(group.pump())
        #expect(journal.events == ["0 committed", "1 committed", "2 committed"])
        #expect(try log.pairs(.producers, key(1), key(2)).count == 3)
        #expect(!group.pump())
        #expect(group.queued == 0)
        let counters = group.counters
        #expect(counters.commits == 1 && counters.submissions == 3)
        #expect(counters.bytes == 3 * (10 + 18 + 10))
    }

    @Test func `what comes while a commit syncs goes into the next one together`() throws {
        let log = GatedLog()
        let group = GroupCommit(log: log)
        group.start()
        try group.submit(put(0))
        #expect(log.waitForCommit())
        for number: UInt64 in 1...100 { try group.submit(put(number)) }
        #expect(journal.events.isEmpty, "nobody is told before the commit is durable")
        log.letThrough(2)
        #expect(journal.wait(for: 101))
        #expect(log.commits == [1, 100])
        #expect(journal.events == (0...100).map { "\($0) committed" })
        group.stop()
    }

    @Test func `a commit takes no more submissions than its bound, and the rest goes first in the next`() throws {
        let log = GatedLog()
        log.letThrough(100)
        let group = GroupCommit(log: log, limits: limits { $0.commitSubmissions = 10 })
        for number: UInt64 in 0..<25 { try group.submit(put(number)) }
        group.pump()
        try group.submit(put(25))
        while group.pump() {}
        #expect(log.commits == [10, 10, 6])
        #expect(journal.events == (0..<26).map { "\($0) committed" })
    }

    @Test func `a commit takes no more bytes than its bound, but one larger submission goes through`() throws {
        let log = GatedLog()
        log.letThrough(100)
        let group = GroupCommit(log: log, limits: limits { $0.commitBytes = 1_000 })
        for (number, bytes) in [(0, 400), (1, 400), (2, 400), (3, 5_000), (4, 10)] { try group.submit(put(UInt64(number), bytes: bytes)) }
        while group.pump() {}
        #expect(log.commits == [3, 1, 1])
    }

    @Test func `a full queue refuses, by count and by bytes, and takes again once it was drained`() throws {
        func isRefused(_ group: GroupCommit, cost: Int) -> Bool {
            do throws(LogError) {
                try group.submit(TestSubmission("x", journal, cost: cost))
                return false
            } catch { return error.code == .overloaded }
        }
        let byCount = GroupCommit(log: MemoryLog(), limits: limits { $0.queuedSubmissions = 2 })
        #expect([1, 1, 1].map { isRefused(byCount, cost: $0) } == [false, false, true])
        byCount.pump()
        #expect(journal.events.count == 2, "what was refused is never told anything")
        #expect(!isRefused(byCount, cost: 1))

        let byBytes = GroupCommit(log: MemoryLog(), limits: limits { $0.queuedBytes = 100 })
        #expect([60, 50, 40, 1].map { isRefused(byBytes, cost: $0) } == [false, true, false, true])
        byBytes.pump()
        #expect(!isRefused(byBytes, cost: 1_000), "an empty queue takes anything")
    }

    @Test func `what a commit in flight holds still counts against the bound`() throws {
        let log = GatedLog()
        let group = GroupCommit(log: log, limits: limits { $0.queuedSubmissions = 1 })
        group.start()
        try group.submit(put(0))
        #expect(log.waitForCommit())
        #expect(performing: { try group.submit(put(1)) }, throws: { ($0 as? LogError)?.code == .overloaded })
        log.letThrough()
        group.stop()
    }

    @Test func `a submission that adds nothing is told in its turn, without a commit`() throws {
        let log = SimulatedLog()
        let group = GroupCommit(log: log)
        try group.submit(TestSubmission("reader", journal))
        group.pump()
        #expect(journal.events == ["reader committed"])
        #expect(log.commits == 0)

        try group.submit(put(1))
        try group.submit(TestSubmission("reader", journal))
        try group.submit(put(2))
        group.pump()
        #expect(journal.events.dropFirst() == ["1 committed", "reader committed", "2 committed"])
        #expect(log.commits == 1)
    }

    @Test func `hooks run once a commit, after everybody was told`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.afterCommit { [journal] in journal.note("first hook") }
        group.afterCommit { [journal] in journal.note("second hook") }
        for number: UInt64 in 0..<2 { try group.submit(put(number)) }
        while group.pump() {}
        #expect(journal.events == ["0 committed", "1 committed", "first hook", "second hook"])
    }

    @Test func `finishers run once a commit, after the last submission was staged, and what they add is in that commit`() throws {
        let log = SimulatedLog()
        let group = GroupCommit(log: log)
        group.beforeCommit { [journal] stage in
            journal.note("finisher")
            stage.put(.channels, key(1, 1), (try? stage.get(.producers, key(1, 1, 1))) ?? nil ?? value("nothing"))
        }
        for number: UInt64 in 0..<2 { try group.submit(put(number, bytes: 3)) }
        while group.pump() {}
        #expect(journal.events == ["finisher", "0 committed", "1 committed"])
        #expect(log.commits == 1)
        #expect(try log.get(.channels, key(1, 1)) == [1, 1, 1])
    }

    @Test func `a read failure fails that submission alone, and rolls back what it staged`() throws {
        let damaged = LogError(.damaged, "a block is gone")
        let log = SimulatedLog(readError: { _, found in found == key(1, 9) ? damaged : nil })
        let group = GroupCommit(log: log)
        try group.submit(put(0))
        try group.submit(
            TestSubmission("bad", journal) { stage throws(LogError) in
                stage.put(.producers, key(1, 1, 100), value("half"))
                _ = try stage.get(.channels, key(1, 9))
            })
        try group.submit(put(1))
        while group.pump() {}
        #expect(journal.events == ["0 committed", "bad failed data_damaged", "1 committed"])
        #expect(try log.pairs(.producers, key(1), key(2)).map(\.key) == [key(1, 1, 0), key(1, 1, 1)])
    }

    @Test func `a failed commit fails everything that waits, is not tried again, and says so once`() throws {
        let full = LogError(.writeFailed, "no space left")
        let log = SimulatedLog(outcome: { commit, _ in commit == 1 ? .failed(full) : .acknowledged })
        let group = GroupCommit(
            log: log, limits: limits { $0.commitSubmissions = 2 }, onFailure: { [journal] in journal.note("down: \($0.message)") })
        for number: UInt64 in 0..<6 { try group.submit(put(number)) }
        group.pump()
        group.pump()
        #expect(
            journal.events == ["0 committed", "1 committed"] + (2..<6).map { "\($0) failed log_write_failed" } + ["down: no space left"])
        #expect(!group.pump())
        #expect(log.commits == 2)
        #expect(group.queued == 0)
        #expect(
            performing: { try group.submit(put(7)) },
            throws: { ($0 as? LogError)?.code == .closed && ($0 as? LogError)?.message.contains("no space left") == true })
        #expect(journal.events.count == 7)
    }

    @Test func `a log found closed while staging fails everything too`() throws {
        let log = MemoryLog()
        let group = GroupCommit(log: log, onFailure: { [journal] in journal.note("down \($0.code.text)") })
        log.close()
        try group.submit(TestSubmission("first", journal) { stage throws(LogError) in _ = try stage.get(.channels, key(1, 1)) })
        try group.submit(put(1))
        group.pump()
        #expect(journal.events == ["first failed log_closed", "1 failed log_closed", "down log_closed"])
    }

    @Test func `stopping commits what was taken and refuses what comes after`() throws {
        for threaded in [true, false] {
            let journal = Journal()
            let group = GroupCommit(log: MemoryLog(), limits: limits { $0.commitSubmissions = 7 })
            if threaded { group.start() }
            for number in 0..<100 { try group.submit(TestSubmission("\(number)", journal)) }
            group.stop()
            #expect(journal.events == (0..<100).map { "\($0) committed" })
            #expect(performing: { try group.submit(put(1)) }, throws: { ($0 as? LogError)?.code == .closed })
        }
    }

    @Test func `a writer whose log has failed ends`() throws {
        let log = SimulatedLog(outcome: { _, _ in .lost })
        let group = GroupCommit(log: log)
        group.start()
        try group.submit(put(0))
        #expect(journal.wait(for: 1))
        group.stop()
        #expect(journal.events == ["0 failed log_closed"])
        #expect(log.crashed)
    }

    @Test func `what many threads submit is in the log once, and each thread's in its order`() throws {
        let log = MemoryLog()
        let group = GroupCommit(log: log, limits: limits { $0.commitSubmissions = 50 })
        group.start()
        let journals = (0..<4).map { _ in Journal() }
        let threads = journals.enumerated().map { thread, journal in
            SystemThread(name: "submitter") {
                for number: UInt64 in 0..<500 {
                    try? group.submit(
                        TestSubmission("\(number)", journal) { stage in stage.put(.producers, key(1, UInt64(thread), number), [1]) })
                }
            }
        }
        for thread in threads { thread.join() }
        group.stop()
        for journal in journals { #expect(journal.events == (0..<500).map { "\($0) committed" }) }
        #expect(try log.pairs(.producers, key(1), key(2)).count == 2_000)
        #expect(group.counters.submissions == 2_000)
    }
}
