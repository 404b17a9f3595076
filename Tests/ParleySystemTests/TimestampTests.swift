import ParleySystem
import Testing

@Suite struct `Instants` {
    private static let corners: [Int64] = [
        .min, .min + 1, -62_167_219_200_001, -1, 0, 1, 1_767_225_600_000, 253_402_300_799_999, 253_402_300_800_000, .max - 1, .max,
    ]
    private static let lengths: [Duration] = [
        .seconds(Int64.min), .seconds(Int64.min / 1_000), .seconds(-1), .nanoseconds(-1), .zero, .nanoseconds(1), .seconds(1),
        .seconds(Int64.max / 1_000), .seconds(Int64.max / 2), .seconds(Int64.max),
    ]

    @Test func `of every length from every instant end within what text and keys can name, in order, and come back from both`() {
        var random = SplitMix64(seed: 7)
        let starts = Instants.corners + (0..<500).map { _ in Int64(bitPattern: random.next()) >> Int64.random(in: 0..<64, using: &random) }
        let lengths =
            Instants.lengths
            + (0..<50).map { _ in .milliseconds(Int64(bitPattern: random.next()) >> Int64.random(in: 0..<64, using: &random)) }
        for start in starts.map({ Timestamp(milliseconds: $0) }) {
            var ends: [Timestamp] = []
            for length in lengths.sorted() {
                let end = start.advanced(by: length)
                #expect((Timestamp.earliest...Timestamp.latest).contains(end), "\(start.milliseconds) and \(length)")
                #expect(Timestamp(end.description) == end)
                #expect(end.keyed == UInt64(max(0, end.milliseconds)) && end.clamped.milliseconds == Int64(end.keyed))
                ends.append(end)
            }
            #expect(ends == ends.sorted(), "a longer wait ends no earlier than a shorter one, from \(start.milliseconds)")
            #expect(Timestamp(start.description) != nil, "\(start.milliseconds)")
            #expect(start.keyed <= Timestamp.latest.keyed)
            for other in Instants.corners.map({ Timestamp(milliseconds: $0) }) {
                #expect((start.duration(to: other) > .zero) == (other > start))
                #expect((start.duration(to: other) < .zero) == (other < start))
            }
        }
    }

    @Test func `within the range are exact, rounded up to a millisecond`() {
        let start = Timestamp("2026-01-31T09:30:00.125Z")!
        #expect(start.advanced(by: .nanoseconds(1)).description == "2026-01-31T09:30:00.126Z")
        #expect(start.advanced(by: .seconds(-86_400)).description == "2026-01-30T09:30:00.125Z")
        #expect(Timestamp(milliseconds: 5).advanced(by: .milliseconds(-10)).description == "1969-12-31T23:59:59.995Z")
        #expect(Timestamp("1969-12-31T23:59:59.999Z")!.description == "1969-12-31T23:59:59.999Z", "text is what it was")
    }
}
