import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@Suite struct `Whose turn it is to commit` {
    /// A turn whose log thread was woken by a submission that may wait a moment, and now checks by itself.
    private func watching() -> CommitTurn {
        var turn = CommitTurn()
        #expect(turn.submitted(isUrgent: true, leads: true) == .signal)
        #expect(turn.next(isForced: false) == .nothing)
        return turn
    }

    private func submit(_ turn: inout CommitTurn, urgent: Bool = true, leads: Bool = false) -> CommitTurn.Action {
        turn.submitted(isUrgent: urgent, leads: leads)
    }

    /// Takes the waiting submissions, settles them and ends the turn.
    private func commit(_ turn: inout CommitTurn, _ count: Int, isSlow: Bool = false, rest: Bool = false) -> CommitTurn.Action {
        turn.tookQueue()
        return turn.ended(count, isSlow: isSlow, isForced: false, isEmpty: !rest)
    }

    /// Submits from a thread that leaves the commit to the log's thread.
    private func leave(_ turn: inout CommitTurn, queued: Int) {
        #expect(turn.workEnded(queued: queued, mayLead: true) == .signal)
        #expect(turn.next(isForced: false) == .commit)
        #expect(commit(&turn, queued) == .nothing)
    }

    @Test func `an urgent submission calls the log's thread`() {
        var turn = CommitTurn()
        #expect(turn.next(isForced: false) == nil)
        #expect(submit(&turn) == .signal)
        #expect(turn.next(isForced: false) == .commit)
        #expect(commit(&turn, 1) == .nothing)
        #expect(turn.next(isForced: false) == .nothing, "it looks again before it sleeps")
        #expect(turn.looked(isEmpty: true) == .nothing)
        #expect(turn.isAsleep == false)
        #expect(turn.looked(isEmpty: true) == .nothing)
        #expect(turn.isAsleep)
    }

    @Test func `a submission that is not urgent wakes a sleeping thread, which finds it at its next look`() {
        var turn = CommitTurn()
        #expect(submit(&turn, urgent: false) == .signal)
        #expect(turn.next(isForced: false) == .nothing)
        #expect(submit(&turn, urgent: false) == .nothing, "it looks by itself now")
        #expect(turn.next(isForced: false) == nil)
        #expect(turn.looked(isEmpty: false) == .commit)
    }

    @Test func `a thread that submits next to nothing commits it at the end of its work`() {
        var turn = watching()
        #expect(turn.workEnded(queued: 1, mayLead: true) == .commit)
        #expect(turn.next(isForced: false) == nil, "one at a time")
        #expect(turn.workEnded(queued: 1, mayLead: true) == .nothing)
        #expect(commit(&turn, 1) == .nothing)
    }

    @Test func `more than two are left to the log's thread, and so is what comes after more than two`() {
        var turn = watching()
        leave(&turn, queued: 3)
        #expect(submit(&turn, leads: true) == .nothing)
        leave(&turn, queued: 1)
        #expect(submit(&turn, leads: true) == .nothing)
        #expect(turn.workEnded(queued: 1, mayLead: true) == .commit)
    }

    @Test func `after a slow commit the log's thread makes the next sixteen`() {
        var turn = watching()
        #expect(turn.workEnded(queued: 1, mayLead: true) == .commit)
        #expect(commit(&turn, 1, isSlow: true) == .nothing)
        for _ in 0..<16 {
            #expect(submit(&turn, leads: true) == .nothing)
            leave(&turn, queued: 1)
        }
        #expect(submit(&turn, leads: true) == .nothing)
        #expect(turn.workEnded(queued: 1, mayLead: true) == .commit)
    }

    @Test func `what comes during a commit is committed by the log's thread`() {
        var turn = watching()
        #expect(turn.workEnded(queued: 1, mayLead: true) == .commit)
        turn.tookQueue()
        #expect(submit(&turn, leads: true) == .nothing)
        #expect(submit(&turn) == .nothing)
        #expect(turn.workEnded(queued: 2, mayLead: true) == .nothing)
        #expect(turn.ended(1, isSlow: false, isForced: false, isEmpty: false) == .signal)
        #expect(turn.workEnded(queued: 2, mayLead: true) == .nothing, "it has been called")
        #expect(turn.next(isForced: false) == .commit)
    }

    @Test func `a submission that is not urgent is not forgotten when it comes during a commit`() {
        var turn = watching()
        #expect(turn.workEnded(queued: 1, mayLead: true) == .commit)
        turn.tookQueue()
        #expect(turn.looked(isEmpty: true) == .nothing)
        #expect(turn.looked(isEmpty: true) == .nothing)
        #expect(turn.isAsleep, "nothing has come for two looks")
        #expect(submit(&turn, urgent: false) == .nothing)
        #expect(turn.ended(1, isSlow: false, isForced: false, isEmpty: false) == .signal)
        #expect(turn.next(isForced: false) == .nothing)
        #expect(turn.looked(isEmpty: false) == .commit)
    }

    @Test func `work that takes long holds up nothing that it has submitted`() {
        var turn = watching()
        #expect(turn.looked(isEmpty: false) == .commit)
        #expect(commit(&turn, 1) == .nothing)
        #expect(turn.workEnded(queued: 0, mayLead: true) == .nothing)
    }

    @Test func `a log that ends is emptied by its own thread`() {
        var turn = watching()
        #expect(turn.workEnded(queued: 1, mayLead: false) == .signal)
        #expect(turn.next(isForced: true) == .commit)
    }
}

