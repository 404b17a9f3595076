internal import ParleySystem

/// A trace as lines of text: a tree with durations in one column and, where it is drawn, a bar that says when within its turn a step ran.
struct TraceView {
    private let draws: Bool
    private let now: Timestamp?
    /// Each is one line once it is shown as one: see ``TerminalText/init(lines:)``.
    private(set) var lines: [String] = []

    /// - Parameters:
    ///   - answer: The server's answer to `/trace`.
    ///   - draws: With lines and bars, for a terminal; without, every line is plain text.
    init(_ answer: JSON, draws: Bool) {
        self.draws = draws
        now = answer["at"]?.string.flatMap { Timestamp($0) }
        for turn in answer["turns"]?.array ?? [] {
            if !lines.isEmpty { lines.append("") }
            add(turn)
        }
        guard let totals = answer["totals"], (answer["turns"]?.array?.count ?? 0) > 1 else { return }
        lines += ["", "\(totals["turns"]?.integer ?? 0) turns: " + TraceView.sums(totals)]
    }

    // MARK: Turns

    /// One line of the tree before it is aligned.
    private struct Row {
        var label: String
        var duration = ""
        var bar = ""
        var note = ""
    }

    private struct Window {
        var start: Timestamp
        var end: Timestamp
    }

    private mutating func add(_ turn: JSON) {
        lines.append(headline(turn))
        for restart in turn["restarts"]?.array ?? [] {
            lines.append("  resumed at \(restart["at"]?.string ?? ""), cause: \(restart["cause"]?.string ?? "")")
        }
        if let cancelled = turn["cancelled"], turn["state"] == "open" {
            lines.append("  cancelled at \(cancelled["at"]?.string ?? ""), rolling back")
        }
        var controls = turn["controls"]?.array ?? []
        let start = instant(turn["started"]) ?? Timestamp(milliseconds: 0)
        let window = Window(start: start, end: max(start, instant(turn["ended"]) ?? now ?? start))
        var rows: [Row] = []
        let steps = turn["steps"]?.array ?? []
        // Controls that met no shown step come at the turn's end.
        let paths = Set(steps.flatMap { TraceView.paths($0) })
        let own = controls.filter { $0["step"]?.string.map { !paths.contains($0) } ?? true }
        controls.removeAll { control in own.contains(control) }
        for (index, step) in steps.enumerated() {
            add(step, controls, window, prefix: "", isLast: index == steps.count - 1 && own.isEmpty, &rows)
        }
        for (index, control) in own.enumerated() { rows.append(row(control, prefix: "", isLast: index == own.count - 1)) }
        align(rows)
        if let omitted = turn["steps_omitted"]?.integer { lines.append("  … and \(omitted) more steps, included in the totals") }
        if (turn["totals"]?["steps"]?.integer ?? 0) > 0 { lines.append("  " + TraceView.sums(turn["totals"] ?? .null)) }
    }

    private func headline(_ turn: JSON) -> String {
        let state = turn["state"]?.string ?? ""
        var words = ["turn \(turn["turn"]?.string ?? "")", state]
        if let duration = turn["duration_ms"]?.integer { words[1] += " after \(TraceView.duration(duration))" }
        words.append("started \(turn["started"]?.string ?? "")")
        if let input = turn["input"] { words.append("\(input["by"]?.string ?? ""): \"\(Columns.prose(input["text"]?.string ?? ""))\"") }
        if let error = turn["error"] { words.append(TraceView.text(ofError: error, above: turn["steps"]?.array ?? [])) }
        if let reason = turn["reason"]?.string { words.append("reason: \(Columns.prose(reason))") }
        return words.joined(separator: "  ")
    }

    /// An error in words; its code alone where one of these steps, or a step below one, already shows it.
    private static func text(ofError error: JSON, above steps: [JSON]) -> String {
        steps.contains { shows(error, $0) } ? error["code"]?.string ?? "failed" : text(ofError: error)
    }

    private static func shows(_ error: JSON, _ step: JSON) -> Bool {
        let own = approval(of: step) == nil ? step["error"] : nil
        return own?["code"] == error["code"] && own?["message"] == error["message"]
            || (step["steps"]?.array ?? []).contains { shows(error, $0) }
    }

    /// The record of an ended approval: it explains the end better than the step's error.
    private static func approval(of step: JSON) -> JSON? { step["state"] == "open" ? nil : step["approval"] }

    private static func paths(_ step: JSON) -> [String] {
        [step["step"]?.string ?? ""] + (step["steps"]?.array ?? []).flatMap { paths($0) }
    }

    // MARK: Rows

