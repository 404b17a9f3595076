package import ParleySystem

/// One entry as it is stored: frames stand packed one behind another in the value of a commit.
///
///     frame     u32 bytes that follow | u8 kind | u8 flags | payload
///     data      the bytes as they were appended
///     hole      u64 how many offsets it stands for
///     others    u64 at (ms) | [position] | body
///     position  if flag 1: u64 turn | u32 attempt | u16 bytes of the step path | step path
///     body      the members of the entry's JSON object that are its own, comma-separated, without braces
///     of text   u8 part | u32 pieces | u64 index | if flag 2: u64 continues_at | the delta in UTF-8
///
/// Numbers are big-endian. Offsets are not stored: the first is in the key, the rest count on. What every reader needs to filter and to
/// replay stands in front of the JSON, so that neither parses it.
package struct Frame {
    package var kind: EntryKind
    package var flags: UInt8
    package var payload: UnsafeRawBufferPointer

    package static let headerBytes = 6

    package enum Flag {
        /// The entry belongs to a turn: a position follows.
        package static let position: UInt8 = 1
        /// A `text` that is the first of an attempt which continues from an earlier one.
        package static let continues: UInt8 = 2
        /// The body has its own `id`.
        package static let hasID: UInt8 = 4
    }
}

/// Where in an agent's work an entry belongs.
package struct Position: Hashable, Sendable {
    /// The offset of the turn's input.
    package var turn: UInt64
    /// The path of the step; empty for entries of the turn itself.
    package var step: String
    /// From 1; 0 where there is none.
    package var attempt: UInt32

    package init(turn: UInt64, step: String = "", attempt: UInt32 = 0) {
        self.turn = turn
        self.step = step
        self.attempt = attempt
    }
}

/// An entry to be appended.
package struct NewEntry: Sendable {
    package enum Content: Sendable {
        case data(Bytes)
        /// JSON members without braces, already validated.
        case members(Bytes, hasID: Bool = false)
        case text(TextDelta)
    }

    package var kind: EntryKind
    package var position: Position?
    package var content: Content
    /// What the inbox keeps of it, where that is known already.
    package var inbox: InboxRow?

    package init(data: Bytes) {
        kind = .data
        content = .data(data)
    }

    package init(_ kind: EntryKind, _ position: Position? = nil, members: Bytes, hasID: Bool = false) {
        self.kind = kind
        self.position = position
        content = .members(members, hasID: hasID)
    }

    package init(_ kind: EntryKind, _ position: Position? = nil, _ members: (String, JSON?)...) {
        self.init(kind, position, members: NewEntry.join(members))
    }

    package init(text: TextDelta, at position: Position) {
        kind = .text
        self.position = position
        content = .text(text)
    }

    package static func join(_ members: [(String, JSON?)]) -> Bytes {
        var output = Bytes()
        for (name, value) in members {
            guard let value else { continue }
            if !output.isEmpty { output.append(UInt8(ascii: ",")) }
            JSON.write(string: name, to: &output)
            output.append(UInt8(ascii: ":"))
            value.write(to: &output)
        }
        return output
    }

    /// About what it holds of memory while it waits for the writer.
    var cost: Int { 128 + byteCount }

    /// About how many bytes it will take, for bounds.
    package var byteCount: Int {
        switch content {
        case .data(let bytes): bytes.count + Frame.headerBytes
        case .members(let bytes, _): bytes.count + 64
        case .text(let text): text.delta.count + 80
        }
    }
}

/// A piece of what a model writes.
package struct TextDelta: Sendable, Equatable {
    package enum Part: UInt8, Sendable { case text, reasoning }

    package var part: Part
    /// Where it begins, in UTF-8 bytes of that part of the step's output.
    package var index: UInt64
    /// On the first piece of an attempt that continues: how many bytes of the earlier attempts stay.
    package var continuesAt: UInt64?
    /// How many pieces of the upstream's were merged into this one: about as many tokens.
    package var pieces: UInt32
    package var delta: Bytes

    package init(part: Part = .text, index: UInt64, continuesAt: UInt64? = nil, pieces: UInt32 = 1, delta: Bytes) {
        self.part = part
        self.index = index
        self.continuesAt = continuesAt
        self.pieces = pieces
        self.delta = delta
    }
}

// MARK: - Writing

