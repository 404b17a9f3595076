internal import ParleySystem

/// A promise that a run has broken, and by what.
package struct SimulationViolation: Sendable, CustomStringConvertible {
    package var invariant: String
    package var evidence: String
    package var description: String { "\(invariant): \(evidence)" }
}

/// Judges a history by the promises, and by nothing that the code under test reports about itself.
package struct SimulationChecker {
    private let history: SimulationHistory
    private var found: [SimulationViolation] = []

    package init(_ history: SimulationHistory) { self.history = history }

    /// Everything that must hold once all is quiet.
    package var violations: [SimulationViolation] {
        var checker = self
        checker.checkDurability()
        checker.checkRequests()
        for (life, entries) in history.entries.sorted(by: { $0.key.name < $1.key.name }) where life.name.hasPrefix("agents/") {
            checker.found += SimulationAgentChecker(life, entries, history).violations
        }
        checker.checkBodies()
        for leftover in history.leftovers { checker.violate("nothing is left over", leftover) }
        return checker.found
    }

    /// The invariants that hold at any time, also of the log that a crash has left: nothing acknowledged is lost, nothing seen is withdrawn.
    package var violationsOfDurability: [SimulationViolation] {
        var checker = self
        checker.checkDurability()
        return checker.found
    }

    /// The invariants that hold when nothing is scheduled any more, although turns may wait: nothing that could be decided is left.
    package var violationsAtRest: [SimulationViolation] {
        history.entries.sorted { $0.key.name < $1.key.name }.filter { $0.key.name.hasPrefix("agents/") }
            .flatMap { SimulationPromptness.leftLying($0.key, $0.value, history) }
    }

    private mutating func violate(_ invariant: String, _ evidence: String) {
        found.append(SimulationViolation(invariant: invariant, evidence: evidence))
    }

    // MARK: Acknowledged, and seen

    private mutating func checkDurability() {
        for (life, entries) in history.entries {
            for (index, entry) in entries.enumerated() where entry.offset != UInt64(index) + 1 {
                violate("offsets are contiguous", "\(life): entry number \(index + 1) has offset \(entry.offset)")
                break
            }
            checkTime(life, entries)
        }
        checkAnswers()
        checkSightings()
    }

    private mutating func checkTime(_ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry]) {
        var last = ""
        for entry in entries {
            guard let at = entry.body["at"]?.string else { continue }
            if at < last { violate("`at` never decreases", "\(life): after \(last) comes \(entry.short)") }
            last = at
        }
    }

    private mutating func checkAnswers() {
        let requests = Dictionary(uniqueKeysWithValues: history.requests.map { ($0.id, $0) })
        for answer in history.answers {
            guard let life = answer.life, let request = requests[answer.request], let entries = entries(of: life, "answer to \(request.id)")
            else { continue }
            // A producer's repeat is answered without offsets.
            for (offset, members) in zip(answer.offsets, request.entries) {
                guard let entry = entry(entries, offset) else {
                    violate(
                        "what is acknowledged is durable",
                        "\(life): request \(request.id) was given offset \(offset), which the log does not have")
                    continue
                }
                if !entry.body.has(members) {
                    violate(
                        "what is acknowledged keeps its bytes",
                        "\(life): request \(request.id) appended \(members.text), at its offset stands \(entry.short)")
                }
            }
        }
    }

    private mutating func checkSightings() {
        var cursors: [Int: (life: SimulationHistory.Life, offset: UInt64)] = [:]
        for sighting in history.sightings {
            let cursor = cursors[sighting.reader].flatMap { $0.life == sighting.life ? $0.offset : nil } ?? 0
            if sighting.entry.offset != cursor + 1 {
                violate(
                    "a reader that goes on has no gap and no duplicate",
                    "\(sighting.life): reader \(sighting.reader) had read up to \(cursor) and was shown \(sighting.entry.short)")
            }
            cursors[sighting.reader] = (sighting.life, sighting.entry.offset)
            guard let entries = entries(of: sighting.life, "reader \(sighting.reader)") else { continue }
            let entry = entry(entries, sighting.entry.offset)
            if entry != sighting.entry {
                violate(
                    "what a reader saw stays",
                    "\(sighting.life): reader \(sighting.reader) saw \(sighting.entry.short), the log has \(entry?.short ?? "nothing there")"
                )
            }
        }
    }

    /// The entries of a life; `nil` when it may have been ended by a deletion.
    private mutating func entries(of life: SimulationHistory.Life, _ who: String) -> [SimulationHistory.Entry]? {
        if let entries = history.entries[life] { return entries }
        if !history.mayBeGone.contains(life.name) { violate("what is acknowledged is durable", "\(life) is gone; \(who) knows it") }
        return nil
    }

    private func entry(_ entries: [SimulationHistory.Entry], _ offset: UInt64) -> SimulationHistory.Entry? {
        offset > 0 && offset <= UInt64(entries.count) ? entries[Int(offset) - 1] : nil
    }

    // MARK: Once

    private mutating func checkRequests() {
        var appended: [String: Int] = [:]
        for entries in history.entries.values {
            for entry in entries {
                if let request = (entry.body["request"] ?? entry.body["data"]?["request"])?.string { appended[request, default: 0] += 1 }
            }
        }
        let answered = Set(history.answers.map(\.request))
        for request in history.requests {
            let count = appended[request.id] ?? 0
            if count > request.entries.count {
                violate(
                    "sent with a key is appended once",
                    "request \(request.id) of \(request.entries.count) entries has \(count) in \(request.channel)")
            }
            if answered.contains(request.id) && count < request.entries.count && !history.mayBeGone.contains(request.channel) {
                violate(
                    "what is acknowledged is durable",
                    "request \(request.id) of \(request.entries.count) entries has \(count) in \(request.channel)")
            }
        }
    }

    private mutating func checkBodies() {
        var once: [String: Int] = [:]
        for run in history.bodyRuns {
            let step = "\(run.request)/\(run.step)"
            if run.wasRecorded { violate("no body runs after its result was recorded", "step \(step)") }
            if run.isAtMostOnce { once[step, default: 0] += 1 }
        }
        for (step, count) in once.sorted(by: { $0.key < $1.key }) where count > 1 {
            violate("a body that runs at most once runs at most once", "step \(step) ran \(count) times")
        }
    }
}

extension JSON {
    /// Whether an object has all the members of another.
    fileprivate func has(_ other: JSON) -> Bool { other.members?.allSatisfy { self[$0.name] == $0.value } ?? (self == other) }
}
