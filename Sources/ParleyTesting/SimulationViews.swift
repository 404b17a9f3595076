internal import ParleySystem
internal import ParleyChannels

/// The texts of models as a client shows them, by the rules for views and nothing else.
package struct SimulationTextView {
    private struct Name: Hashable {
        var turn: UInt64
        var step: String
        var part: String
    }

    private struct Shown {
        var attempt: Int64
        /// The place of the first known byte; a client that came late has not seen those before.
        var start: Int64
        var bytes: Bytes
        var end: Int64 { start + Int64(bytes.count) }
    }

    private var shown: [Name: Shown] = [:]
    /// The texts of the steps that are complete.
    package private(set) var completed: [String: String] = [:]

    package init() {}

    /// Takes the next entry.
    /// - Returns: why the client could not continue, or would show something else than the step recorded.
    package mutating func take(_ entry: SimulationHistory.Entry) -> String? {
        switch entry.type {
        case "text": add(entry)
        case "step.completed" where entry.body["text"] != nil: complete(entry)
        default: nil
        }
    }

    private mutating func add(_ entry: SimulationHistory.Entry) -> String? {
        let name = Name(turn: entry.turn ?? 0, step: entry.step, part: entry.body["part"]?.string ?? "")
        let (index, delta) = (entry.body["index"]?.integer ?? -1, Bytes((entry.body["delta"]?.string ?? "").utf8))
        guard var text = shown[name] else {
            shown[name] = Shown(attempt: entry.attempt, start: index, bytes: delta)
            return nil
        }
        if entry.attempt < text.attempt { return "text of attempt \(entry.attempt) after that of \(text.attempt): \(entry.short)" }
        if entry.attempt > text.attempt {
            let keeps = entry.body["continues_at"]?.integer ?? 0
            text = Shown(
                attempt: entry.attempt, start: min(text.start, keeps), bytes: Bytes(text.bytes.prefix(Int(max(0, keeps - text.start)))))
        }
        if index != text.end { return "text up to byte \(text.end) is followed by \(entry.short)" }
        text.bytes += delta
        shown[name] = text
        return nil
    }

    private mutating func complete(_ entry: SimulationHistory.Entry) -> String? {
        let text = entry.body["text"]?.string ?? ""
        completed["\(entry.turn ?? 0)/\(entry.step)"] = text
        guard let last = shown.removeValue(forKey: Name(turn: entry.turn ?? 0, step: entry.step, part: "text")) else { return nil }
        if entry.body["finish_reason"] == "interrupted" {
            // The newest piece may not have been shown yet.
            guard Bytes(text.utf8).dropFirst(Int(last.start)).starts(with: last.bytes) else {
                return "shown was '\(last.bytes.text)' from byte \(last.start) on when it was interrupted, recorded is \(entry.short)"
            }
            return nil
        }
        guard last.attempt == entry.attempt else { return nil }
        guard Bytes(text.utf8).dropFirst(Int(last.start)).elementsEqual(last.bytes) else {
            return "shown was '\(last.bytes.text)' from byte \(last.start) on, recorded is \(entry.short)"
        }
        return nil
    }
}

/// Reads the channels of a node that is quiet in every view, from any offset, in pages of any size.
enum SimulationViews {
    static func violations(_ process: SimulationProcess, _ names: [String], seed: UInt64) throws -> [SimulationViolation] {
        var random = SplitMix64(seed: seed)
        var found: [SimulationViolation] = []
        for name in names {
            guard let channel = try process.channels.find(name) else { continue }
            let whole = try read(process.channels, channel, from: 0, .raw, bytesMax: .max)
            let texts = texts(whole)
            let completed = Set(whole.filter { $0["type"] == "step.completed" }.map(SimulationViews.step))
            let start = UInt64.random(in: 0...channel.tail.head, using: &random)
            let bytesMax = [1, 100, 1_000, 10_000].randomElement(using: &random)!
            let raw = try read(process.channels, channel, from: start, .raw, bytesMax: bytesMax)
            if raw != Array(whole.dropFirst(Int(start))) {
                found.append(
                    SimulationViolation(invariant: "pages stitch to the whole", evidence: "\(name) from \(start), \(bytesMax) bytes a page")
                )
            }
            let settled = try read(process.channels, channel, from: start, .settled, bytesMax: bytesMax)
            let expected = SimulationViews.texts(Array(whole.dropFirst(Int(start))))
            if SimulationViews.texts(settled) != expected || expected.contains(where: { texts[$0.key] != $0.value }) {
                found.append(
                    SimulationViolation(invariant: "settled equals raw", evidence: "\(name) from \(start), \(bytesMax) bytes a page"))
            }
            // The text of a step that was cancelled has nothing that seals it.
            if let text = settled.first(where: {
                $0["type"] == "text" && channel.tail.isClosed && completed.contains(SimulationViews.step($0))
            }) {
                found.append(
                    SimulationViolation(
                        invariant: "settled has no sealed text", evidence: "\(name) from \(start): \(text.text.prefix(200))"))
            }
        }
        return found
    }

    private static func step(_ entry: JSON) -> String { "\(entry["turn"]?.string ?? "")/\(entry["step"]?.string ?? "")" }

    private static func read(_ channels: Channels, _ channel: Channel, from start: UInt64, _ view: View, bytesMax: Int) throws -> [JSON] {
        var entries: [JSON] = []
        var cursor = start
        while true {
            let page = try channels.page(channel, after: cursor, view: view, bytesMax: bytesMax)
            entries += (try JSON.parse(page.body)).array ?? []
            if page.isUpToDate { return entries }
            precondition(page.next > cursor, "a page after \(cursor) that leads nowhere")
            cursor = page.next
        }
    }

    private static func texts(_ entries: [JSON]) -> [String: String] {
        var view = SimulationTextView()
        for entry in entries { _ = view.take(SimulationHistory.Entry(0, entry)) }
        return view.completed
    }
}
