import ParleyChannels
import ParleyLog
import ParleySystem
import Testing

@Suite struct `Listing channels` {
    @Test func `gives names in their order, over all partitions, in pages, and none that is gone`() throws {
        let bench = Bench()
        let names = (0..<200).map { "c\($0)" } + ["a", "b/1", "b/2", "b/2/3", "z", "ä"]
        for name in names { bench.create(name) }
        bench.create("agents/x/y", isAgent: true)
        bench.create("gone")
        bench.delete("gone")
        bench.delete("agents/x/y")
        bench.append("1", "2", to: "b/1")
        func bytewise(_ names: [String]) -> [String] { names.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) } }
        for limit in [1, 7, 64, 1_000] {
            var (found, after) = ([ChannelListing](), String?.none)
            repeat {
                let page = try bench.channels.list(prefix: "", after: after, limit: limit)
                #expect(page.channels.count <= limit)
                found += page.channels
                after = page.next
            } while after != nil
            #expect(found.map(\.name) == bytewise(names))
            #expect(found.first { $0.name == "b/1" }?.tail == 2)
        }
        #expect(try bench.channels.list(prefix: "b/", after: nil, limit: 10).channels.map(\.name) == ["b/1", "b/2", "b/2/3"])
        #expect(try bench.channels.list(prefix: "b/", after: "b/2", limit: 10).channels.map(\.name) == ["b/2/3"])
        #expect(try bench.channels.list(prefix: "c", after: "a", limit: 1).channels.map(\.name) == ["c0"])
        #expect(try bench.channels.list(prefix: "nothing", after: nil, limit: 10).channels.isEmpty)
    }

    @Test func `leaves out what is kept for its forks only`() throws {
        let bench = Bench()
        bench.create("a")
        bench.append("1")
        bench.fork("b", from: "a")
        bench.delete("a")
        #expect(try bench.channels.list(prefix: "", after: nil, limit: 10).channels.map(\.name) == ["b"])
    }

    @Test func `continues behind an agent that has changed its state, or is gone`() throws {
        let bench = Bench()
        let names = (0..<60).map { "agents/k/a\($0)" }
        for name in names { bench.create(name, isAgent: true) }
        func page(_ after: String?, _ statuses: [AgentStatus] = AgentStatus.allCases) throws -> [String] {
            var found: [String] = []
            try AgentIndex.list(bench.log, statuses, after: after) { name, _ in
                found.append(name)
                return found.count < 7
            }
            return found
        }
        var (found, after, index) = ([String](), String?.none, 0)
        while let last = try page(after).last {
            found += try page(after)
            // Some run, some end; the last of every other page is deleted.
            let status = AgentStatus.allCases[index % 6]
            bench.append(to: last) { append in append.owner.rows = [.status(status, turn: nil)] }
            if index % 2 == 1 { bench.delete(last) }
            (after, index) = (last, index + 1)
        }
        #expect(found.count == 60 && Set(found) == Set(names))
        #expect(try page(nil, [.waiting]).allSatisfy { found.contains($0) } && !page(nil, [.waiting]).isEmpty)
        #expect(try page("agents/k/never").count <= 7)
    }

    @Test func `takes agents of all states in one order, however many there are`() throws {
        let bench = Bench()
        // All in one partition, and more than are read at once.
        let names = (0..<60_000).map { "agents/k/a\($0)" }.filter { Placement.partition(of: $0) == 3 }.prefix(700)
        for (index, name) in names.enumerated() {
            bench.create(name, isAgent: true, commits: false)
            guard index % 3 > 0 else { continue }
            let status: AgentStatus = index % 3 == 1 ? .running : .closed
            bench.append("x", to: name, commits: false) { append in
                append.owner.rows = [.status(status, turn: nil)]
            }
        }
        bench.writer.pump()
        var found: [String] = []
        try AgentIndex.list(bench.log, AgentStatus.allCases, after: nil) { name, _ in
            found.append(name)
            return true
        }
        #expect(names.count == 700 && found == Array(names))
    }
}