@Suite struct `Commits of loops and lanes` {
    private let journal = Journal()

    /// Records which thread staged it.
    private func submission(_ name: String, lazy: Bool = false) -> TestSubmission {
        let journal = journal
        return TestSubmission(name, journal, isUrgent: !lazy) { stage in
            journal.note("\(name) by \(SystemThread.current)")
            stage.put(.producers, key(1, 1), [1])
        }
    }

    @Test func `a lane that is alone commits itself, once its piece of work has ended`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.start()
        let (world, journal, one) = (SystemWorld(threads: 1), journal, submission("one"))
        world.perform(lane: 1) {
            try? group.submit(one)
            journal.note("ended on \(SystemThread.current)")
        }
        #expect(journal.wait(for: 3))
        group.stop()
        let thread = try #require(journal.events.first?.split(separator: " ").last)
        #expect(journal.events == ["ended on \(thread)", "one by \(thread)", "one committed"])
    }

    @Test func `a loop that is alone commits itself, and does what follows in the same tick`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.start()
        let loop = EventLoop(name: "loop")
        loop.start()
        let (journal, one) = (journal, submission("one"))
        loop.execute {
            try? group.submit(one)
            journal.note("ended on \(SystemThread.current)")
        }
        #expect(journal.wait(for: 3))
        loop.stop()
        group.stop()
        let thread = try #require(journal.events.first?.split(separator: " ").last)
        #expect(journal.events == ["ended on \(thread)", "one by \(thread)", "one committed"])
    }

    @Test func `a lane that submits much leaves it to the log's thread`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.start()
        let (world, journal, all) = (SystemWorld(threads: 1), journal, (0..<3).map { submission("\($0)") })
        let lane = Mutex<UInt64>(0)
        world.perform(lane: 1) {
            lane.withLock { $0 = SystemThread.current }
            for one in all { try? group.submit(one) }
        }
        #expect(journal.wait(for: 6))
        group.stop()
        #expect(!journal.events.contains { $0.hasSuffix("by \(lane.withLock { $0 })") })
    }

    @Test func `what a lane has submitted is committed while it still works`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.start()
        let (world, journal, one) = (SystemWorld(threads: 1), journal, submission("one"))
        let isCommitted = Monitor<Bool?>(nil)
        world.perform(lane: 1) {
            try? group.submit(one)
            let result = journal.wait(for: 2)
            isCommitted.withLock(signalAll: true) { $0 = result }
        }
        #expect(isCommitted.wait(timeout: .seconds(20)) { $0 } == true)
        group.stop()
    }

    @Test func `a submission that is not urgent is committed alone, before what comes later`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.start()
        try group.submit(submission("lazy", lazy: true))
        #expect(journal.wait(for: 2))
        try group.submit(submission("lazy again", lazy: true))
        try group.submit(submission("urgent"))
        #expect(journal.wait(for: 6))
        group.stop()
        #expect(journal.events.filter { $0.hasSuffix("committed") } == ["lazy committed", "lazy again committed", "urgent committed"])
    }

    @Test func `stopping commits what is not urgent`() throws {
        let group = GroupCommit(log: MemoryLog())
        group.start()
        try group.submit(submission("lazy", lazy: true))
        group.stop()
        #expect(journal.events.last == "lazy committed")
    }

    @Test func `what lanes and other threads submit at once is committed once, each one's in its order`() throws {
        let log = MemoryLog()
        let group = GroupCommit(log: log)
        group.start()
        let world = SystemWorld(threads: 2)
        let journals = (0..<6).map { _ in Journal() }
        let submit: @Sendable (Int, Int) -> Void = { thread, number in
            try? group.submit(
                TestSubmission("\(number)", journals[thread], isUrgent: number % 3 > 0) { stage in
                    stage.put(.producers, key(1, UInt64(thread), UInt64(number)), [1])
                })
        }
        for number in 0..<500 {
            for lane in 0..<4 { world.perform(lane: UInt64(lane)) { submit(lane, number) } }
        }
        let threads = (4..<6).map { thread in SystemThread(name: "submitter") { for number in 0..<500 { submit(thread, number) } } }
        for thread in threads { thread.join() }
        for journal in journals { #expect(journal.wait(for: 500)) }
        group.stop()
        for journal in journals { #expect(journal.events == (0..<500).map { "\($0) committed" }) }
        #expect(try log.pairs(.producers, key(1), key(2)).count == 3_000)
    }
}
