import Foundation
import ParleySystem

extension String {
    /// One byte per character, so that tests can write bytes above ASCII.
    var latin1: Bytes { unicodeScalars.map { UInt8(truncatingIfNeeded: $0.value) } }
}

/// The seed of a test run: from `PARLEY_SEED`, or new.
enum Seed {
    static let value = ProcessInfo.processInfo.environment["PARLEY_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0...UInt64.max)
}

/// A random sequence that a seed decides (SplitMix64).
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
        return mixed ^ mixed >> 31
    }
}
