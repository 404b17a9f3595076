package import ParleyLog
package import ParleySystem
internal import Synchronization

/// Text of a step that its result has sealed, and when to trim it.
///
/// The row is `[partition][131][due][channel][from]` of family `index`, to the channel's name, the turn, the step and the end of the stretch.
package struct SealedText: Sendable, Equatable {
    package var channelName: String
    package var turn: UInt64
    package var step: String
    /// The entries that it is between; the code that writes the row knows where it ends.
    package var from: UInt64
    package var upTo: UInt64

    package init(channelName: String, turn: UInt64, step: String, from: UInt64, upTo: UInt64 = 0) {
        (self.channelName, self.turn, self.step, self.from, self.upTo) = (channelName, turn, step, from, upTo)
    }

    func key(_ due: Timestamp, _ id: ChannelID) -> Bytes {
        var key = IndexMark.sealedText.key(due, id)
        key.append(bigEndian: from)
        return key
    }

    var value: Bytes {
        JSON.compact(
            ("channel", .string(channelName)), ("turn", .string(Offset(turn).token)), ("step", .string(step)),
            ("up_to", .string(Offset(upTo).token))
        ).bytes
    }

    init?(row: Bytes, _ value: Bytes) {
        func offset(_ json: JSON, _ name: String) -> UInt64? { json[name]?.string.flatMap { Offset(token: $0)?.value } }
        guard row.count == 27, let json = try? JSON.parse(value), let name = json["channel"]?.string, let step = json["step"]?.string,
            let turn = offset(json, "turn"), let upTo = offset(json, "up_to")
        else { return nil }
        self.init(channelName: name, turn: turn, step: step, from: row.readBigEndian(at: 19), upTo: upTo)
    }
}

/// Trims sealed text from the log after the retention time: the step's result contains it.
///
/// Every offset stays valid: trimmed entries leave a hole, which records how many there were.
package final class TrimService: Sendable {
    /// How long sealed text stays.
    package let retention: Duration
    private let world: any World
    private let rows: DueRows

    package init(channels: Channels, world: any World, retention: Duration) {
        (self.world, self.retention) = (world, retention)
        // Limited, because each trim rewrites a stretch of the log.
        rows = DueRows(
            .sealedText, log: channels.log, world: world, open: { channels.openPartitions }, atOnce: 8, pause: .milliseconds(50)
        ) { value, visit in
            // If the command is refused, the next check finds the row again.
            channels.submit(.trim(Trim(visit: visit, text: SealedText(row: visit.row, value))))
        }
    }

    /// The row that gets the text trimmed, for the append that seals it.
    package func row(_ text: SealedText) -> AppendRow { .sealed(text, due: world.now.advanced(by: retention)) }

    /// Such a row is in the log.
    package func sealed() { rows.set(world.now.advanced(by: retention)) }

    /// Sets the alarm for the first row. Cost: one seek a partition.
    package func start() throws(LogError) { try rows.start() }

    /// Looks for due rows in a partition that was opened.
    package func lookAgain() { rows.lookAgain() }

    package func stop() { rows.stop() }
}

/// Puts holes in place of a step's text.
///
/// On the writer's thread, because two steps that ran side by side have their text in the same values of the log.
struct Trim: Sendable {
    let visit: DueVisit
    let text: SealedText?

    var id: ChannelID { visit.channel }

    /// Writer's thread.
    /// - Returns: whether to repeat the trim later.
    func decide(_ channels: Channels, in stage: inout Stage) throws(LogError) -> Bool {
        stage.delete(.index, visit.row)
        // Forks share the entries, and must not see them change.
        guard let text, let channel = try channels.resolve(text.channelName, at: id, in: &stage), channel.isAgent,
            try !channels.hasForks(id, in: &stage), !channels.isTrimmed(id)
        else { return again(channels, in: &stage) }
        var trimmed = TrimmedStretch()
        // The value that holds the first entry begins at or before it.
        let start = try channels.log.first(.log, from: id.key, to: id.key(text.from + 1), reversed: true)?.key ?? id.key(text.from)
        try channels.log.scan(.log, from: start, to: id.key(text.upTo + 1), reversed: false) { key, value in
            trimmed.add(first: key.readBigEndian(at: 10), value) { frame in
                guard frame.kind == .text, let position = frame.position else { return false }
                return position.turn == text.turn && position.step == text.step
            }
            return true
        }
        for first in trimmed.removed { stage.delete(.log, id.key(first)) }
        for (first, frames) in trimmed.changed { stage.put(.log, id.key(first), frames) }
        guard !trimmed.changed.isEmpty else { return false }
        channels.markTrimmed(id)
        channel.staged.row.trims += 1
        channel.staged.isRowChanged = true
        channels.touch(channel)
        return false
    }

    /// Two trims in one commit would both start from the log, and the second would undo the first, so it is repeated a moment later.
    private func again(_ channels: Channels, in stage: inout Stage) -> Bool {
        guard let text, channels.isTrimmed(id) else { return false }
        stage.put(.index, visit.row, text.value)
        return true
    }
}

/// Values of the log with holes in them: adjacent ones are one, and one that is all of a value joins the value before it.
struct TrimmedStretch {
    /// By the first offset of the value.
    private(set) var changed: [(first: UInt64, frames: Bytes)] = []
    private(set) var removed: [UInt64] = []
    /// The value before ends with a hole, of so many entries.
    private var endsWithHole: UInt64?

    mutating func add(first: UInt64, _ value: UnsafeRawBufferPointer, _ goes: (Frame) -> Bool) {
        var (frames, hole, isChanged, before) = (Bytes(), UInt64(0), false, first - 1)
        let last = Frame.walk(value, first: first) { offset, frame in
            if frame.kind == .hole || goes(frame) {
                if frame.kind != .hole { isChanged = true }
                hole += offset - before
            } else {
                if hole > 0 { Frame.write(hole: hole, to: &frames) }
                hole = 0
                frame.copy(to: &frames)
            }
            before = offset
            return true
        }
        // Damaged values stay as they are: a reader reports the place.
        guard last != nil else {
            endsWithHole = nil
            return
        }
        if frames.isEmpty, hole > 0, let known = endsWithHole, let index = changed.indices.last {
            // All of it is gone: the hole before grows.
            changed[index].frames.removeLast(Frame.holeBytes)
            Frame.write(hole: known + hole, to: &changed[index].frames)
            removed.append(first)
            endsWithHole = known + hole
            return
        }
        if hole > 0 { Frame.write(hole: hole, to: &frames) }
        guard isChanged || (frames.count == Frame.holeBytes && hole > 0) else {
            endsWithHole = nil
            return
        }
        changed.append((first, frames))
        endsWithHole = hole > 0 ? hole : nil
    }
}

extension Frame {
    static let holeBytes = headerBytes + 8

    /// Appends a frame that stands for `count` trimmed entries.
    static func write(hole count: UInt64, to output: inout Bytes) {
        let start = output.count
        output.append(bigEndian: UInt32(0))
        output.append(EntryKind.hole.rawValue)
        output.append(0)
        output.append(bigEndian: count)
        setLength(of: start, in: &output)
    }

    func copy(to output: inout Bytes) {
        let start = output.count
        output.append(bigEndian: UInt32(0))
        output.append(kind.rawValue)
        output.append(flags)
        output.append(contentsOf: payload)
        Frame.setLength(of: start, in: &output)
    }
}