    private func add(_ step: JSON, _ controls: [JSON], _ window: Window, prefix: String, isLast: Bool, _ rows: inout [Row]) {
        let start = instant(step["started"]) ?? window.start
        let end = instant(step["ended"]) ?? window.end
        let milliseconds = step["duration_ms"]?.integer ?? max(0, end.milliseconds - start.milliseconds)
        // A path's last segment, which says which of several of that name it is.
        let label = step["step"]?.string?.split(separator: "/").last.map(String.init) ?? ""
        rows.append(
            Row(
                label: prefix + branch(isLast) + TerminalText.name(label), duration: TraceView.duration(milliseconds),
                bar: bar(start, end, window, step["kind"]?.string ?? ""), note: note(step)))
        let below = prefix + (draws ? isLast ? "   " : "│  " : "  ")
        let steps = step["steps"]?.array ?? []
        let notRun = step["calls_not_run"]?.array ?? []
        let met = controls.filter { $0["step"]?.string == step["step"]?.string }
        for (index, call) in notRun.enumerated() {
            let isLast = index == notRun.count - 1 && steps.isEmpty && met.isEmpty
            rows.append(
                Row(
                    label: below + branch(isLast) + TerminalText.name(call["name"]?.string ?? ""),
                    note: "not run, and the model was told: \(Columns.prose(call["result"]?.string ?? ""))"))
        }
        for (index, child) in steps.enumerated() {
            add(child, controls, window, prefix: below, isLast: index == steps.count - 1 && met.isEmpty, &rows)
        }
        for (index, control) in met.enumerated() { rows.append(row(control, prefix: below, isLast: index == met.count - 1)) }
    }

    private func row(_ control: JSON, prefix: String, isLast: Bool) -> Row {
        let state = control["state"]?.string ?? ""
        let refused = control["refused"]?.string.map { " (\($0))" } ?? ""
        let said = control["text"]?.string ?? control["reason"]?.string ?? control["name"]?.string
        return Row(
            label: prefix + branch(isLast) + (control["type"]?.string ?? ""),
            note: "by \(control["by"]?.string ?? "") at \(control["at"]?.string ?? ""): \(state)\(refused)"
                + (said.map { " \"\(Columns.prose($0))\"" } ?? ""))
    }

    private func branch(_ isLast: Bool) -> String { draws ? isLast ? "└─ " : "├─ " : "  " }

    private mutating func align(_ rows: [Row]) {
        let width = min(60, rows.map(\.label.count).max() ?? 0)
        for row in rows {
            let cells =
                [Columns.pad(row.label, width), Columns.padLeft(row.duration, 9)]
                + (draws ? [Columns.pad(row.bar, TraceView.barWidth)] : [])
            let line = (cells + [row.note]).joined(separator: "  ")
            lines.append(String(line.reversed().drop { $0 == " " }.reversed()))
        }
    }

    // MARK: Details of a step

    private func note(_ step: JSON) -> String {
        let kind = step["kind"]?.string ?? ""
        let state = step["state"]?.string ?? ""
        var words: [String] = []
        if kind != "scope" { words.append(step["compensation"] == true ? "compensation" : kind) }
        if let channel = step["channel"]?.string { words.append("follows \(channel)") }
        if let model = step["model"]?.string { words.append(model) }
        let approval = TraceView.approval(of: step)
        if state != "completed", approval == nil { words.append(state) }
        if let tokens = TraceView.tokens(step) { words.append(tokens) }
        if state == "open", let due = step["due"]?.string { words.append("until \(due)") }
        if step["finish_reason"] == "length" { words.append("cut at max_tokens") }
        words += TraceView.ends(of: step["attempts"]?.array ?? [], approval == nil ? step["error"] : nil, above: step["steps"]?.array ?? [])
        if let approval { words.append(TraceView.text(ofApproval: approval)) }
        return words.joined(separator: ", ")
    }

    /// How the attempts ended, and the step's error; whatever all have in common is shown once.
    private static func ends(of attempts: [JSON], _ error: JSON?, above steps: [JSON]) -> [String] {
        let states = attempts.map { $0["error"]?["code"]?.string ?? $0["state"]?.string ?? "" }
        let said = error.map { [text(ofError: $0, above: steps)] } ?? []
        guard states.count > 1 else { return said }
        guard Set(states).count == 1 else {
            // The last one's error is the step's, and says more.
            let isSaid = error?["code"]?.string == states.last
            let listed = (isSaid ? Array(states.dropLast()) : states) + (isSaid ? said : [])
            return ["\(states.count) attempts: \(listed.joined(separator: ", "))"] + (isSaid ? [] : said)
        }
        let all = "\(states.count) attempts, all "
        return error?["code"]?.string == states[0] ? [all + said[0]] : [all + states[0]] + said
    }

