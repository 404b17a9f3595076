import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyChannels

/// However commits end: a generation has one holder, what was acked does not come again, and what was not does.
@Suite struct `Subscriptions and crashes` {
    enum End: String, CaseIterable, Sendable { case notSubmitted, lost, evenBatches, oddBatches, durableUnacknowledged }

    private static func outcome(_ end: End, _ batches: Int) -> SimulatedLog.Outcome {
        switch end {
        case .notSubmitted: .notSubmitted
        case .lost: .lost
        case .evenBatches: .durable(batches: Set((0..<batches).filter { $0 % 2 == 0 }))
        case .oddBatches: .durable(batches: Set((0..<batches).filter { $0 % 2 == 1 }))
        case .durableUnacknowledged: .durableUnacknowledged
        }
    }

    @Test(arguments: End.allCases, 0..<40)
    func `lose nothing and repeat nothing of what workers pull`(end: End, commit: Int) throws {
        let seed = UInt64(commit) * 8 + UInt64(End.allCases.firstIndex(of: end)!)
        try SimulatedNode.simulate {
            let record = SubscriptionRecord(seed: seed)
            var process = try SubscriptionProcess(
                seed: seed, on: SimulatedLog(outcome: { $0 == commit % 16 ? Self.outcome(end, $1.count) : .acknowledged }))
            for life in 0..<4 {
                process.append("wake")
                // A client that has no answer asks again.
                _ = process.ask(.put(.pull(), root: "http://localhost/"))
                let isThere = try !process.log.crashed && process.subscriptions.describe("s") != nil
                for round in 0..<24 where isThere {
                    pull(process, record, round + life * 24)
                    if process.log.crashed { break }
                }
                if life == 3 { break }
                let crashesAt = life < 2 ? (commit / 2) + life * 7 + 4 : Int.max
                process = try process.reopened(seed: seed &+ UInt64(life) &+ 1_000) {
                    $0 == crashesAt ? Self.outcome(end, $1.count) : .acknowledged
                }
            }
            // From here on everything is processed.
            for _ in 0..<20 {
                process.run(.seconds(3))
                guard let claim = process.claim("last") else { continue }
                record.woken(claim)
                if case .success? = process.acknowledge(claim) { record.acked(claim.acks) }
            }
            #expect(!process.log.crashed)
            try record.check(process)
            // One event a generation, in their order.
            let generations = try process.wakes().compactMap { $0["generation"]?.integer }
            #expect(generations == Array(Set(generations)).sorted(), "seed \(seed)")
            #expect(!generations.isEmpty)
        }
    }

