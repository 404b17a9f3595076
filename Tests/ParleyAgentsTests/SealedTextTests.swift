import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

extension SimulatedNode {
    fileprivate func page(after offset: UInt64, bytesMax: Int = .max) throws -> (entries: [JSON], next: UInt64, isUpToDate: Bool) {
        let page = try channels.page(try channels.find(name)!, after: offset, view: .raw, bytesMax: bytesMax)
        return (try JSON.parse(page.body).array ?? [], page.next, page.isUpToDate)
    }
}

@Suite struct `Sealed text` {
    /// Two answers side by side and one after them, then a wait: most commits hold text of two steps.
    private static func probe(_ world: SimulatedWorld) -> AnyAgent {
        var options = ScriptedModel.Options()
        (options.tokens, options.rate) = (40, 20)
        let model = ScriptedModel(options, world: world)
        return agent { text, turn in
            let both = try await turn.map("both", ["one", "two"]) { text, turn in try await turn.generate("g", model, .user(text)).text }
            let last = try await turn.generate("last", model, .user(text)).text
            if text == "wait" { try await turn.sleep(.seconds(100_000)) }
            return .string((both + [last]).joined(separator: "|"))
        }
    }

    @Test func `goes in its time and leaves every offset valid`() throws {
        try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [Self.probe(world)])
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(3_000)))
            let before = try node.page(after: 0)
            let settled = try node.entries(name, view: .settled)
            #expect(before.entries.count { $0["type"] == "text" } > 60)
            let values = try node.rows(.log)
            world.run(deadline: world.now.advanced(by: .seconds(3_000)))
            let after = try node.page(after: 0)
            #expect(after.entries == before.entries.filter { $0["type"] != "text" })
            #expect(after.next == before.next && after.isUpToDate)
            #expect(try node.entries(name, view: .settled) == settled)
            #expect(try node.rows(.log) < values / 3, "holes that follow each other are one value")
            #expect(try node.channels.find(name)!.trims > 0)
            // From every offset there ever was: all that survives behind it, in whatever pages.
            for offset in 0...before.next {
                var (entries, place) = ([JSON](), offset)
                repeat {
                    let page = try node.page(after: place, bytesMax: 300)
                    #expect(page.next > place || page.isUpToDate)
                    entries += page.entries
                    place = page.next
                } while place < before.next
                #expect(entries == after.entries.filter { Offset(token: $0["offset"]!.string!)!.value > offset })
            }
            // And back.
            var offsets: [String] = []
            try node.channels.walkBack(try node.channels.find(name)!, from: before.next) { offset, frame in
                if frame.kind != .hole { offsets.append(Offset(offset).token) }
                return true
            }
            #expect(offsets.reversed() == after.entries.compactMap { $0["offset"]?.string })
        }
    }

    @Test func `of a turn that continues is gone while it waits, and it replays all the same`() throws {
        let (texts, output, whole) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [Self.probe(world)])
            node.send("wait", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10_000)))
            let texts = try node.entries(name).count { $0["type"] == "text" }
            world.run(deadline: world.now.advanced(by: .seconds(200_000)))
            let results = try node.entries(name).filter { $0["type"] == "step.completed" }.compactMap { $0["text"]?.string }
            return (texts, try node.entries(name).last?["output"]?.string, results)
        }
        #expect(texts == 0)
        #expect(whole.count == 3 && output?.split(separator: "|").count == 3)
        #expect(output?.hasSuffix(whole[2]) == true)
    }

    @Test func `that forks share stays`() throws {
        let (source, fork) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [Self.probe(world)])
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            let row = ChannelRow(name: "copy", contentType: ContentType.json, isAgent: false, created: world.now)
            var creation = CreateChannel(row)
            creation.fork = ForkRequest(source: name, offset: nil, subOffset: nil)
            node.channels.submit(creation)
            world.run(deadline: world.now.advanced(by: .seconds(10_000)))
            return (try node.entries(name), try node.entries("copy"))
        }
        #expect(source == fork && fork.contains { $0["type"] == "text" })
    }

    @Test func `a fork that begins in a hole is read to its end`() throws {
        let (pages, own) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [Self.probe(world)])
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10_000)))
            let row = ChannelRow(name: "copy", contentType: ContentType.json, isAgent: false, created: world.now)
            var creation = CreateChannel(row)
            creation.fork = ForkRequest(source: name, offset: 30, subOffset: nil)
            node.channels.submit(creation)
            node.channels.submit(Append(to: "copy", [NewEntry(data: Bytes("7".utf8))]))
            world.settle()
            let page = try node.channels.page(try node.channels.find("copy")!, after: 20, view: .raw, bytesMax: .max)
            return (page.next, page.body.text)
        }
        #expect(pages == 31 && own.hasSuffix("7]"))
    }

    /// Dies at every commit, of the answers and of the trimming: the same text survives, and nothing is left to be trimmed.
    @Test(arguments: 0..<60, [SimulatedLog.Outcome.lost, .durableUnacknowledged])
    func `goes once, whatever the process dies in`(crashAt: Int, outcome: SimulatedLog.Outcome) throws {
        let (types, rows) = try SimulatedNode.simulate {
            let log = SimulatedLog(outcome: { commit, _ in commit == crashAt ? outcome : .acknowledged })
            var world = SimulatedWorld(seed: 1)
            var node = try SimulatedNode(world, log, agents: [Self.probe(world)])
            node.send("go", to: name, key: "go")
            world.run(deadline: world.now.advanced(by: .seconds(5_000)))
            if log.crashed {
                world = SimulatedWorld(seed: UInt64(crashAt), now: world.now)
                node = try SimulatedNode(world, log.reopen(), agents: [Self.probe(world)])
                node.send("go", to: name, key: "go")
                world.run(deadline: world.now.advanced(by: .seconds(10_000)))
            }
            return (try node.entries(name).compactMap { $0["type"]?.string }, try node.rows(.index))
        }
        #expect(!types.contains("text") && types.last == "turn.completed")
        #expect(types.count { $0 == "step.completed" } == 3)
        #expect(rows == 1, "the agent's state alone")
    }
}
