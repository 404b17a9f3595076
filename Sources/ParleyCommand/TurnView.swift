internal import ParleySystem
internal import Synchronization

/// Shows an agent's channel in a terminal: the model's text on standard output as it comes, other events on standard error.
final class TurnView: Sendable {
    private struct State {
        /// The printed part of the step that is being written.
        var step = ""
        var attempt: Int64 = 0
        var printed = Bytes()
        /// The part of it on the terminal, character by character.
        var shown = TerminalText.Stream()
        var isInLine = false
        /// The step whose approval was asked for last.
        var asked: String?
        /// The message of the last step that failed for good.
        var failure: String?
        /// Senders of cancels and interrupts that are undecided, by offset.
        var stops: [String: String] = [:]
        /// Whose cancel or interrupt was applied last.
        var stopper: String?
    }

    private let state = Mutex(State())

    func show(_ entry: JSON) {
        state.withLock { state in
            hear(entry, &state)
            show(entry, &state)
        }
    }

    /// Takes in an entry without showing it.
    func hear(_ entry: JSON) { state.withLock { hear(entry, &$0) } }

    /// Prints a message that is no entry.
    func say(_ text: TerminalText) { state.withLock { note(text, &$0) } }

    /// Notes who stops the turn: the entry that ends it is the agent's own.
    private func hear(_ entry: JSON, _ state: inout State) {
        switch entry["type"]?.string {
        case "cancel", "interrupt":
            guard let by = entry["by"]?.string, let offset = entry["offset"]?.string else { return }
            if entry["receipt"] == nil { state.stops[offset] = by } else if entry["receipt"]?["state"] == "applied" { state.stopper = by }
        case "receipt":
            guard let by = entry["of"]?.string.flatMap({ state.stops.removeValue(forKey: $0) }), entry["state"] == "applied" else { return }
            state.stopper = by
        default: break
        }
    }

    private func show(_ entry: JSON, _ state: inout State) {
        switch entry["type"]?.string {
        case "message": note("> \(TurnView.prose(entry, ["text", "data"]) ?? "")\(TurnView.refusal(entry["receipt"]))", &state)
        case "receipt" where entry["state"] != "applied":
            note("  the entry at \(entry["of"]?.string ?? ""):\(TurnView.refusal(entry))", &state)
        case "steer", "interrupt", "cancel", "approve", "deny", "signal", "close": said(entry, &state)
        case "step.started" where entry["kind"] == "tool":
            note("  \(entry["name"]?.string ?? "") \(TurnView.json(entry["request"]?["arguments"]))", &state)
        case "approval.requested": asked(entry, &state)
        case "text" where entry["part"]?.string == "text": text(entry, &state)
        case "step.completed" where entry["text"] != nil: completed(entry, &state)
        case "step.completed": note("  \(entry["step"]?.string ?? "") done", &state)
        case "step.failed": failed(entry, &state)
        case "timer.set" where state.asked == entry["step"]?.string: break  // Said with what was asked.
        case "timer.set": note("  waits until \(entry["due"]?.string ?? "")", &state)
        case "supervision" where entry["action"] == "cancel": break
        case "supervision": note("  resumed after: \(line: entry["cause"]?.string ?? "")", &state)
        case "turn.completed":
            let output = entry["output"]
            if output?.string.map({ Bytes($0.utf8) }) != state.printed, let output, output != .null {
                say(output.string ?? output.text, &state)
            }
            endLine(&state)
            state = State()
        case "turn.interrupted": stopped("interrupted", entry, &state)
        case "turn.cancelled": stopped("cancelled", entry, &state)
        case "turn.failed":
            let (message, code) = (entry["error"]?["message"]?.string ?? "", entry["error"]?["code"]?.string ?? "")
            // Said already, of the step that made the turn fail.
            let isKnown = message == state.failure
            note("failed\(line: isKnown ? "" : ": " + message) (\(code))", &state)
            state.failure = nil
        case "agent.stalled", "agent.parked":
            let what = entry["type"] == "agent.stalled" ? "stalled" : "parked"
            note("\(what): \(line: entry["message"]?.string ?? "") Remedy: \(line: entry["remedy"]?.string ?? "")", &state)
        case "agent.resumed": note("resumed", &state)
        case "agent.closed": note("closed", &state)
        default: break
        }
    }

    private func failed(_ entry: JSON, _ state: inout State) {
        let (step, message) = (entry["step"]?.string ?? "", entry["error"]?["message"]?.string ?? "")
        let isFinal = entry["final"]?.bool == true
        switch entry["error"]?["code"]?.string {
        case let code? where ["cancelled", "interrupted"].contains(code): note("  \(step) \(code)", &state)
        case "approval_denied": note("  \(step): \(line: message)", &state)
        default: note("  \(step) failed: \(line: message)\(line: isFinal ? "" : " (will be tried again)")", &state)
        }
        if isFinal { state.failure = message }
    }