extension NewEntry {
    /// Appends the entry's frame, stamped with `at`.
    package func write(to output: inout Bytes, at: Timestamp) {
        let start = output.count
        output.append(bigEndian: UInt32(0))
        output.append(kind.rawValue)
        output.append(0)
        var flags: UInt8 = 0
        if case .data(let bytes) = content {
            output.append(contentsOf: bytes)
        } else {
            output.append(bigEndian: at.keyed)
            if let position {
                flags |= Frame.Flag.position
                output.append(bigEndian: position.turn)
                output.append(bigEndian: position.attempt)
                output.append(bigEndian: UInt16(position.step.utf8.count))
                output.append(position.step)
            }
            switch content {
            case .data: break
            case .members(let bytes, let hasID):
                if hasID { flags |= Frame.Flag.hasID }
                output.append(contentsOf: bytes)
            case .text(let text):
                output.append(text.part.rawValue)
                output.append(bigEndian: text.pieces)
                output.append(bigEndian: text.index)
                if let continuesAt = text.continuesAt {
                    flags |= Frame.Flag.continues
                    output.append(bigEndian: continuesAt)
                }
                output.append(contentsOf: text.delta)
            }
        }
        output[start + 5] = flags
        Frame.setLength(of: start, in: &output)
    }
}

extension Frame {
    /// Makes the frame that begins at `start` end where `output` ends.
    package static func setLength(of start: Int, in output: inout Bytes) {
        let length = UInt32(output.count - start - 4)
        for byte in 0..<4 { output[start + byte] = UInt8(truncatingIfNeeded: length >> UInt32(24 - 8 * byte)) }
    }
}

extension Frame {
    /// Counts `pieces` more into the text frame that begins at `start`.
    package static func addPieces(_ pieces: UInt32, toTextAt start: Int, in output: inout Bytes) {
        var place = start + headerBytes + 8
        if output[start + 5] & Flag.position != 0 { place += 14 + Int(output.readBigEndian(at: place + 12, as: UInt16.self)) }
        let sum = output.readBigEndian(at: place + 1, as: UInt32.self) &+ pieces
        for byte in 0..<4 { output[place + 1 + byte] = UInt8(truncatingIfNeeded: sum >> UInt32(24 - 8 * byte)) }
    }
}

// MARK: - Reading

extension Frame {
    /// Walks packed frames; `visit` gets each with the offset of its entry (of a hole: of its last) and returns false to stop.
    ///
    /// - Returns: the offset of the last entry walked over, or `nil` when the bytes are not whole frames.
    @discardableResult
    package static func walk(
        _ bytes: UnsafeRawBufferPointer, first: UInt64, _ visit: (_ offset: UInt64, _ frame: Frame) -> Bool
    ) -> UInt64? {
        var position = 0
        var offset = first &- 1
        while position < bytes.count {
            guard position + headerBytes <= bytes.count else { return nil }
            let length = Int(bytes.readBigEndian(at: position, as: UInt32.self))
            guard length >= 2, position + 4 + length <= bytes.count, let kind = EntryKind(rawValue: bytes[position + 4]) else { return nil }
            let payload = UnsafeRawBufferPointer(rebasing: bytes[(position + headerBytes)..<(position + 4 + length)])
            let frame = Frame(kind: kind, flags: bytes[position + 5], payload: payload)
            guard frame.isWhole else { return nil }
            let (last, overflows) = offset.addingReportingOverflow(kind == .hole ? payload.readBigEndian(at: 0) : 1)
            guard !overflows else { return nil }
            offset = last
            position += 4 + length
            if !visit(offset, frame) { break }
        }
        return offset
    }

    /// Whether the payload is as long as kind and flags ask for: what is read from it relies on that.
    private var isWhole: Bool {
        switch kind {
        case .data: return flags & Flag.position == 0
        case .hole: return flags & Flag.position == 0 && payload.count == 8
        default:
            var count = 8
            if flags & Flag.position != 0 {
                guard payload.count >= 22 else { return false }
                count = 22 + Int(payload.readBigEndian(at: 20, as: UInt16.self))
            }
            if kind == .text { count += flags & Flag.continues == 0 ? 13 : 21 }
            return payload.count >= count
        }
    }

    /// When a stamped entry was committed; `nil` for plain data and holes.
    package var at: Timestamp? {
        kind.rawValue < 16 ? nil : Timestamp(milliseconds: payload.readBigEndian(at: 0))
    }

