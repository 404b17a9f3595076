import ParleyChannels
import ParleySystem
import Testing

@Suite struct `The row of an undecided entry` {
    @Test func `is read back as it was written`() {
        var conditional = InboxRow(.message)
        (conditional.turn, conditional.byteCount) = (77, 1_000)
        var named = InboxRow(.signal)
        (named.name, named.hasOffset, named.turn) = (InboxRow.digest(name: "go"), true, 5)
        var redirecting = InboxRow(.interrupt)
        redirecting.hasText = true
        for row in [InboxRow(.cancel), conditional, named, redirecting] {
            #expect(row.bytes.withUnsafeBytes { InboxRow($0) } == row)
        }
    }

    @Test func `of one byte is from before there was more`() {
        let bytes: Bytes = [EntryKind.signal.rawValue]
        #expect(bytes.withUnsafeBytes { InboxRow($0) } == InboxRow(.signal))
        #expect(bytes.withUnsafeBytes { InboxRow.isWhole($0) } == false)
    }
}

@Suite struct `A list of offsets` {
    @Test(arguments: 0..<20 as Range<UInt64>)
    func `is a sorted set`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        var (list, model) = (OffsetList(), Set<UInt64>())
        for _ in 0..<4_000 {
            let offset = random.next() % 3_000
            if random.next() % 3 == 0 {
                let victim = random.next() % 2 == 0 ? model.min() ?? offset : offset
                list.remove(victim)
                model.remove(victim)
            } else {
                list.insert(offset)
                model.insert(offset)
            }
            let after = random.next() % 3_000
            #expect(list.first(after: after) == model.filter { $0 > after }.min())
        }
        #expect(Array(list.all) == model.sorted())
        #expect(list.count == model.count)
    }
}