    /// Prints that the turn was stopped, and by whom.
    private func stopped(_ what: TerminalText, _ entry: JSON, _ state: inout State) {
        let by: TerminalText = state.stopper.map { " by \($0)" } ?? ""
        note(what + by + (entry["reason"]?.string.map { ": \(line: $0)" } ?? ""), &state)
        state.stopper = nil
    }

    private static func refusal(_ receipt: JSON?) -> TerminalText {
        guard let state = receipt?["state"]?.string, state != "applied" else { return "" }
        return " (\(state): \(receipt?["reason"]?.string ?? ""))"
    }

    /// Shows an entry of a person other than a message, with its outcome where the view has that.
    private func said(_ entry: JSON, _ state: inout State) {
        var words: [TerminalText] = ["by", "type"].compactMap { entry[$0]?.string }.map { "\($0)" }
        if entry["type"] == "signal" {
            words += entry["name"]?.string.map { ["\($0)"] } ?? []
        } else {
            words += TurnView.prose(entry, ["text", "reason"]).map { [$0] } ?? []
        }
        note(words.reduce(">") { $0 + " " + $1 } + TurnView.refusal(entry["receipt"]), &state)
    }

    /// The text under the first of the names that is there: each of its lines begins like the first.
    private static func prose(_ entry: JSON, _ names: [String]) -> TerminalText? {
        names.lazy.compactMap { entry[$0] }.first.map { value in
            value.string.map { "\(quoted: $0)" } ?? TerminalText(json: value)
        }
    }

    private static func json(_ value: JSON?) -> TerminalText { value.map { TerminalText(json: $0) } ?? "" }

    private func asked(_ entry: JSON, _ state: inout State) {
        state.asked = entry["step"]?.string
        let expires = entry["expires_at"]?.string.map { ", until \($0)" } ?? ""
        let agent = entry["by"]?.string.map { String($0.dropFirst("agents/".count)) } ?? ""
        note("  asks for approval: \(entry["action"]?.string ?? "") \(TurnView.json(entry["args"]))\(expires)", &state)
        note("  parley approve \(agent) \(entry["approval"]?.string ?? "")", &state)
    }

    private func text(_ entry: JSON, _ state: inout State) {
        let step = (entry["turn"]?.string ?? "") + (entry["step"]?.string ?? "")
        let attempt = entry["attempt"]?.integer ?? 1
        let index = Int(entry["index"]?.integer ?? 0)
        let delta = Bytes((entry["delta"]?.string ?? "").utf8)
        if step != state.step { (state.step, state.attempt, state.printed) = (step, attempt, []) }
        guard attempt >= state.attempt else { return }
        if attempt > state.attempt {
            state.attempt = attempt
            let kept = Int(entry["continues_at"]?.integer ?? 0)
            if kept < state.printed.count {
                endLine(&state)
                note("  the answer starts again", &state)
                state.printed.removeLast(state.printed.count - kept)
                if kept > 0 { print(state.printed, &state) }
            }
        }
        guard index + delta.count > state.printed.count else { return }
        // Text from before this reader's first entry cannot be shown; it comes with the step's result.
        let new = Bytes(delta[max(0, state.printed.count - index)...])
        state.printed += new
        print(new, &state)
    }

    private func completed(_ entry: JSON, _ state: inout State) {
        let whole = Bytes((entry["text"]?.string ?? "").utf8)
        if whole.starts(with: state.printed) {
            print(Bytes(whole[state.printed.count...]), &state)
        } else {
            endLine(&state)
            print(whole, &state)
        }
        state.printed = whole
        endLine(&state)
        let recovered = entry["recovered_tokens"]?.integer ?? 0
        if recovered > 0 { note("  resumed from \(recovered) saved tokens", &state) }
        if entry["finish_reason"] == "length" {
            note("  the answer was cut: it has reached max_tokens. Raise max_tokens in the agent's file for longer ones.", &state)
        }
    }

    private func say(_ text: String, _ state: inout State) {
        endLine(&state)
        print(Bytes(text.utf8), &state)
    }

    private func print(_ bytes: Bytes, _ state: inout State) {
        guard !bytes.isEmpty else { return }
        Terminal.output(state.shown.feed(bytes))
        state.isInLine = bytes.last != UInt8(ascii: "\n")
    }

    /// Prints a line beside the answer. Where both appear it gets a line of its own, and the answer continues on the next one; in a file of its own
    /// the answer's line continues.
    private func note(_ text: TerminalText, _ state: inout State) {
        guard Terminal.isOneStream else { return Terminal.error(text) }
        Terminal.error((state.isInLine ? "\n" : "") + text)
        state.isInLine = false
    }

    private func endLine(_ state: inout State) {
        Terminal.output(state.shown.end())
        if state.isInLine { Terminal.output("\n") }
        state.isInLine = false
    }
}
