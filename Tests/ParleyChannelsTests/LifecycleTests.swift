import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Creating and removing channels` {
    @Test func `creating twice with the same properties is creating once`() throws {
        let bench = Bench()
        #expect(bench.create(type: "text/plain").value?.isNew == true)
        bench.append("x")
        for bench in [bench, bench.reopened()] {
            let again = bench.create(type: "TEXT/plain; charset=utf-8").value
            #expect(again?.isNew == false)
            #expect(again?.tail == 1)
            #expect(bench.create(type: "text/html").error?.code == "channel_exists")
            #expect(bench.create(type: "text/plain", isClosed: true).error?.code == "channel_exists")
        }
    }

    @Test func `what is recreated has nothing of what was removed`() throws {
        let bench = Bench()
        bench.create()
        bench.append("1", "2") {
            $0.idempotency = IdempotencyKey(key: "k", body: [1])
            $0.sequence = "z"
        }
        bench.append("3") { $0.producer = ProducerClaim(id: "p", epoch: 7, sequence: 0) }
        let old = try bench.channel().id
        bench.delete()
        #expect(try bench.channels.find("a") == nil)
        for family in [Family.log, .idempotency, .producers, .names, .inbox, .states] { #expect(try bench.rows(family) == 0, "\(family)") }
        bench.create()
        #expect(try bench.channel().id != old)
        #expect(bench.append("9") { $0.idempotency = IdempotencyKey(key: "k", body: [2]) }.value?.offsets == [1])
        #expect(bench.append("8") { $0.sequence = "a" }.value?.offsets == [2])
        #expect(bench.append("7") { $0.producer = ProducerClaim(id: "p", epoch: 0, sequence: 0) }.value?.offsets == [3])
        #expect(try bench.whole() == [9, 8, 7])
        #expect(try bench.reopened().whole() == [9, 8, 7])
    }

    @Test func `removed and recreated within one commit it is empty`() throws {
        let bench = Bench()
        bench.create()
        bench.append("1")
        let before = bench.append("2", commits: false) { $0.idempotency = IdempotencyKey(key: "k", body: [1]) }
        bench.delete(commits: false)
        let between = bench.append("3", commits: false)
        bench.create(commits: false)
        let after = bench.append("4", commits: false) { $0.idempotency = IdempotencyKey(key: "k", body: [2]) }
        bench.writer.pump()
        #expect(before.value?.offsets == [2])
        #expect(between.error?.code == "channel_not_found")
        #expect(after.value?.offsets == [1])
        #expect(try bench.whole() == [4])
        #expect(try bench.reopened().whole() == [4])
        #expect(try bench.rows(.idempotency) == 1)
    }

    @Test func `made and removed within one commit it is not there`() throws {
        let bench = Bench()
        bench.create(commits: false)
        bench.append("1", commits: false)
        bench.delete(commits: false)
        bench.writer.pump()
        #expect(try bench.channels.find("a") == nil)
        #expect(try bench.rows(.log) == 0)
        #expect(try bench.reopened().channels.find("a") == nil)
    }

    @Test func `removing what is not there is an error`() {
        #expect(Bench().delete().error?.code == "channel_not_found")
    }

    @Test func `an agent that was removed is not raised by a late retry, but by creating it`() throws {
        let name = "agents/k/i"
        let bench = Bench()
        let row = ChannelRow(name: name, contentType: ContentType.json, isAgent: true, created: bench.world.now)
        func send(_ bench: Bench) -> Answer<Appended> {
            bench.append([NewEntry(.message, nil, ("text", "x"))], to: name) {
                $0.creates = row
                $0.isInput = true
            }
        }
        #expect(send(bench).value?.offsets == [1])
        bench.delete(name)
        for bench in [bench, bench.reopened()] {
            #expect(try bench.channels.isDeleted(name))
            #expect(send(bench).error?.code == "agent_deleted")
            #expect(try bench.rows(.index) == 0)
        }
        bench.create(name, isAgent: true)
        #expect(try !bench.channels.isDeleted(name))
        #expect(send(bench).value?.offsets == [1])
        #expect(try bench.rows(.inbox) == 1)
        #expect(try bench.rows(.index) == 1)
    }

    @Test func `a plain stream that was removed leaves no trace`() throws {
        let bench = Bench()
        bench.create()
        bench.delete()
        #expect(try !bench.channels.isDeleted("a"))
        #expect(try bench.rows(.names) == 0)
    }

    @Test func `its neighbours keep what they have`() throws {
        let bench = Bench()
        // Of so many names several share a partition.
        let names = (0..<200).map { "n\($0)" }
        for name in names { bench.create(name, commits: false) }
        for name in names { bench.append("1", to: name, commits: false) { $0.idempotency = IdempotencyKey(key: "k", body: [1]) } }
        bench.writer.pump()
        for name in names where name.hasSuffix("3") { bench.delete(name, commits: false) }
        bench.writer.pump()
        let after = bench.reopened()
        for name in names {
            #expect(try (after.channels.find(name) == nil) == name.hasSuffix("3"))
            if !name.hasSuffix("3") { #expect(try after.whole(name) == [1]) }
        }
        #expect(try after.rows(.idempotency) == 180)
    }
}
