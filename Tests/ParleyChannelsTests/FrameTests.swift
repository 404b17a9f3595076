import ParleyChannels
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Frames` {
    @Test(arguments: 0..<200) func `give back what was written, whatever it is`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let at = Timestamp(milliseconds: Int64.random(in: 0...4_000_000_000_000, using: &random))
        let entries = (0..<20).map { _ in anyEntry(&random) }
        var bytes = Bytes()
        for entry in entries { entry.write(to: &bytes, at: at) }
        var index = 0
        let last = bytes.withUnsafeBytes { buffer in
            Frame.walk(buffer, first: 7) { offset, frame in
                let entry = entries[index]
                #expect(offset == UInt64(7 + index))
                #expect(frame.kind == entry.kind)
                #expect(frame.at == (entry.kind == .data ? nil : at))
                #expect(entry.kind == .data || frame.position == entry.position)
                switch entry.content {
                case .data(let bytes): #expect(Bytes(frame.payload) == bytes)
                case .members(let bytes, let hasID):
                    #expect(Bytes(frame.members) == bytes)
                    #expect((frame.flags & Frame.Flag.hasID != 0) == hasID)
                case .text(let text): #expect(frame.text == text)
                }
                index += 1
                return true
            }
        }
        #expect(last == UInt64(6 + entries.count))
        #expect(index == entries.count)
    }

    @Test func `hold a value from outside that is nested as deep as any may be`() throws {
        let deepest = try JSON.parse(String(repeating: "[", count: 256) + String(repeating: "]", count: 256))
        let wrapped: JSON = ["entries": [["value": deepest]]]
        let entry = NewEntry(.stepCompleted, Position(turn: 5, step: "a", attempt: 1), ("result", wrapped))
        var bytes = Bytes()
        entry.write(to: &bytes, at: Timestamp(milliseconds: 0))
        bytes.withUnsafeBytes { buffer in
            _ = Frame.walk(buffer, first: 1) { _, frame in
                #expect(frame.body["result"] == wrapped)
                #expect(EntryMembers(frame.members)["result"] == wrapped)
                return true
            }
        }
    }

    @Test func `that are cut off, or too short for their flags, are none`() throws {
        let position = Position(turn: 5, step: "a", attempt: 1)
        let entries = [
            NewEntry(.message, members: []), NewEntry(.emit, position, members: []),
            NewEntry(text: TextDelta(index: 3, continuesAt: 2, delta: []), at: position),
        ]
        for entry in entries {
            var bytes = Bytes()
            entry.write(to: &bytes, at: Timestamp(milliseconds: 0))
            #expect(last(of: bytes) == 1)
            // Whole by its length, and shorter than what its kind and flags say it has.
            while bytes.count > Frame.headerBytes {
                bytes.removeLast()
                #expect(last(of: bytes) == nil)
                Frame.setLength(of: 0, in: &bytes)
                #expect(last(of: bytes) == nil)
            }
        }
        let holes = Bytes([0, 0, 0, 10, EntryKind.hole.rawValue, 0]) + Bytes(repeating: 255, count: 8)
        #expect(last(of: holes) == .max)
        #expect(last(of: holes + holes) == nil)
        #expect(last(of: [0, 0, 0, 2, EntryKind.data.rawValue, Frame.Flag.position]) == nil)
    }

    private func last(of bytes: Bytes) -> UInt64? { bytes.withUnsafeBytes { Frame.walk($0, first: 1) { _, _ in true } } }

    @Test func `have a form on the wire that is JSON with the stamps in front`() throws {
        for kind in EntryKind.allCases where kind != .data && kind != .hole && kind != .text {
            var bytes = Bytes()
            NewEntry(kind, Position(turn: 5, step: "a/0/b#2", attempt: 3), ("note", "\"\n")).write(
                to: &bytes, at: Timestamp(milliseconds: 0))
            let json = try wire(bytes, offset: 9)
            #expect(json["type"]?.string == kind.name)
            #expect(json["offset"] == "0000000000000009")
            #expect(json["id"] == "0000000000000009")
            #expect(json["at"] == "1970-01-01T00:00:00.000Z")
            #expect(json["turn"] == "0000000000000005")
            #expect(json["step"] == "a/0/b#2")
            #expect(json["attempt"] == 3)
            #expect(json["note"] == "\"\n")
            #expect((json["by"] == nil) == kind.isInput)
        }
    }

    @Test func `have kinds with names and numbers of their own`() {
        #expect(Set(EntryKind.allCases.map(\.name)).count == EntryKind.allCases.count)
        #expect(EntryKind.message.rawValue == 16 && EntryKind.turnStarted.rawValue == 32 && EntryKind.emit.rawValue == 55)
    }

    @Test(arguments: 0..<20) func `that are cut anywhere are noticed`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        var bytes = Bytes()
        for _ in 0..<3 { anyEntry(&random).write(to: &bytes, at: Timestamp(milliseconds: 1)) }
        var ends: Set<Int> = [0]
        var whole = 0
        while whole < bytes.count {
            whole += 4 + Int(bytes.readBigEndian(at: whole, as: UInt32.self))
            ends.insert(whole)
        }
        for count in 0..<bytes.count {
            let last = bytes[..<count].withUnsafeBytes { Frame.walk($0, first: 1) { _, _ in true } }
            #expect((last == nil) == !ends.contains(count), "cut at \(count)")
        }
    }

    @Test func `of holes count for as many offsets as they stand for`() {
        var bytes = Bytes()
        NewEntry(data: [1]).write(to: &bytes, at: Timestamp(milliseconds: 0))
        bytes.append(bigEndian: UInt32(10))
        bytes += [EntryKind.hole.rawValue, 0]
        bytes.append(bigEndian: UInt64(40))
        NewEntry(data: [2]).write(to: &bytes, at: Timestamp(milliseconds: 0))
        var offsets: [UInt64] = []
        bytes.withUnsafeBytes {
            _ = Frame.walk($0, first: 1) { offset, _ in
                offsets.append(offset); return true
            }
        }
        #expect(offsets == [1, 41, 42])
    }

    private func wire(_ bytes: Bytes, offset: UInt64) throws -> JSON {
        var output = Bytes()
        bytes.withUnsafeBytes {
            _ = Frame.walk($0, first: offset) {
                $1.writeJSON(offset: $0, owner: "agents/k/i", to: &output); return true
            }
        }
        return try JSON.parse(output)
    }
}

private func anyEntry(_ random: inout SplitMix64) -> NewEntry {
    func text(_ random: inout SplitMix64) -> String {
        String((0..<Int.random(in: 0...30, using: &random)).map { _ in "ab/\"\\é日🙂\n\0".randomElement(using: &random)! })
    }
    let position = Position(turn: random.next(), step: text(&random), attempt: UInt32.random(in: 0...9, using: &random))
    switch Int.random(in: 0..<3, using: &random) {
    case 0: return NewEntry(data: (0..<Int.random(in: 0...300, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) })
    case 1:
        let delta = TextDelta(
            part: Bool.random(using: &random) ? .text : .reasoning, index: random.next(),
            continuesAt: Bool.random(using: &random) ? random.next() : nil,
            pieces: UInt32.random(in: 1...99, using: &random), delta: Bytes(text(&random).utf8))
        return NewEntry(text: delta, at: position)
    default:
        let kind = EntryKind.allCases.filter { ![.data, .hole, .text].contains($0) }.randomElement(using: &random)!
        let members = NewEntry.join([("x", .string(text(&random)))])
        return NewEntry(kind, Bool.random(using: &random) ? position : nil, members: members, hasID: Bool.random(using: &random))
    }
}
