internal import ParleyChannels
internal import ParleySystem

/// Judges what turns saw of the turns before them, and what models were asked, by what the log says was said.
struct SimulationConversation {
    private struct Turn {
        let input: UInt64
        /// The messages of people to it, in log order: the input first.
        private(set) var said: [Said] = []
        var started: UInt64 = .max
        var ended: UInt64?
        /// The part of it before its output that later turns remember.
        private var parts: [Part] = []
        /// Its output, if later turns remember it.
        var output: String?

        /// It as later turns remember it.
        var messages: [String] { parts.map(\.text) + [output ?? ""].filter { !$0.isEmpty }.map { "assistant: " + $0 } }

        init(input: UInt64) { self.input = input }

        mutating func say(_ new: Said) {
            let before = said.lastIndex { $0.isInput || $0.offset < new.offset }
            said.insert(new, at: new.isInput ? 0 : before.map { $0 + 1 } ?? 0)
            // It stands in its place among the messages of people, and behind any text that a model had written without knowing of it.
            let behind = parts.lastIndex { part in part.offset.map { $0 < new.offset } ?? true }
            parts.insert(
                Part(offset: new.isInput ? 0 : new.offset, text: "user: " + new.text), at: new.isInput ? 0 : behind.map { $0 + 1 } ?? 0)
        }

        /// A model had written that when it was redirected.
        mutating func wrote(_ text: String, redirectedBy offset: UInt64) {
            guard let place = parts.lastIndex(where: { $0.offset == offset }) else { return }
            parts.insert(Part(offset: nil, text: "assistant: " + text), at: place)
        }
    }

    private struct Part {
        /// Its offset; `nil` for a model's text, 0 for the turn's input.
        var offset: UInt64?
        var text: String
    }

    private struct Said {
        var text: String
        var offset: UInt64
        /// The step it joined, or whose place it took.
        var step: String
        var at: Timestamp
        /// It joined a call; a message that is neither that nor the input took the place of an answer.
        var isSteer: Bool
        var isInput: Bool
    }

    private let life: SimulationHistory.Life
    private let history: SimulationHistory
    private var turns: [UInt64: Turn] = [:]
    private var found: [SimulationViolation] = []

    static func violations(
        _ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory
    ) -> [SimulationViolation] {
        var judge = SimulationConversation(life, entries, history)
        judge.checkRecollections(entries)
        // A name that was used again may have had the same turns.
        if !history.mayBeGone.contains(life.name) { judge.checkCalls(entries) }
        return judge.found
    }

    private init(_ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory) {
        self.life = life
        self.history = history
        for entry in entries { take(entry, entries) }
    }

    private mutating func take(_ entry: SimulationHistory.Entry, _ entries: [SimulationHistory.Entry]) {
        guard let turn = entry.turn else { return }
        switch entry.type {
        case "receipt" where entry.body["state"] == "applied":
            guard let of = entry.decides, of > 0, of <= UInt64(entries.count), let text = entries[Int(of) - 1].said else { return }
            let kind = entries[Int(of) - 1].type
            let isSteer = kind == "steer" || kind == "message" && life.policy == "steer"
            turns[turn, default: Turn(input: turn)].say(
                Said(
                    text: text, offset: of, step: entry.step, at: entry.at ?? Timestamp(milliseconds: 0), isSteer: isSteer,
                    isInput: of == turn))
        case "turn.started": turns[turn, default: Turn(input: turn)].started = entry.offset
        case "step.completed" where entry.body["redirection"] != nil:
            guard let by = entry.offset(of: "interrupted_by"), let text = entry.body["text"]?.string, !text.isEmpty else { return }
            turns[turn]?.wrote(text, redirectedBy: by)
        case "turn.completed", "turn.interrupted":
            turns[turn]?.ended = entry.offset
            turns[turn]?.output = entry.body["output"].map { $0.string ?? $0.text } ?? ""
        case let type where SimulationAgentState.turnEnds.contains(type): turns[turn]?.ended = entry.offset
        default: break
        }
    }

    /// The messages of the turns before one, and those it must remember, in order. A part that is too long may be forgotten.
    private func remembered(before turn: Turn) -> [String] {
        let texts = turns(before: turn).flatMap { $0.said.map(\.text) }
        return texts.reduce(0) { $0 + $1.utf8.count } > 100_000 ? [] : texts
    }

    private func turns(before turn: Turn) -> [Turn] {
        turns.values.filter { $0.output != nil && $0.ended ?? .max < turn.started }.sorted { $0.started < $1.started }
    }

