import Glibc
import ParleySystem
import Synchronization
import Testing

@Suite struct `Event loop` {
    private func withLoop(_ body: (EventLoop) throws -> Void) rethrows {
        let loop = EventLoop(name: "test")
        loop.start()
        defer { loop.stop() }
        try body(loop)
    }

    @Test func `runs work of many threads in each thread's order`() throws {
        try withLoop { loop in
            let arrivals = Arrivals<(thread: Int, number: Int)>()
            let threads = (0..<4).map { thread in
                SystemThread(name: "worker") {
                    for number in 0..<1_000 {
                        loop.execute {
                            loop.assertOnLoop()
                            arrivals.add((thread, number))
                        }
                    }
                }
            }
            for thread in threads { thread.join() }
            let all = try arrivals.wait("work") { $0.count == 4_000 }
            for thread in 0..<4 { #expect(all.filter { $0.thread == thread }.map(\.number) == Array(0..<1_000)) }
            #expect(!loop.isCurrent)
        }
    }

    @Test func `runs work that the loop gives itself, and end-of-tick work behind the tick's callbacks`() throws {
        try withLoop { loop in
            let arrivals = Arrivals<String>()
            loop.execute {
                loop.atEndOfTick {
                    arrivals.add("end of tick")
                    loop.execute { loop.atEndOfTick { arrivals.add("later end") } }
                }
                arrivals.add("callback")
            }
            let seen = try arrivals.wait("rounds") { $0.count == 3 }
            #expect(seen == ["callback", "end of tick", "later end"])
        }
    }

    @Test func `fires timers in order, never early, and not when cancelled`() throws {
        try withLoop { loop in
            let arrivals = Arrivals<Int>()
            let start = ContinuousClock.now
            loop.execute {
                var timers: [LoopTimer] = []
                for delay in [30, 10, 50, 20, 40, 25].shuffled() {
                    timers.append(
                        loop.schedule(after: .milliseconds(delay)) {
                            #expect(ContinuousClock.now - start >= .milliseconds(delay))
                            arrivals.add(delay)
                        })
                    loop.schedule(after: .milliseconds(delay)) { arrivals.add(-delay) }.cancel()
                }
                let moved = loop.schedule(after: .milliseconds(1)) { arrivals.add(60) }
                moved.reschedule(after: .milliseconds(60))
            }
            let seen = try arrivals.wait("timers") { $0.last == 60 }
            #expect(seen == [10, 20, 25, 30, 40, 50, 60])
        }
    }

    @Test func `repeats a timer until it is cancelled`() throws {
        try withLoop { loop in
            let arrivals = Arrivals<String>()
            loop.execute {
                var count = 0
                var timer: LoopTimer?
                timer = loop.schedule(after: .zero, every: .milliseconds(5)) {
                    count += 1
                    arrivals.add("beat")
                    guard count == 3 else { return }
                    timer?.cancel()
                    loop.schedule(after: .milliseconds(30)) { arrivals.add("end") }
                }
            }
            let seen = try arrivals.wait("end") { $0.last == "end" }
            #expect(seen == ["beat", "beat", "beat", "end"])
        }
    }

    @Test func `watches a descriptor`() throws {
        try withLoop { loop in
            var ends: [Int32] = [0, 0]
            #expect(pipe(&ends) == 0)
            let (reader, writer) = (ends[0], ends[1])
            let arrivals = Arrivals<String>()
            loop.execute {
                var watch: DescriptorWatch?
                watch = DescriptorWatch(loop, descriptor: reader) { readiness in
                    #expect(readiness == .readable)
                    watch?.cancel()
                    watch = nil
                    close(reader)
                    arrivals.add("readable")
                }
                watch?.wait(for: .readable)
            }
            #expect(write(writer, "x", 1) == 1)
            try arrivals.next("readiness")
            close(writer)
        }
    }

    @Test func `hears a signal`() throws {
        try withLoop { loop in
            let arrivals = Arrivals<Int32>()
            let watcher = SignalWatcher(loop, signals: [SIGUSR2]) { arrivals.add($0) }
            let listening = Arrivals<Bool>()
            loop.execute { listening.add(true) }
            try listening.next("start")
            kill(getpid(), SIGUSR2)
            let signal = try arrivals.next("signal")
            #expect(signal == SIGUSR2)
            watcher.cancel()
        }
    }

    @Test func `runs what was given before it stops, and nothing after`() {
        let loop = EventLoop(name: "test")
        loop.start()
        let count = Atomic(0)
        for _ in 0..<100 { loop.execute { count.add(1, ordering: .relaxed) } }
        loop.execute { loop.atStop { count.add(1_000, ordering: .relaxed) } }
        loop.stop()
        loop.stop()
        loop.execute { count.add(1, ordering: .relaxed) }
        #expect(count.load(ordering: .relaxed) == 1_100)
    }
}
