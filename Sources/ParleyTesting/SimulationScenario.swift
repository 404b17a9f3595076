internal import ParleySystem

/// The clients of a simulated run and their wishes, all from a seed.
package struct SimulationScenario: Sendable {
    package let seed: UInt64
    let clients: [SimulationClient]
    let readers: [SimulationReader]
    /// The names of all channels that there may ever be.
    package let channels: [String]
    package let requests: [SimulationHistory.Request]

    /// - Parameters:
    ///   - aim: A kind of commit that there should be some of.
    ///   - palette: The operations of programs; with all of them, turns wait for people and clients come at the worst moments.
    package init(seed: UInt64, aim: String, palette: SimulationProgram.Palette = .quick) {
        var random = SplitMix64(seed: seed)
        self.init(
            seed: seed, wishes: palette == .all ? SimulationScenario.patient(&random) : SimulationScenario.quick(aim, &random), &random)
    }

    private static func quick(_ aim: String, _ random: inout SplitMix64) -> [[SimulationClient.Wish]] {
        var wishes: [[SimulationClient.Wish]] = []
        for number in 0..<Int.random(in: 2...4, using: &random) { wishes += agent("agents/sim/a\(number)", aim, &random) }
        for number in 0..<Int.random(in: 1...2, using: &random) { wishes += stream("streams/s\(number)", aim, &random) }
        return wishes
    }

    private init(seed: UInt64, wishes: [[SimulationClient.Wish]], _ random: inout SplitMix64) {
        self.seed = seed
        clients = wishes.enumerated().map {
            SimulationClient(name: "client\($0)", wishes: SimulationScenario.numbered($1, client: $0, &random))
        }
        requests = clients.flatMap(\.requests)
        channels = Set(requests.map(\.channel)).sorted()
        let names = channels
        readers = (0..<(names.count + 2)).map { number in
            SimulationReader(number: number, name: number < names.count ? names[number] : names.randomElement(using: &random)!)
        }
    }

    /// The clients of one agent: some that talk to it, and maybe one that ends it.
    private static func agent(_ name: String, _ aim: String, _ random: inout SplitMix64) -> [[SimulationClient.Wish]] {
        func messages(_ count: Int, _ random: inout SplitMix64) -> [SimulationClient.Wish] {
            (0..<count).map { _ in wish(name, .message(SimulationProgram(seed: program(aim, &random))), &random) }
        }
        var clients = (0..<Int.random(in: 1...2, using: &random)).map { _ in messages(Int.random(in: 1...3, using: &random), &random) }
        // A client that talks to its turns.
        if SimulationScenario.controls.contains(aim) || Int.random(in: 0..<2, using: &random) == 0 {
            clients.append((0..<Int.random(in: 1...8, using: &random)).map { _ in wish(name, control(aim, &random), &random) })
        }
        switch Int.random(in: 0..<4, using: &random) {
        case _ where aim == "agent.closed" || aim == "close", 0: clients[0].append(wish(name, .close, &random))
        case _ where aim == "delete", 1:
            // Deleted and recreated, so that what is left of its first life could be mistaken for part of the second.
            clients[0] += [wish(name, .delete, &random), wish(name, .createAgent, &random)] + messages(2, &random)
        default: break
        }
        return clients
    }

    /// The kinds of entries that a client which talks to turns brings about.
    private static let controls: Set = [
        "steer", "interrupt", "cancel", "approve", "deny", "signal", "approval.decided", "turn.interrupted", "turn.cancelled",
    ]

    private static func control(_ aim: String, _ random: inout SplitMix64) -> SimulationClient.Action {
        let all: [(kinds: [String], action: SimulationClient.Action)] = [
            (["steer"], .steer), (["interrupt", "turn.interrupted"], .interrupt(redirects: false)),
            (["interrupt"], .interrupt(redirects: true)),
            (["cancel", "turn.cancelled"], .cancel), (["approve", "approval.decided"], .decide(isApproved: true)),
            (["deny", "approval.decided"], .decide(isApproved: false)), (["signal"], .signal("go")), (["signal"], .signal("never")),
        ]
        let aimed = all.filter { $0.kinds.contains(aim) }
        return (aimed.isEmpty || Int.random(in: 0..<3, using: &random) == 0 ? all : aimed).randomElement(using: &random)!.action
    }

    private static func stream(_ name: String, _ aim: String, _ random: inout SplitMix64) -> [[SimulationClient.Wish]] {
        var owner = [wish(name, .createStream, &random)]
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            owner.append(wish(name, .append(items: Int.random(in: 1...3, using: &random)), &random))
        }
        if Bool.random(using: &random) || aim == "close of a stream" { owner.append(wish(name, .closeStream, &random)) }
        if Int.random(in: 0..<3, using: &random) == 0 {
            owner += [wish(name, .delete, &random), wish(name, .createStream, &random), wish(name, .append(items: 2), &random)]
        }
        // The producer has a stream of its own: an append refused by the end of another's would be a gap in its sequence.
        var producer = [wish(name + "p", .createStream, &random)]
        for sequence in 0..<Int.random(in: 1...5, using: &random) {
            var item = wish(name + "p", .produce, &random)
            item.sequence = UInt64(sequence)
            producer.append(item)
        }
        return [owner, producer]
    }

    /// A program that writes what is aimed at, or, now and then, any.
    private static func program(_ aim: String, _ random: inout SplitMix64) -> UInt64 {
        let seeds = (0..<20).map { _ in random.next() }
        return Int.random(in: 0..<3, using: &random) == 0 ? seeds[0] : seeds.first { SimulationProgram(seed: $0).writes(aim) } ?? seeds[0]
    }

    static func wish(_ channel: String, _ action: SimulationClient.Action, _ random: inout SplitMix64) -> SimulationClient.Wish {
        let pause = [0, 0, 3, 20, 200, 3_000].randomElement(using: &random)!
        return SimulationClient.Wish(
            id: "", channel: channel, action: action, pause: pause, isDoubled: Int.random(in: 0..<4, using: &random) == 0)
    }

    private static func numbered(_ wishes: [SimulationClient.Wish], client: Int, _ random: inout SplitMix64) -> [SimulationClient.Wish] {
        wishes.enumerated().map { index, wish in
            var wish = wish
            wish.id = "r\(client)-\(index)"
            // Creating and deleting twice is another wish than doing it once.
            switch wish.action {
            case .createAgent, .createStream, .delete: wish.isDoubled = false
            default: break
            }
            return wish
        }
    }
}
