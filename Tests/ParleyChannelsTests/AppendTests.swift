import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Appending` {
    // MARK: What a commit holds

    @Test func `takes no more into one commit than its bytes allow`() throws {
        let bench = Bench()
        bench.create()
        let large = "\"" + String(repeating: "x", count: 1 << 20) + "\""
        let answers = (0..<10).map { _ in bench.append(large, commits: false) }
        bench.writer.pump()
        let first = answers.filter { $0.value != nil }.count
        #expect((4...6).contains(first), "a commit takes 4 MB and what passes it: \(first) MB")
        while bench.writer.pump() {}
        #expect(answers.allSatisfy { $0.value != nil })
        #expect(try bench.channel().tail.head == 10)
    }

    @Test func `of very much in one commit makes several values, so that one message is read without all the others`() throws {
        let bench = Bench()
        bench.create()
        let texts = (0..<1_000).map { "\"\($0) \(String(repeating: "x", count: 500))\"" }
        for texts in [texts[..<400], texts[400...]] {
            bench.append(texts.map { NewEntry(data: Bytes($0.utf8)) }, commits: false)
        }
        bench.writer.pump()
        for bench in [bench, bench.reopened()] {
            var sizes: [Int] = []
            let id = try bench.channel().id
            try bench.log.scan(.log, from: id.key, to: id.keyEnd, reversed: false) { _, value in
                sizes.append(value.count)
                return true
            }
            #expect(sizes.count == 8 && sizes.allSatisfy { $0 < 66 << 10 }, "\(sizes)")
            #expect(try bench.whole().map(\.string) == texts.map { String($0.dropFirst().dropLast()) })
            #expect(try bench.channels.page(try bench.channel(), after: 777, view: .raw, bytesMax: 1).next == 778)
        }
    }

    // MARK: Idempotency

    @Test func `again with the same key and body gives the same offsets and appends nothing`() throws {
        let bench = Bench()
        bench.create()
        let key: (inout Append) -> Void = { $0.idempotency = IdempotencyKey(key: "k", body: [1]) }
        #expect(bench.append("1", "2", with: key).value?.offsets == [1, 2])
        bench.append("3")
        for bench in [bench, bench.reopened()] {
            let again = bench.append("1", "2", with: key).value
            #expect(again?.offsets == [1, 2])
            #expect(again?.isReplay == true)
            #expect(again?.tail == 2, "read on from there, and miss nothing of what came after")
            #expect(try bench.whole() == [1, 2, 3])
        }
    }

    @Test func `with the key of another body is refused`() throws {
        let bench = Bench()
        bench.create()
        bench.append("1") { $0.idempotency = IdempotencyKey(key: "k", body: [1]) }
        #expect(bench.append("2") { $0.idempotency = IdempotencyKey(key: "k", body: [2]) }.error?.code == "idempotency_key_reused")
        #expect(try bench.whole() == [1])
    }

    @Test func `twice with one key within one commit appends once`() throws {
        let bench = Bench()
        bench.create()
        let key: (inout Append) -> Void = { $0.idempotency = IdempotencyKey(key: "k", body: [1]) }
        let first = bench.append("1", commits: false, with: key)
        let second = bench.append("1", commits: false, with: key)
        let other = bench.append("2", commits: false) { $0.idempotency = IdempotencyKey(key: "k", body: [2]) }
        bench.writer.pump()
        #expect(first.value?.offsets == [1])
        #expect(second.value?.offsets == [1])
        #expect(second.value?.isReplay == true)
        #expect(other.error?.code == "idempotency_key_reused")
        #expect(try bench.whole() == [1])
    }

    @Test func `with a key of another channel is another append`() throws {
        let bench = Bench()
        bench.create("a")
        bench.create("b")
        for name in ["a", "b"] {
            #expect(bench.append("1", to: name) { $0.idempotency = IdempotencyKey(key: "k", body: [1]) }.value?.isReplay == false)
        }
    }

    // MARK: Producers

    private struct Claim: Sendable, CustomTestStringConvertible {
        let epoch: UInt64
        let sequence: UInt64
        /// `nil`: accepted; "duplicate"; else the code of the refusal.
        let outcome: String?
        var testDescription: String { "\(epoch):\(sequence) \(outcome ?? "accepted")" }
    }

    /// Asked after 0:0, 0:1 and 2:0, 2:1, 2:2 were accepted.
    private static let claims = [
        Claim(epoch: 2, sequence: 3, outcome: nil), Claim(epoch: 2, sequence: 2, outcome: "duplicate"),
        Claim(epoch: 2, sequence: 0, outcome: "duplicate"), Claim(epoch: 2, sequence: 4, outcome: "producer_gap"),
        Claim(epoch: 1, sequence: 0, outcome: "producer_fenced"), Claim(epoch: 0, sequence: 2, outcome: "producer_fenced"),
        Claim(epoch: 3, sequence: 0, outcome: nil), Claim(epoch: 3, sequence: 1, outcome: "producer_epoch_sequence"),
    ]

    @Test(arguments: claims, [false, true]) private func `of a producer is judged by epoch and sequence`(claim: Claim, reopens: Bool) throws
    {
        var bench = Bench()
        bench.create()
        for (epoch, sequence) in [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)] as [(UInt64, UInt64)] {
            #expect(bench.append("0") { $0.producer = ProducerClaim(id: "p", epoch: epoch, sequence: sequence) }.value != nil)
        }
        if reopens { bench = bench.reopened() }
        let answer = bench.append("1") { $0.producer = ProducerClaim(id: "p", epoch: claim.epoch, sequence: claim.sequence) }
        switch claim.outcome {
        case nil:
            #expect(answer.value?.offsets == [6])
            #expect(answer.value?.producer == ProducerState(epoch: claim.epoch, sequence: claim.sequence))
        case "duplicate":
            #expect(answer.value?.isReplay == true)
            #expect(answer.value?.producer == ProducerState(epoch: 2, sequence: 2))
        case let code: #expect(answer.error?.code == code)
        }
        #expect(try bench.channel().tail.head == (claim.outcome == nil ? 6 : 5))
    }

    @Test func `of a new producer begins with 0, and its gap changes nothing`() throws {
        let bench = Bench()
        bench.create()
        let gap = bench.append("1") { $0.producer = ProducerClaim(id: "p", epoch: 0, sequence: 1) }
        #expect(gap.error?.code == "producer_gap")
        #expect(gap.error?[detail: "expected_seq"] == 0)
        #expect(bench.append("1") { $0.producer = ProducerClaim(id: "p", epoch: 0, sequence: 0) }.value?.offsets == [1])
    }

    @Test func `that is refused does not make the channel`() throws {
        let bench = Bench()
        let row = ChannelRow(name: "a", contentType: ContentType.json, isAgent: false, created: bench.world.now)
        bench.append("1") {
            $0.creates = row
            $0.producer = ProducerClaim(id: "p", epoch: 0, sequence: 4)
        }
        bench.append("1") {
            $0.creates = row
            $0.contentType = "text/plain"
        }
        #expect(try bench.channels.find("a") == nil)
        #expect(try bench.rows(.channels) == 0)
    }

    // MARK: Order, type, closing

    @Test func `with a Stream-Seq takes only what is above the last one`() throws {
        let bench = Bench()
        bench.create()
        #expect(bench.append("1") { $0.sequence = "b" }.value != nil)
        #expect(bench.append("2") { $0.sequence = "b" }.error?.code == "sequence_conflict")
        #expect(bench.append("2") { $0.sequence = "a" }.error?.code == "sequence_conflict")
        let after = bench.reopened()
        #expect(after.append("2") { $0.sequence = "B" }.error?.code == "sequence_conflict")
        #expect(after.append("2") { $0.sequence = "ba" }.value?.offsets == [2])
    }

    @Test func `with another content type is refused, whatever its case and parameters`() throws {
        let bench = Bench()
        bench.create(type: "text/plain; charset=utf-8")
        #expect(bench.append("1") { $0.contentType = "application/json" }.error?.code == "content_type_mismatch")
        #expect(bench.append("1") { $0.contentType = "TEXT/Plain" }.value != nil)
    }

    @Test func `ends with closing, which can be repeated`() throws {
        let bench = Bench()
        bench.create()
        let closing = bench.append("1") { $0.closes = true }
        #expect(closing.value?.isClosed == true)
        for bench in [bench, bench.reopened()] {
            let late = bench.append("2")
            #expect(late.error?.code == "channel_closed")
            #expect(late.error?[detail: "tail"] == "0000000000000001")
            #expect(bench.append([]) { $0.closes = true }.value?.isReplay == true)
            #expect(bench.append("2") { $0.closes = true }.error?.code == "channel_closed")
            #expect(try bench.channel().tail.isClosed)
            #expect(try bench.whole() == [1])
        }
    }

    @Test func `that closed as a producer's may be repeated by that producer alone`() throws {
        let bench = Bench()
        bench.create()
        func close(_ bench: Bench, _ id: String) -> Answer<Appended> {
            bench.append("1") {
                $0.closes = true
                $0.producer = ProducerClaim(id: id, epoch: 0, sequence: 0)
            }
        }
        #expect(close(bench, "p").value?.isReplay == false)
        for bench in [bench, bench.reopened()] {
            #expect(close(bench, "p").value?.isReplay == true)
            #expect(close(bench, "q").error?.code == "channel_closed")
        }
    }

    @Test func `stamps times that never decrease, even after the clock has been set back`() throws {
        var bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        for step in [5_000, -9_000, 100, -100] {
            bench.world.step(clock: .milliseconds(step))
            bench.append([NewEntry(.message, nil, ("text", "x"))], to: "agents/k/i")
            if step == 100 { bench = bench.reopened() }
        }
        let times = try bench.whole("agents/k/i").map { $0["at"]!.string! }
        #expect(times == times.sorted())
        #expect(times.count == 4)
    }

    // MARK: Owners

    @Test func `as the owner of an epoch that is over is fenced`() throws {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        func append(_ epoch: EpochClaim) -> Answer<Appended> {
            bench.append([NewEntry(.emit, nil, ("name", "x"))], to: "agents/k/i") { $0.owner.epoch = epoch }
        }
        #expect(append(.takes(after: 0)).value != nil)
        #expect(append(.holds(1)).value != nil)
        #expect(append(.holds(0)).error?.code == "fenced")
        #expect(append(.takes(after: 0)).error?.code == "fenced")
        #expect(append(.takes(after: 1)).value != nil)
        let stale = append(.holds(1))
        #expect(stale.error?.code == "fenced")
        #expect(stale.error?[detail: "epoch"] == 2)
        #expect(try bench.whole("agents/k/i").count == 3)
    }

    @Test func `as the owner of an epoch is judged within a commit too`() throws {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        let answers = [EpochClaim.takes(after: 0), .takes(after: 0), .holds(0), .holds(1)].map { epoch in
            bench.append([NewEntry(.emit, nil, ("name", "x"))], to: "agents/k/i", commits: false) { $0.owner.epoch = epoch }
        }
        bench.writer.pump()
        #expect(answers.map { $0.error?.code } == [nil, "fenced", "fenced", nil])
        #expect(try bench.whole("agents/k/i").count == 2)
    }

    @Test func `as the owner of what was deleted and recreated is fenced`() throws {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        let id = try bench.channel("agents/k/i").id
        bench.delete("agents/k/i")
        bench.create("agents/k/i", isAgent: true)
        let late = bench.append([NewEntry(.emit, nil, ("name", "x"))], to: "agents/k/i") {
            $0.owner.epoch = .holds(0)
            $0.id = id
        }
        #expect(late.error?.code == "fenced")
        #expect(try bench.whole("agents/k/i").isEmpty)
    }
}
