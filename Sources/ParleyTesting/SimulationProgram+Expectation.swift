package import ParleySystem

extension SimulationProgram {
    /// As a message names it.
    var text: String { "\(seed) \(palette.rawValue)" }

    init?(_ text: String) {
        let parts = text.split(separator: " ")
        guard parts.count == 2, let seed = UInt64(parts[0]), let palette = Palette(rawValue: String(parts[1])) else { return nil }
        self.init(seed: seed, palette: palette)
    }

    /// The expected result of one operation, in the order of the program.
    package enum Expectation: Sendable, Equatable {
        case exactly(JSON)
        case anyOf([JSON])
        /// The text that the model step at this path recorded.
        case text(path: String)
        /// The same of the last of the steps of that name.
        case lastText(path: String)
        /// The entries read of this stream: see ``SimulationFollowing``.
        case followed(stream: Int, count: Int, mayTimeOut: Bool)
    }

    package var expectations: [Expectation] { SimulationProgram.expectations(operations, prefix: "") }

    private static func expectations(_ operations: [Operation], prefix: String) -> [Expectation] {
        operations.enumerated().flatMap { index, operation -> [Expectation] in
            switch operation {
            case .step(let value, _, _): return [.exactly(.integer(Int64(value)))]
            case .once: return [.anyOf(["done", "outcome_unknown"])]
            case .doomed: return [.exactly("doomed")]
            case .sleep: return [.exactly("slept")]
            case .wait: return [.anyOf(["signalled", "wait_timeout"])]
            case .approval: return [.anyOf(["approved", "denied", "expired"])]
            case .generate: return [.text(path: "\(prefix)generate\(index)")]
            case .emit: return []
            case .chance: return [.exactly("same")]
            case .steady: return [.exactly("steady")]
            case .listen: return [.exactly("signalled")]
            case .ask: return [.anyOf(["approved", "denied"])]
            case .race: return [.anyOf(["signalled", "slept"])]
            case .respond: return [.lastText(path: "\(prefix)respond\(index)")]
            case .recall, .compensate: return []
            case .follow(let stream, let count, let milliseconds):
                return [.followed(stream: stream, count: count, mayTimeOut: milliseconds != nil)]
            case .shielded(let operations): return expectations(operations, prefix: "\(prefix)shielded\(index)/")
            case .map(let items): return items.enumerated().flatMap { expectations($1, prefix: "\(prefix)map\(index)/\($0)/") }
            case .scopes(let tasks): return tasks.enumerated().flatMap { expectations($1, prefix: "\(prefix)scope\(index)x\($0)/") }
            }
        }
    }

    /// The data of the program's `emit` entries that are in no task of their own: their order is fixed.
    package var emits: [JSON] { SimulationProgram.emits(operations).sorted { $0.text < $1.text } }

    private static func emits(_ operations: [Operation]) -> [JSON] {
        operations.flatMap { operation -> [JSON] in
            switch operation {
            case .emit(let value): [.integer(Int64(value))]
            case .map(let items), .scopes(let items): items.flatMap { emits($0) }
            case .shielded(let operations): emits(operations)
            default: []
            }
        }
    }
}
