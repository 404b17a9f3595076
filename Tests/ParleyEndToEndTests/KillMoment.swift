import Foundation
import ParleySystem

/// When a node is killed in the middle of a turn.
enum KillMoment: Sendable, CustomStringConvertible {
    /// At the n-th passage of a failpoint of the executable.
    case failpoint(String, Int)
    /// Once the upstream has generated so many tokens, and some microseconds later.
    case tokens(Int, microseconds: Int)
    /// So long after the message was sent.
    case after(milliseconds: Int)

    var description: String {
        switch self {
        case .failpoint(let name, let passage): "\(name):\(passage)"
        case .tokens(let count, let microseconds): "token \(count) + \(microseconds) us"
        case .after(let milliseconds): "\(milliseconds) ms"
        }
    }

    /// From `PARLEY_SEED`, or new.
    static let seed = ProcessInfo.processInfo.environment["PARLEY_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0..<1_000_000)
    static let isLong = ProcessInfo.processInfo.environment["PARLEY_LONG"] == "1"

    /// 25 moments, 200 with `PARLEY_LONG=1`: each named place at least once, the rest at random.
    static let all: [KillMoment] = {
        var random = SplitMix64(seed: seed)
        var moments = places.map { place in place.moment(&random) }
        let count = isLong ? 200 : 25
        while moments.count < count {
            switch Int.random(in: 0..<4, using: &random) {
            case 0: moments.append(.after(milliseconds: Int.random(in: 0...900, using: &random)))
            case 1: moments.append(places.randomElement(using: &random)!.moment(&random))
            default:
                moments.append(.tokens(Int.random(in: 1...299, using: &random), microseconds: Int.random(in: 0...5_000, using: &random)))
            }
        }
        return moments
    }()

    private struct Place {
        var name: String
        var passages: ClosedRange<Int>

        func moment(_ random: inout SplitMix64) -> KillMoment { .failpoint(name, Int.random(in: passages, using: &random)) }
    }

    /// The first commits are the making of the channel, the message, the turn's start, steps; then come those of text.
    private static let places = [
        Place(name: "commit.before", passages: 1...1), Place(name: "commit.before", passages: 2...2),
        Place(name: "commit.before", passages: 3...9),
        Place(name: "commit.before", passages: 10...40), Place(name: "commit.during", passages: 2...3),
        Place(name: "commit.during", passages: 4...40),
        Place(name: "commit.after", passages: 2...2), Place(name: "commit.after", passages: 3...9),
        Place(name: "commit.after", passages: 10...40),
        Place(name: "answer.before", passages: 1...1), Place(name: "model.delta", passages: 1...2),
        Place(name: "model.delta", passages: 3...298),
        Place(name: "model.delta", passages: 299...300), Place(name: "model.finish", passages: 1...1),
        Place(name: "step.completed", passages: 1...1),
        Place(name: "turn.end", passages: 1...1),
    ]
}
