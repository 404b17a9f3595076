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
}
