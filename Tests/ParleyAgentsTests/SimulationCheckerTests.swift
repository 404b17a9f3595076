import ParleyChannels
import ParleySystem
import ParleyTesting
import Testing

/// A way to spoil a sound history, and the violation that the checker must find.
private struct Doctoring: Sendable, CustomTestStringConvertible {
    let name: String
    let invariant: String
    let change: @Sendable (inout SimulationHistory) throws -> Void
    var testDescription: String { name }
}

/// The history has nothing to spoil: another one may.
private struct NothingToSpoil: Error {}

private typealias Entry = SimulationHistory.Entry

extension SimulationHistory {
    /// Changes the entries of the first channel, by name, that has one which `matches`; `edit` gets its index.
    fileprivate mutating func edit(
        _ prefix: String = "agents/", where matches: (Entry) -> Bool, _ edit: (inout [Entry], Int) -> Void
    ) throws {
        let lives = entries.keys.filter { $0.name.hasPrefix(prefix) }.sorted { $0.name < $1.name }
        guard let life = lives.first(where: { entries[$0]!.contains(where: matches) }) else { throw NothingToSpoil() }
        edit(&entries[life]!, entries[life]!.firstIndex(where: matches)!)
    }
}

extension [SimulationHistory.Entry] {
    /// Puts an entry in, and moves what is behind it.
    fileprivate mutating func add(_ body: JSON, at index: Int) {
        insert(Entry(UInt64(index) + 1, body), at: index)
        renumber()
    }

    fileprivate mutating func renumber() {
        for index in indices { self[index].offset = UInt64(index) + 1 }
    }
}

extension JSON {
    /// The object with a member changed.
    fileprivate func with(_ name: String, _ value: JSON) -> JSON {
        .object((members ?? []).filter { $0.name != name } + [Member(name, value)])
    }
}

