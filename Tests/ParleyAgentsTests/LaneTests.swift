import ParleyAgents
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `The lane of an agent` {
    @Test func `does all parts of a delivery before the next delivery, and what each sets off in between`() throws {
        let order = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let lane = Lane(id: 1, world: world)
            let order = Monitor<[String]>([])
            let note = { @Sendable (name: String) in order.withLock { $0.append(name) } }
            lane.deliver {
                note("first")
                Task(executorPreference: lane) { note("its task") }
                lane.deliver(parts: [
                    {
                        note("part 1")
                        Task(executorPreference: lane) { note("its task") }
                    }, { note("part 2") },
                ])
            }
            lane.deliver { note("second") }
            world.settle()
            return order.withLock { $0 }
        }
        #expect(order == ["first", "its task", "part 1", "its task", "part 2", "second"])
    }
}