    // MARK: The view of turns

    private mutating func checkRecollections(_ entries: [SimulationHistory.Entry]) {
        var first: [String: [String]] = [:]
        let names = names(entries)
        for recollection in history.recollections {
            guard let turn = names[recollection.request].flatMap({ turns[$0] }) else { continue }
            if let earlier = first[recollection.request], earlier != recollection.messages {
                violate(
                    "a turn sees the same history each time that it runs",
                    "turn \(turn.input) of \(recollection.request) saw \(earlier), then \(recollection.messages)")
            }
            first[recollection.request] = recollection.messages
            check(recollection.messages, have: remembered(before: turn), "turn \(turn.input) of \(recollection.request)")
            checkWhole(recollection.messages, turns(before: turn).flatMap(\.messages), "turn \(turn.input) of \(recollection.request)")
        }
    }

    /// The turns by what the record calls them.
    private func names(_ entries: [SimulationHistory.Entry]) -> [String: UInt64] {
        var names: [String: UInt64] = [:]
        for start in entries where start.type == "turn.started" {
            guard let turn = start.turn, turn <= UInt64(entries.count),
                let seed = start.body["seed"]?.string.flatMap({ UInt64($0, radix: 16) })
            else { continue }
            let request = entries[Int(turn) - 1].body["data"]?["request"]?.string ?? "text"
            var random = SplitMix64(seed: seed)
            names["\(request)@\(random.next())"] = turn
        }
        return names
    }

    // MARK: The requests to models

    private mutating func checkCalls(_ entries: [SimulationHistory.Entry]) {
        let texts = Dictionary(
            entries.filter { $0.type == "step.completed" && $0.body["text"] != nil }.map { ("\($0.turn ?? 0) \($0.step)", $0) },
            uniquingKeysWith: { $1 })
        for call in history.modelCalls {
            guard call.key.hasPrefix(life.name + "/") else { continue }
            let key = call.key.dropFirst(life.name.utf8.count + 1)
            guard let number = Offset(token: String(key.prefix { $0 != "/" }))?.value, let turn = turns[number] else { continue }
            let step = String(key.drop { $0 != "/" }.dropFirst())
            // A message that joined is part of every later call, and of the one whose answer stands. The text that an interrupt left may be that of
            // an earlier attempt.
            let end = texts["\(number) \(step)"]?.body
            let isLast =
                call.isFinished && end?["finish_reason"] != "interrupted" && end?["text"]?.string == call.continuing + call.generated
            let joined = turn.said.filter { said in
                guard !said.isInput else { return false }
                guard said.step == step else { return precedes(said.step, step) && call.at > said.at }
                return said.isSteer && (isLast || call.at > said.at)
            }
            let past = step.contains("respond") ? remembered(before: turn) : []
            check(call.messages, have: past + joined.map(\.text), "the call of \(call.key) at \(call.at)")
        }
    }

    /// Whether one step of a conversation comes before another of the same.
    private func precedes(_ earlier: String, _ later: String) -> Bool {
        let (a, b) = (earlier.split(separator: "#"), later.split(separator: "#"))
        guard a.first == b.first, a.first?.contains("respond") == true else { return false }
        return a.count < 2 && b.count == 2 || a.count == 2 && b.count == 2 && Int(a[1]) ?? 0 < Int(b[1]) ?? 0
    }

    private mutating func check(_ messages: [String], have said: [String], _ what: String) {
        var rest = messages[...]
        for text in said {
            guard let place = rest.firstIndex(of: "user: " + text) else {
                return violate("what was said is heard", "\(what) lacks '\(text.prefix(120))'; it has \(messages.map { $0.prefix(80) })")
            }
            rest = rest[(place + 1)...]
        }
    }

    /// The turn remembers all that there was from some turn on, each once: the oldest may be forgotten.
    private mutating func checkWhole(_ messages: [String], _ all: [String], _ what: String) {
        guard messages != Array(all.suffix(messages.count)) else { return }
        let (seen, had) = (messages.map { $0.prefix(80) }, all.map { $0.prefix(80) })
        violate("a turn remembers what there was", "\(what) saw \(seen), and there was \(had)")
    }

    private mutating func violate(_ invariant: String, _ evidence: String) {
        found.append(SimulationViolation(invariant: invariant, evidence: "\(life): \(evidence)"))
    }
}

extension SimulationHistory.Entry {
    /// The text of an input for a model.
    fileprivate var said: String? { body["text"]?.string ?? body["data"].map(\.text) }
}