private let doctorings = [
    Doctoring(name: "an entry is dropped", invariant: "offsets are contiguous") { history in
        try history.edit(where: { $0.type == "step.completed" }) { entries, index in entries.remove(at: index) }
    },
    Doctoring(name: "the end of a channel is lost", invariant: "what a reader saw stays") { history in
        try history.edit(where: { $0.type == "turn.completed" }) { entries, index in entries.removeSubrange(index...) }
    },
    Doctoring(name: "an acknowledged append is lost", invariant: "what is acknowledged is durable") { history in
        try history.edit("streams/", where: { $0.type == "data" }) { entries, _ in entries = [] }
    },
    Doctoring(name: "an entry stands twice", invariant: "sent with a key is appended once") { history in
        try history.edit(where: { $0.type == "message" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "two entries have changed places", invariant: "what a reader saw stays") { history in
        try history.edit(where: { $0.type == "turn.started" }) { entries, index in
            entries.swapAt(index, index + 1)
            entries.renumber()
        }
    },
    Doctoring(name: "the bytes of an append have changed", invariant: "what is acknowledged keeps its bytes") { history in
        try history.edit("streams/", where: { $0.body["item"] == 0 }) { entries, index in
            entries[index].body = entries[index].body.with("item", 99)
        }
    },
    Doctoring(name: "time runs backwards", invariant: "`at` never decreases") { history in
        try history.edit(where: { $0.type == "turn.completed" }) { entries, index in
            entries[index].body = entries[index].body.with("at", "2000-01-01T00:00:00.000Z")
        }
    },
    Doctoring(name: "a reader is shown an entry twice", invariant: "a reader that goes on has no gap and no duplicate") { history in
        history.sightings.insert(history.sightings[0], at: 1)
    },
    Doctoring(name: "a reader misses an entry", invariant: "a reader that goes on has no gap and no duplicate") { history in
        history.sightings.remove(at: 0)
    },
    Doctoring(name: "a second receipt", invariant: "every input gets one receipt") { history in
        try history.edit(where: { $0.type == "receipt" }) { entries, index in entries.add(entries[index].body, at: entries.count) }
    },
    Doctoring(name: "a receipt is missing", invariant: "every input gets one receipt") { history in
        try history.edit(where: { $0.type == "receipt" }) { entries, index in entries[index].body = entries[index].body.with("type", "emit")
        }
    },
    Doctoring(name: "a turn begins twice", invariant: "every message gets one turn") { history in
        try history.edit(where: { $0.type == "turn.started" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "a turn ends twice", invariant: "every turn ends once") { history in
        try history.edit(where: { $0.type == "turn.completed" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "a turn goes on after its end", invariant: "a turn's entries stand between its start and its end") { history in
        try history.edit(where: { $0.type == "step.completed" }) { entries, index in
            entries.append(Entry(UInt64(entries.count) + 1, entries[index].body))
        }
    },
    Doctoring(name: "an output is wrong", invariant: "outputs are right") { history in
        try history.edit(where: { $0.type == "turn.completed" }) { entries, index in
            entries[index].body = entries[index].body.with("output", ["outputs": ["wrong"]])
        }
    },
    Doctoring(name: "something published is missing", invariant: "what a program publishes is there once") { history in
        try history.edit(where: { $0.type == "emit" }) { entries, index in
            entries[index].body = entries[index].body.with("type", "supervision")
        }
    },
    Doctoring(name: "a step is completed twice", invariant: "a step has one result, and nothing after it") { history in
        try history.edit(where: { $0.type == "step.completed" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "a step has no result", invariant: "a step has one result, and nothing after it") { history in
        try history.edit(where: { $0.type == "step.completed" }) { entries, index in
            entries[index].body = entries[index].body.with("type", "supervision")
        }
    },
    Doctoring(name: "an attempt is begun twice", invariant: "attempts count up by one") { history in
        try history.edit(where: { $0.type == "step.started" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "a result without a start", invariant: "a step is begun before anything comes of it") { history in
        try history.edit(where: { $0.type == "step.started" }) { entries, index in
            entries[index].body = entries[index].body.with("type", "supervision")
        }
    },
    Doctoring(name: "a timer fires twice", invariant: "a timer fires once") { history in
        try history.edit(where: { $0.type == "timer.fired" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "a timer fires early", invariant: "no timer fires before it is due") { history in
        try history.edit(where: { $0.type == "timer.set" }) { entries, index in
            entries[index].body = entries[index].body.with("due", "2999-01-01T00:00:00.000Z")
        }
    },
    Doctoring(name: "a timer never fires", invariant: "every timer fires") { history in
        try history.edit(where: { $0.type == "timer.fired" }) { entries, index in
            entries[index].body = entries[index].body.with("type", "supervision")
        }
    },
    Doctoring(name: "an owner of an old epoch appends", invariant: "epochs rise") { history in
        try history.edit(where: { $0.type == "turn.started" }) { entries, index in
            entries.append(Entry(UInt64(entries.count) + 1, ["type": "x", "epoch": 1]))
        }
    },
    Doctoring(name: "a text stands twice", invariant: "no text stands twice") { history in
        try history.edit(where: { $0.type == "text" }) { entries, index in entries.add(entries[index].body, at: index + 1) }
    },
    Doctoring(name: "a text has a gap", invariant: "whoever follows the rules converges") { history in
        try history.edit(where: { $0.type == "text" && $0.body["index"]?.integer ?? 0 > 0 }) { entries, index in
            entries[index].body = entries[index].body.with("index", .integer(9_999))
        }
    },
    Doctoring(name: "a step records another text than was shown", invariant: "whoever follows the rules converges") { history in
        try history.edit(where: { $0.type == "step.completed" && $0.body["text"]?.string?.count ?? 0 > 3 }) { entries, index in
            entries[index].body = entries[index].body.with("text", "other")
        }
    },
    Doctoring(name: "a step records what no model wrote", invariant: "a step's text is what its model wrote") { history in
        for index in history.modelCalls.indices { history.modelCalls[index].generated += "?" }
    },
    Doctoring(name: "a body runs after its result was recorded", invariant: "no body runs after its result was recorded") { history in
        history.bodyRuns.append(SimulationHistory.BodyRun(request: "r", step: "s", isAtMostOnce: false, wasRecorded: true))
    },
    Doctoring(name: "a body that runs at most once runs twice", invariant: "a body that runs at most once runs at most once") { history in
        let run = SimulationHistory.BodyRun(request: "r", step: "s", isAtMostOnce: true, wasRecorded: false)
        history.bodyRuns += [run, run]
    },
    Doctoring(name: "a turn is interrupted by nobody", invariant: "a turn is interrupted by an interrupt that was applied") { history in
        try history.edit(where: { $0.type == "turn.interrupted" }) { entries, index in
            let turn = entries[index].body["turn"]
            for place in entries.indices where entries[place].type == "receipt" && entries[place].body["turn"] == turn {
                if entries[place].body["of"] != turn { entries[place].body = entries[place].body.with("state", "rejected") }
            }
        }
    },
    Doctoring(name: "a cancel does nothing", invariant: "a turn is cancelled by a cancel that was applied") { history in
        try history.edit(where: { $0.type == "turn.cancelled" }) { entries, index in
            entries[index].body = entries[index].body.with("type", "turn.completed")
        }
    },
    Doctoring(name: "a signal is not seen", invariant: "a signal is taken by who waits for it") { history in
        try history.edit(where: { $0.body["error"]?["code"] == "wait_timeout" }) { entries, index in
            // At a place before which nothing has a receipt.
            entries.add(["type": "signal", "name": "go"], at: index)
        }
    },
    Doctoring(name: "a partial loses what was shown", invariant: "whoever follows the rules converges") { history in
        try history.edit(where: { $0.body["finish_reason"] == "interrupted" && $0.body["text"]?.string?.count ?? 0 > 3 }) {
            entries, index in
            entries[index].body = entries[index].body.with("text", "")
        }
    },
    Doctoring(name: "an inbox row is left", invariant: "nothing is left over") { $0.leftovers = ["inbox"] },
    Doctoring(name: "a channel is gone", invariant: "what is acknowledged is durable") { history in
        history.mayBeGone = []
        let life = try #require(history.answers.first { !$0.offsets.isEmpty }?.life)
        history.entries[life] = nil
    },
]

/// The same of runs in which turns wait for people.
private let patientDoctorings = [
    Doctoring(name: "a message waits for an hour", invariant: "input is decided within a bound") { history in
        try history.edit(where: { $0.type == "receipt" && $0.body["of"] == $0.body["turn"] }) { entries, index in
            entries[index].body = entries[index].body.with("at", "2026-01-01T23:00:00.000Z")
        }
    },
    Doctoring(name: "a message is passed over", invariant: "messages are taken in their order") { history in
        try history.edit(where: { $0.type == "receipt" && $0.body["of"] == $0.body["turn"] }) { entries, index in
            entries[index].body = entries[index].body.with("type", "emit")
        }
    },
    Doctoring(name: "a step ends over a cancel", invariant: "what stands first is decided first") { history in
        try history.edit(where: { $0.type == "step.completed" && !$0.body.text.contains("shielded") }) { entries, index in
            entries.add(["type": "cancel", "at": entries[index].body["at"] ?? .null], at: index)
        }
    },
    Doctoring(name: "a cancel reaches what is shielded", invariant: "neither a cancel nor an interrupt reaches what is shielded") {
        history in
        try history.edit(where: { $0.type == "step.completed" && $0.body["step"]?.string?.hasPrefix("shielded") == true }) {
            entries, index in
            entries[index].body = entries[index].body.with("type", "step.failed").with("final", true).with("error", ["code": "cancelled"])
        }
    },
    Doctoring(name: "an approval is decided against its answer", invariant: "an approval is decided by the first answer") { history in
        try history.edit(where: { $0.type == "approval.decided" && $0.body["decision"] == "approved" }) { entries, index in
            entries[index].body = entries[index].body.with("decision", "denied")
        }
    },
    Doctoring(name: "an approval came late and is told otherwise", invariant: "an approval that expired says so") { history in
        try history.edit(where: { $0.body["reason"] == "approval_expired" }) { entries, index in
            entries[index].body = entries[index].body.with("reason", "already_decided")
        }
    },
    Doctoring(name: "a turn sees another history", invariant: "a turn sees the same history each time that it runs") { history in
        guard let first = history.recollections.first else { throw NothingToSpoil() }
        history.recollections.append(SimulationHistory.Recollection(request: first.request, messages: first.messages + ["user: more"]))
    },
    Doctoring(name: "a turn sees no history", invariant: "what was said is heard") { history in
        for index in history.recollections.indices { history.recollections[index].messages = [] }
    },
    Doctoring(name: "a model does not hear what joined", invariant: "what was said is heard") { history in
        for index in history.modelCalls.indices { history.modelCalls[index].messages.removeAll { $0.contains("something else") } }
    },
    Doctoring(name: "something is not taken back", invariant: "what failed is taken back, the latest first") { history in
        try history.edit(where: { $0.body["compensation"] == true }) { entries, index in
            entries[index].body = entries[index].body.with("compensation", false)
        }
    },
    Doctoring(name: "something is taken back though the turn completed", invariant: "what stands is not taken back") { history in
        let isDone: @Sendable (Entry) -> Bool = { $0.type == "turn.completed" && $0.body["output"]?["outputs"] != [] }
        try history.edit(where: isDone) { entries, end in
            let turn = entries[end].body["turn"]
            for index in entries.indices where entries[index].type == "step.started" && entries[index].body["turn"] == turn {
                entries[index].body = entries[index].body.with("compensation", true)
            }
        }
    },
    Doctoring(name: "an agent remembers what it should not", invariant: "state is what the last completed turn left") { history in
        try history.edit(where: { $0.body["output"]?["saw"] != nil }) { entries, index in
            entries[index].body = entries[index].body.with("output", ["saw": "something"])
        }
    },
    Doctoring(name: "a follower reads what no stream has", invariant: "outputs are right") { history in
        for stream in history.followed.keys {
            for index in history.followed[stream]!.indices { history.followed[stream]![index].body = "something" }
        }
    },
    Doctoring(name: "a turn stalls", invariant: "no turn stalls without a cause") { history in
        try history.edit(where: { $0.type == "step.completed" }) { entries, index in
            entries[index].body = entries[index].body.with("type", "agent.stalled")
        }
    },
]

/// Ends of logs at which nothing may rest.
private let restless = [
    Doctoring(name: "a message lies there", invariant: "no input is left lying") { history in
        try history.edit(where: { $0.type == "message" }) { entries, index in entries.removeSubrange((index + 1)...) }
    },
    Doctoring(name: "a turn has begun and does nothing", invariant: "no turn stalls without a cause") { history in
        try history.edit(where: { $0.type == "turn.started" }) { entries, index in entries.removeSubrange((index + 1)...) }
    },
    Doctoring(name: "an answer lies there", invariant: "no input is left lying") { history in
        try history.edit(where: { $0.type == "approve" }) { entries, index in entries.removeSubrange((index + 1)...) }
    },
    Doctoring(name: "a signal lies there that a turn waits for", invariant: "no input is left lying") { history in
        try history.edit(where: { $0.type == "step.started" && $0.body["kind"] == "wait" && $0.body["request"] == nil }) { entries, index in
            let signal: JSON = ["type": "signal", "name": entries[index].body["name"] ?? .null]
            entries.removeSubrange((index + 1)...)
            entries.add(signal, at: index + 1)
        }
    },
]

/// Histories of runs that are sound: one with every kind of entry that is spoiled.
private let sound: [SimulationHistory] = (try? SimulatedNode.simulate { try (0..<64).map { try SimulationRun(seed: $0).history } }) ?? []

private let patient: [SimulationHistory] =
    (try? SimulatedNode.simulate { try (0..<64).map { try SimulationRun(seed: $0, palette: .all).history } }) ?? []

@Suite struct `The checker of histories` {
    @Test func `has nothing to say of sound histories`() {
        #expect(sound.count == 64)
        for history in sound { #expect(SimulationChecker(history).violations.isEmpty) }
        #expect(patient.count == 64)
        for history in patient {
            #expect(SimulationChecker(history).violations.isEmpty)
            #expect(SimulationChecker(history).violationsAtRest.isEmpty)
        }
    }

    @Test(arguments: patientDoctorings) private func `reports a history of patient turns that was spoiled`(doctoring: Doctoring) throws {
        for var history in patient where (try? doctoring.change(&history)) != nil {
            if SimulationChecker(history).violations.contains(where: { $0.invariant == doctoring.invariant }) { return }
        }
        Issue.record("\(doctoring.name): no violation of '\(doctoring.invariant)' in \(patient.count) histories")
    }

    @Test(arguments: restless) private func `reports what is left when all is quiet`(doctoring: Doctoring) throws {
        for var history in patient where (try? doctoring.change(&history)) != nil {
            if SimulationChecker(history).violationsAtRest.contains(where: { $0.invariant == doctoring.invariant }) { return }
        }
        Issue.record("\(doctoring.name): no violation of '\(doctoring.invariant)' in \(patient.count) histories")
    }

    @Test(arguments: doctorings) private func `reports a history that was spoiled`(doctoring: Doctoring) throws {
        for var history in sound where (try? doctoring.change(&history)) != nil {
            if SimulationChecker(history).violations.contains(where: { $0.invariant == doctoring.invariant }) { return }
        }
        Issue.record("\(doctoring.name): no violation of '\(doctoring.invariant)' in \(sound.count) histories")
    }
}