    /// A process that takes over knows of the last access only roughly, and may give a stream a little longer than the one before did.
    @Test func `keep the cursor of a stream for as long as it may come back`() throws {
        try SimulatedNode.simulate {
            let process = try SubscriptionProcess()
            var row = ChannelRow(name: "events/a", contentType: ContentType.json, isAgent: false, created: process.world.now)
            row.lifetime = .ttl(seconds: 1_600)
            process.channels.submit(CreateChannel(row))
            _ = process.ask(.put(.pull(), root: "http://localhost/"))
            process.append("events/a", "1")
            process.world.settle()
            _ = process.acknowledge(try #require(process.claim()))
            process.append("events/a", "2")
            process.run(.seconds(1_650))
            #expect(try process.channels.find("events/a") == nil)
            #expect(process.claim() == nil, "nobody can read what is new there")
            let next = try process.reopened()
            try next.channels.start()
            #expect(try next.channels.find("events/a") != nil)
            let stream = try #require(next.claim()?.streams.first)
            #expect((stream.link.acked, stream.tail) == (1, 2))
            next.run(.seconds(2_000))
            #expect(next.claim() == nil)
            #expect(try next.streams().isEmpty, "it goes with its stream")
        }
    }

    /// Something that clients and workers do, as the seed decides.
    private func pull(_ process: SubscriptionProcess, _ record: SubscriptionRecord, _ number: Int) {
        func chance(_ what: Int, _ count: Int) -> Int { Int(chosen(record.seed, number * 8 + what) % UInt64(count)) }
        for index in 0..<(1 + chance(0, 3)) { process.append("events/\((chance(1, 4) + index) % 5)") }
        process.append("other/\(chance(2, 2))")
        // Nothing but its first entry tells of it.
        if chance(6, 2) == 0 { process.append("events/once-\(number)") }
        if chance(3, 2) == 0 { process.world.settle() }
        process.run(.milliseconds(chance(4, 700)))
        guard !process.log.crashed else { return }
        // Two at once: one of them at most holds it.
        let (first, second) = (process.request(.claim(worker: "a\(number)")), process.request(.claim(worker: "b\(number)")))
        process.world.settle()
        for (answer, worker) in [(first, "a\(number)"), (second, "b\(number)")] {
            guard case .success(.claimed(let subscription, let wake, let token, let streams))? = answer.outcome else { continue }
            let proof = SubscriptionProof(token: token, wakeID: wake.id, generation: subscription.generation)
            let claim = Claim(proof: proof, worker: worker, streams: streams)
            record.woken(claim)
            finish(claim, chance(5, 5), process, record)
        }
        for old in record.old {
            if case .success? = process.acknowledge(old) { record.fail("a worker of generation \(old.proof.generation) has acked late") }
        }
    }

    private func finish(_ claim: Claim, _ how: Int, _ process: SubscriptionProcess, _ record: SubscriptionRecord) {
        switch how {
        case 0:
            if case .success? = process.acknowledge(claim) { record.acked(claim.acks, of: claim) }
        case 1:
            var part = claim
            part.streams = Array(claim.streams.prefix(1))
            if case .success? = process.acknowledge(part) { record.acked(part.acks, of: claim) }
        case 2:
            if case .success? = process.acknowledge(claim, isDone: false) { record.acked(claim.acks) }
            process.run(.milliseconds(900))
            if case .success? = process.ask(.release(claim.proof)) { record.over(claim) }
        case 3:
            if case .success? = process.ask(.release(claim.proof)) { record.over(claim) }
        default: process.run(.milliseconds(1_100))  // Gone: its lease ends.
        }
    }

    @Test(arguments: End.allCases, 0..<40)
    func `lose nothing and repeat nothing of what a webhook is told`(end: End, commit: Int) throws {
        let seed = UInt64(commit) * 8 + UInt64(End.allCases.firstIndex(of: end)!)
        try SimulatedNode.simulate {
            let record = SubscriptionRecord(seed: seed)
            let receive: @Sendable (SubscriptionProcess, SubscriptionNotification) -> Void = { process, notification in
                respond(to: notification, process, record)
            }
            var process = try SubscriptionProcess(
                seed: seed, on: SimulatedLog(outcome: { $0 == commit % 16 ? Self.outcome(end, $1.count) : .acknowledged }),
                notified: receive)
            for life in 0..<4 {
                _ = process.ask(.put(.hook(), root: "http://localhost/"))
                let isThere = try !process.log.crashed && process.subscriptions.describe("s") != nil
                for round in 0..<24 where isThere && !process.log.crashed {
                    let number = round + life * 24
                    process.append("events/once-\(number)")
                    for index in 0..<(1 + chosen(seed, number) % 3) { process.append("events/\((UInt64(number) + index) % 5)") }
                    process.run(.milliseconds(Int(chosen(seed, number + 1) % 900)))
                }
                if life == 3 { break }
                let crashesAt = life < 2 ? (commit / 2) + life * 7 + 4 : Int.max
                process = try process.reopened(
                    seed: seed &+ UInt64(life) &+ 1_000, outcome: { $0 == crashesAt ? Self.outcome(end, $1.count) : .acknowledged },
                    notified: receive)
            }
            record.isPatient.withLock { $0 = true }
            process.run(.seconds(300))
            #expect(!process.log.crashed)
            try record.check(process)
        }
    }
}

/// A receiver that answers in every way.
@Sendable private func respond(to notification: SubscriptionNotification, _ process: SubscriptionProcess, _ record: SubscriptionRecord) {
    let wakeID = notification.wake.id
    let proof = SubscriptionProof(token: notification.token, wakeID: wakeID, generation: notification.subscription.generation)
    let claim = Claim(proof: proof, worker: wakeID, streams: notification.streams)
    record.woken(claim)
    let acks = notification.streams.map { SubscriptionAck(stream: $0.path, offset: $0.tail) }
    let how = record.isPatient.withLock { $0 } ? 0 : chosen(record.seed, Int(proof.generation) &+ 77) % 5
    switch how {
    case 0: process.request(.delivered(wakeID: wakeID, done: acks))
    case 1: process.request(.failed(wakeID: wakeID))
    case 2:
        process.request(.delivered(wakeID: wakeID, done: nil))
        process.world.schedule(at: process.world.now.advanced(by: .milliseconds(400))) {
            process.subscriptions.request(.acknowledge(proof, claim.acks, isDone: true, isCallback: true), of: "s") { result in
                if case .success = result { record.acked(claim.acks) }
            }
        }
    case 3: process.request(.delivered(wakeID: wakeID, done: nil))
    default: break
    }
}

/// What everybody outside has seen, over all processes.
private final class SubscriptionRecord: Sendable {
    private struct State {
        var holders: [UInt64: String] = [:]
        var acked: [String: UInt64] = [:]
        /// Offsets that a subscriber was woken for.
        var seen: [String: Set<UInt64>] = [:]
        var old: [Claim] = []
        var failures: [String] = []
    }