    private static func tokens(_ step: JSON) -> String? {
        let out = step["output_tokens"]?.integer.map { "\($0) out" } ?? step["pieces"]?.integer.map { "about \($0) out" }
        let counts = [
            step["input_tokens"]?.integer.map { "\($0) in" }, out,
            step["recovered_tokens"]?.integer.flatMap { $0 > 0 ? "\($0) recovered" : nil },
        ].compactMap { $0 }
        return counts.isEmpty ? nil : "tokens: " + counts.joined(separator: " + ")
    }

    private static func text(ofError error: JSON) -> String {
        "\(error["code"]?.string ?? error["reason"]?.string ?? "failed"): \(Columns.prose(error["message"]?.string ?? ""))"
    }

    private static func text(ofApproval approval: JSON) -> String {
        var text = approval["state"]?.string ?? ""
        if let by = approval["decided"]?["by"]?.string { text += " by \(by)" }
        text += " (args \(approval["args_sha256"]?.string?.prefix(12) ?? "-"))"
        if let step = approval["executed"]?["step"]?.string { return text + ", then \(step)" }
        return text + (approval["state"] == "open" ? "" : ", nothing executed")
    }

    private static func sums(_ totals: JSON) -> String {
        func count(_ name: String) -> Int64 { totals[name]?.integer ?? 0 }
        func counted(_ number: Int64, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }
        var words = [counted(count("steps"), "step"), counted(count("attempts"), "attempt")]
        if count("failed_attempts") > 0 { words.append("\(count("failed_attempts")) failed") }
        if count("restarts") > 0 { words.append(counted(count("restarts"), "restart")) }
        if count("input_tokens") + count("output_tokens") > 0 {
            words.append("\(count("input_tokens")) tokens in, \(count("output_tokens")) out")
        }
        if count("recovered_tokens") > 0 { words.append("\(count("recovered_tokens")) recovered") }
        let times = [("model", "model_ms"), ("waiting", "waiting_ms"), ("other", "other_ms")].filter { count($0.1) > 0 }
        return words.joined(separator: ", ") + (times.isEmpty ? "" : "; ")
            + times.map { "\($0.0) \(duration(count($0.1)))" }.joined(separator: ", ")
    }

    // MARK: Time

    private static let barWidth = 24

    /// When within the turn it ran: full for what works, light for what waits, thin for what only holds steps.
    private func bar(_ start: Timestamp, _ end: Timestamp, _ window: Window, _ kind: String) -> String {
        let whole = max(1, window.end.milliseconds - window.start.milliseconds)
        let width = Int64(TraceView.barWidth)
        func cell(_ at: Timestamp) -> Int64 { min(width, max(0, (at.milliseconds - window.start.milliseconds) * width / whole)) }
        let first = min(width - 1, cell(start))
        let count = max(1, cell(end) - first)
        let mark = kind == "scope" ? "─" : ["sleep", "wait", "approval"].contains(kind) ? "░" : "█"
        return String(repeating: " ", count: Int(first)) + String(repeating: mark, count: Int(count))
    }

    private func instant(_ value: JSON?) -> Timestamp? { value?.string.flatMap { Timestamp($0) } }

    /// `12 s`, `4 min`, `3 h`, `12 d`.
    static func roughly(_ milliseconds: Int64) -> String {
        let seconds = max(0, milliseconds / 1_000)
        switch seconds {
        case ..<60: return "\(seconds) s"
        case ..<3_600: return "\(seconds / 60) min"
        case ..<172_800: return "\(seconds / 3_600) h"
        default: return "\(seconds / 86_400) d"
        }
    }

    /// `7 ms`, `2.31 s`, `4 min 5 s`, `3 h 20 min`, `12 d 4 h`.
    static func duration(_ milliseconds: Int64) -> String {
        let seconds = milliseconds / 1_000
        switch milliseconds {
        case ..<1_000: return "\(milliseconds) ms"
        case ..<100_000:
            let hundredths = milliseconds / 10 % 100
            return "\(seconds).\(hundredths < 10 ? "0" : "")\(hundredths) s"
        case ..<6_000_000: return "\(seconds / 60) min \(seconds % 60) s"
        case ..<360_000_000: return "\(seconds / 3_600) h \(seconds / 60 % 60) min"
        default: return "\(seconds / 86_400) d \(seconds / 3_600 % 24) h"
        }
    }
}