    package var position: Position? {
        guard flags & Flag.position != 0 else { return nil }
        let count = Int(payload.readBigEndian(at: 20, as: UInt16.self))
        let step = String(decoding: UnsafeRawBufferPointer(rebasing: payload[22..<(22 + count)]), as: UTF8.self)
        return Position(turn: payload.readBigEndian(at: 8), step: step, attempt: payload.readBigEndian(at: 16))
    }

    /// What stands behind stamp and position.
    private var rest: UnsafeRawBufferPointer {
        guard kind.rawValue >= 16 else { return payload }
        let start = flags & Flag.position == 0 ? 8 : 22 + Int(payload.readBigEndian(at: 20, as: UInt16.self))
        return UnsafeRawBufferPointer(rebasing: payload[start...])
    }

    /// The entry's own JSON members, without braces; not for `text`.
    package var members: UnsafeRawBufferPointer { rest }

    /// The entry's own members as a value.
    package var body: JSON {
        var bytes: Bytes = [UInt8(ascii: "{")]
        bytes.append(contentsOf: members)
        bytes.append(UInt8(ascii: "}"))
        return (try? JSON.parse(stored: bytes)) ?? .null
    }

    package var text: TextDelta? {
        guard kind == .text else { return nil }
        let rest = rest
        let continues = flags & Flag.continues != 0
        return TextDelta(
            part: TextDelta.Part(rawValue: rest[0]) ?? .text, index: rest.readBigEndian(at: 5),
            continuesAt: continues ? rest.readBigEndian(at: 13) : nil,
            pieces: rest.readBigEndian(at: 1), delta: Bytes(rest[(continues ? 21 : 13)...]))
    }
}

extension Frame {
    /// How many pieces of the upstream's stand in a `text`, without reading the rest of it.
    package var textPieces: Int { kind == .text ? Int(rest.readBigEndian(at: 1, as: UInt32.self)) : 0 }

    /// Whether the entry's own members begin with these bytes: a filter that costs no parsing.
    package func membersBegin(with prefix: Bytes) -> Bool {
        let members = members
        return members.count >= prefix.count && prefix.withUnsafeBytes { $0.elementsEqual(members.prefix(prefix.count)) }
    }
}

// MARK: - The wire

extension Frame {
    /// Writes the entry as the JSON object that readers get: the stamps, the position, then its own members.
    ///
    /// - Parameters:
    ///   - owner: The channel's name, which is the principal of what the agent itself writes.
    ///   - receipt: The entry's receipt, in views that fold them: members without braces.
    package func writeJSON(offset: UInt64, owner: String, receipt: Bytes? = nil, to output: inout Bytes) {
        if kind == .data {
            output.append(contentsOf: payload)
            return
        }
        output.append("{\"offset\":\"")
        Offset(offset).write(to: &output)
        output.append("\",\"at\":\"")
        output.append(contentsOf: at!.utf8)
        output.append("\",\"type\":\"\(kind.name)\"")
        if flags & Flag.hasID == 0 {
            output.append(",\"id\":\"")
            Offset(offset).write(to: &output)
            output.append(UInt8(ascii: "\""))
        }
        if !kind.isInput {
            output.append(",\"by\":")
            JSON.write(string: owner, to: &output)
        }
        if let position { write(position, to: &output) }
        if let text {
            write(text, to: &output)
        } else if !members.isEmpty {
            output.append(UInt8(ascii: ","))
            output.append(contentsOf: members)
        }
        if let receipt {
            output.append(",\"receipt\":{")
            output.append(contentsOf: receipt)
            output.append(UInt8(ascii: "}"))
        }
        output.append(UInt8(ascii: "}"))
    }

    private func write(_ position: Position, to output: inout Bytes) {
        output.append(",\"turn\":\"")
        Offset(position.turn).write(to: &output)
        output.append(UInt8(ascii: "\""))
        if !position.step.isEmpty {
            output.append(",\"step\":")
            JSON.write(string: position.step, to: &output)
        }
        if position.attempt > 0 { output.append(",\"attempt\":\(position.attempt)") }
    }

    private func write(_ text: TextDelta, to output: inout Bytes) {
        output.append(",\"part\":\"\(text.part)\",\"index\":\(text.index),\"delta\":")
        text.delta.withUnsafeBytes { JSON.write(string: $0, to: &output) }
        if let continuesAt = text.continuesAt { output.append(",\"continues_at\":\(continuesAt)") }
    }
}