    let seed: UInt64
    let isPatient = Mutex(false)
    private let state = Mutex(State())

    init(seed: UInt64) { self.seed = seed }

    var old: [Claim] { state.withLock { $0.old } }

    func woken(_ claim: Claim) {
        let name = claim.worker + claim.proof.wakeID
        state.withLock { state in
            if let other = state.holders.updateValue(name, forKey: claim.proof.generation), other != name {
                state.failures.append("generation \(claim.proof.generation) is held by \(other) and \(name)")
            }
            if claim.proof.generation < state.holders.keys.max()! {
                state.failures.append("generation \(claim.proof.generation) comes late")
            }
            if !claim.streams.contains(where: \.isPending) { state.failures.append("a wake for nothing") }
            for stream in claim.streams where stream.isPending {
                if stream.link.acked < state.acked[stream.path] ?? 0 {
                    state.failures.append("\(stream.path) comes again from \(stream.link.acked), acked up to \(state.acked[stream.path]!)")
                }
                state.seen[stream.path, default: []].formUnion((stream.link.acked + 1)...stream.tail)
            }
        }
    }

    func acked(_ acks: [SubscriptionAck], of claim: Claim? = nil) {
        state.withLock { state in
            for ack in acks { state.acked[ack.stream] = max(ack.offset, state.acked[ack.stream] ?? 0) }
        }
        if let claim { over(claim) }
    }

    func over(_ claim: Claim) { state.withLock { $0.old = $0.old.suffix(2) + [claim] } }
    func fail(_ text: String) { state.withLock { $0.failures.append(text) } }

    /// What must hold once everything has been processed.
    func check(_ process: SubscriptionProcess) throws {
        let (failures, seen) = state.withLock { ($0.failures, $0.seen) }
        #expect(failures == [], "seed \(seed)")
        var count = 0
        for stream in try process.streams() {
            #expect(stream.link.acked == stream.tail, "seed \(seed): \(stream.path)")
            count += 1
        }
        #expect(count > 0, "seed \(seed)")
        for name in (0..<5).map({ "events/\($0)" }) + (0..<96).map({ "events/once-\($0)" }) {
            guard let tail = try process.channels.find(name)?.tail.head, tail > 0 else { continue }
            #expect(try process.streams().contains { $0.path == name }, "seed \(seed): \(name) is not linked")
            let missed = Set(1...tail).subtracting(seen[name] ?? [])
            #expect(missed.isEmpty, "seed \(seed): nobody was woken for \(missed.sorted()) of \(name)")
        }
        // Every stream is linked: none waits for it.
        #expect(try newStreams(in: process.log) == 0, "seed \(seed)")
    }
}
