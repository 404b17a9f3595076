internal import ParleyAgents
internal import ParleySystem

/// Clients of agents whose turns wait for people: they come when an agent is about to be passivated, when its turn is marked as waiting, at the
/// very instant of a timer, and several at once.
extension SimulationScenario {
    static func patient(_ random: inout SplitMix64) -> [[SimulationClient.Wish]] {
        var wishes: [[SimulationClient.Wish]] = []
        for number in 0..<Int.random(in: 1...3, using: &random) {
            let policy = Bool.random(using: &random) ? ConcurrentInput.queue : ConcurrentInput.allCases.randomElement(using: &random)!
            wishes += talkers("agents/\(SimulationAgent.kind(policy))/a\(number)", &random)
        }
        if Int.random(in: 0..<3, using: &random) == 0 {
            let kind = SimulationMemory.kinds.randomElement(using: &random)!.kind
            wishes.append(
                (0..<5).map { number in
                    late("agents/\(kind)/m", .remember(Bool.random(using: &random) ? "note \(number)" : nil), &random)
                })
        }
        for number in 0..<2 { wishes.append(followed(SimulationProgram.followed(number), &random)) }
        return wishes
    }

    /// How long clients think, in milliseconds: mostly as long as an agent takes to be passivated, or a turn to be marked as waiting.
    private static let pauses = [0, 0, 0, 1, 5, 20, 190, 200, 205, 400, 1_990, 1_995, 2_000, 2_000, 2_005, 2_200, 4_000, 20_000, 100_000]

    private static func late(
        _ channel: String, _ action: SimulationClient.Action, _ random: inout SplitMix64
    ) -> SimulationClient.Wish {
        var wish = wish(channel, action, &random)
        wish.pause = pauses.randomElement(using: &random)!
        if Int.random(in: 0..<12, using: &random) == 0 { wish.condition = Bool.random(using: &random) ? .turn : .offset }
        return wish
    }

    private static func talkers(_ name: String, _ random: inout SplitMix64) -> [[SimulationClient.Wish]] {
        func messages(_ count: Int, _ random: inout SplitMix64) -> [SimulationClient.Wish] {
            (0..<count).map { _ in late(name, .message(SimulationProgram(seed: random.next(), palette: .all)), &random) }
        }
        var clients = (0..<Int.random(in: 1...2, using: &random)).map { _ in messages(Int.random(in: 1...3, using: &random), &random) }
        for _ in 0..<Int.random(in: 0...2, using: &random) {
            // Now and then more is said than an agent keeps in memory.
            let padding = Int.random(in: 0..<30, using: &random) == 0 ? 90_000 : 0
            clients.append(
                (0..<Int.random(in: 1...6, using: &random)).map { _ in
                    var wish = late(name, control(&random), &random)
                    wish.padding = padding
                    return wish
                })
        }
        switch Int.random(in: 0..<10, using: &random) {
        case 0: clients[0].append(late(name, .close, &random))
        case 1: clients[0] += [late(name, .delete, &random), late(name, .createAgent, &random)] + messages(2, &random)
        default: break
        }
        return clients
    }

    private static func control(_ random: inout SplitMix64) -> SimulationClient.Action {
        let all: [SimulationClient.Action] = [
            .steer, .steer, .interrupt(redirects: false), .interrupt(redirects: true), .interrupt(redirects: true), .cancel,
            .resume,
            .decide(isApproved: true), .decide(isApproved: false), .signal("go"), .signal("go"), .signal("come"), .signal("never"),
        ]
        return all.randomElement(using: &random)!
    }

    /// A stream that grows now and then, and may be deleted and made again, within a moment or later, or closed.
    private static func followed(_ name: String, _ random: inout SplitMix64) -> [SimulationClient.Wish] {
        func some(_ random: inout SplitMix64) -> [SimulationClient.Wish] {
            (0..<Int.random(in: 1...3, using: &random)).map { _ in
                late(name, .append(items: Int.random(in: 1...2, using: &random)), &random)
            }
        }
        var wishes = [late(name, .createStream, &random)] + some(&random)
        for _ in 0..<Int.random(in: 0...2, using: &random) {
            wishes.append(late(name, .delete, &random))
            var again = late(name, .createStream, &random)
            if Bool.random(using: &random) { again.pause = 0 }
            wishes += [again] + some(&random)
        }
        if Bool.random(using: &random) { wishes.append(late(name, .closeStream, &random)) }
        return wishes.map { wish in
            var wish = wish
            wish.condition = nil
            return wish
        }
    }
}
