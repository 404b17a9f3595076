import ParleyChannels
import ParleySystem
import Testing

@testable import ParleyAgents

/// A turn, event by event: each row is an event, and the actions that follow.
@Suite struct `A turn as a value` {
    private static let start = Timestamp(milliseconds: 1_000)

    /// A step of the program's, and what the journal has of one.
    private static func step(_ path: String, _ kind: StepKind = .step) -> StepRequest {
        StepRequest(path: path, kind: kind, source: "Test.swift:1", work: .sleep(until: start))
    }

    private static func journal(
        starts: [String], ends: [String] = [], cancelledBehind count: Int? = nil
    ) -> Journal {
        var journal = Journal()
        journal.start.at = start
        for (index, path) in starts.enumerated() {
            journal.starts.append(.init(path: path, kind: .step, at: start, offset: UInt64(index)))
            if !ends.contains(path) { journal.open[path] = Journal.OpenStep() }
        }
        for (index, path) in ends.enumerated() {
            if index == count { journal.completions.append(cancellation(startsBefore: starts.count)) }
            journal.completions.append(.init(path: path, outcome: .completed(.string(path)), at: start))
        }
        if count == ends.count { journal.completions.append(cancellation(startsBefore: starts.count)) }
        return journal
    }

    private static func cancellation(startsBefore: Int) -> Journal.Completion {
        var cancellation = Journal.Completion(path: "", outcome: .failed(.cancelled), at: start, cancellation: "enough")
        cancellation.startsBefore = startsBefore
        return cancellation
    }

    /// A machine, and what it has said to do, as words.
    private struct Stage {
        var machine: TurnMachine

        init(_ journal: Journal = journal(starts: [])) { machine = TurnMachine(journal) }

        mutating func ask(_ path: String) -> [String] {
            let request = step(path)
            switch machine.match(request, isNamed: { _ in true }) {
            case .new: return words(machine.ask(request, isKnown: false))
            case .known: return words(machine.ask(request, isKnown: true))
            case .differs(let expected): return ["differs: \(expected)"]
            }
        }

        mutating func handle(_ event: (inout TurnMachine) -> [TurnMachine.Action]) -> [String] { words(event(&machine)) }

        /// Lets go of everything that the journal has for what was asked.
        mutating func replay() -> [String] {
            var said = ["release"]
            while let index = said.firstIndex(of: "release") {
                said.remove(at: index)
                said += handle { $0.release() }
            }
            return said
        }

        private func words(_ actions: [TurnMachine.Action]) -> [String] { actions.map(\.word) }
    }

    private static func fresh() -> Stage {
        var stage = Stage()
        _ = stage.replay()
        return stage
    }

    // MARK: The first run

    @Test func `a step of a turn that has caught up begins at once`() {
        var stage = Self.fresh()
        #expect(stage.ask("a") == ["begin a"])
        #expect(stage.handle { $0.resume("a", .completed(1), at: Self.start) } == ["give a"])
    }

    @Test func `a result of a step that the program does not wait for is nothing`() {
        var stage = Self.fresh()
        #expect(stage.handle { $0.resume("a", .completed(1), at: Self.start) } == [])
    }

    @Test func `the turn's time is that of the last result, and never goes back`() {
        var stage = Self.fresh()
        _ = stage.ask("a")
        _ = stage.ask("b")
        _ = stage.handle { $0.resume("a", .completed(1), at: Timestamp(milliseconds: 5_000)) }
        _ = stage.handle { $0.resume("b", .completed(1), at: Timestamp(milliseconds: 4_000)) }
        #expect(stage.machine.now == Timestamp(milliseconds: 5_000))
    }

    @Test func `the end of the program is reported, and then written`() {
        var stage = Self.fresh()
        #expect(stage.handle { $0.ended(.success((1, 2))) } == ["report"])
        #expect(stage.handle { $0.report() } == ["end"])
    }

    @Test func `a step that the program no longer wants is ended`() {
        var stage = Self.fresh()
        _ = stage.ask("a")
        #expect(stage.handle { $0.cancel("a") } == ["cancel a"])
    }

    // MARK: Replays

    @Test func `a replay gives results in the order of the log, each when its step was asked for`() {
        var stage = Stage(Self.journal(starts: ["a", "b"], ends: ["b", "a"]))
        #expect(stage.ask("a") == [])
        #expect(stage.replay() == ["checkOutsideLater", "caughtUp"], "b's result comes first, and b has not been asked for")
        #expect(stage.ask("b") == ["release"])
        #expect(stage.replay() == ["give b", "give a", "caughtUp"])
    }

    @Test func `what was open is continued, and what is new begins behind it`() {
        var stage = Stage(Self.journal(starts: ["a", "b"], ends: ["a"]))
        #expect(stage.ask("a") == [])
        #expect(stage.replay() == ["give a", "checkOutsideLater", "caughtUp"])
        #expect(stage.ask("b") == ["reopen b", "release"])
        #expect(stage.ask("c") == ["begin c"])
    }

    @Test func `a new step waits until the journal has been asked for`() {
        var stage = Stage(Self.journal(starts: ["s/a"]))
        #expect(stage.ask("b") == [])
        #expect(stage.replay() == ["checkOutsideLater", "caughtUp"])
        #expect(stage.ask("s/a") == ["reopen s/a", "release"])
        #expect(stage.handle { $0.release() } == ["begin b", "caughtUp"])
    }

    @Test func `what ends while another task has still to ask for its step waits for that`() {
        var stage = Stage(Self.journal(starts: ["s/a", "b"]))
        #expect(stage.ask("b") == [])
        #expect(stage.replay() == ["reopen b", "checkOutsideLater", "caughtUp"])
        #expect(stage.handle { $0.resume("b", .completed(1), at: Self.start) } == ["release"])
        #expect(stage.replay() == ["caughtUp"])
        #expect(stage.ask("s/a") == ["reopen s/a", "release"])
        #expect(stage.replay() == ["give b", "caughtUp"])
    }

    @Test func `another step than the journal's is told from it`() {
        var stage = Stage(Self.journal(starts: ["a"], ends: ["a"]))
        #expect(stage.ask("b") == ["differs: step 'a'"])
    }

    @Test func `the end before everything was asked for stalls`() {
        var stage = Stage(Self.journal(starts: ["a"], ends: ["a"]))
        #expect(stage.handle { $0.ended(.success((1, 2))) } == ["report"])
        #expect(stage.handle { $0.report() } == ["stall"])
    }

    @Test func `what is delivered during a replay comes behind what the journal has`() {
        var stage = Stage(Self.journal(starts: ["s/a", "b"], ends: ["s/a"]))
        _ = stage.ask("b")
        #expect(stage.replay() == ["reopen b", "checkOutsideLater", "caughtUp"])
        #expect(stage.handle { $0.resume("b", .completed(2), at: Self.start) } == ["release"])
        _ = stage.ask("s/a")
        #expect(stage.replay() == ["give s/a", "give b", "caughtUp"])
    }

    @Test func `a step cancelled during the replay is cancelled once it is continued or begun: its end stands in the log`() {
        var stage = Stage(Self.journal(starts: ["a"]))
        _ = stage.ask("a")
        _ = stage.ask("b")
        #expect(stage.handle { $0.cancel("a") } == [])
        #expect(stage.handle { $0.cancel("b") } == [])
        #expect(stage.replay() == ["cancel a", "begin b", "cancel b", "caughtUp"])
    }

    @Test func `a wait that the program gave up ends on a replay when it gives it up again`() {
        var journal = Self.journal(starts: ["a", "b"])
        journal.open["a"] = nil
        journal.completions = [.init(path: "a", outcome: .failed(.cancelled), at: Self.start, isGivenUp: true)]
        var stage = Stage(journal)
        _ = stage.ask("a")
        #expect(stage.replay() == ["checkOutsideLater", "caughtUp"])
        #expect(stage.handle { $0.cancel("a") } == ["release"])
        #expect(stage.replay() == ["give a", "caughtUp"])
    }

    @Test func `a child that waits for something outside is told from one that waits for a step`() {
        var stage = Self.fresh()
        stage.machine.childBegan("m/0")
        stage.machine.childBegan("m/1")
        _ = stage.ask("m/0/a")
        #expect(stage.machine.waitsOutside)
        _ = stage.ask("m/1/n/0/b")
        #expect(!stage.machine.waitsOutside, "it waits for its own child")
        stage.machine.childEnded("m/1")
        #expect(!stage.machine.waitsOutside)
    }

    // MARK: Being cancelled

    @Test func `a cancel reaches the program, which may still end as it likes`() {
        var stage = Self.fresh()
        _ = stage.ask("a")
        #expect(stage.handle { $0.cancelled("enough", at: Self.start) } == ["cancelProgram"])
        #expect(stage.machine.cancellation == "enough")
        #expect(stage.handle { $0.resume("a", .failed(.cancelled), at: Self.start) } == ["give a"])
        #expect(stage.handle { $0.ended(.failure(StepFailure.cancelled)) } == ["report"])
        #expect(stage.handle { $0.report() } == ["end"])
    }

    @Test func `a second cancel changes nothing`() {
        var stage = Self.fresh()
        _ = stage.handle { $0.cancelled("enough", at: Self.start) }
        #expect(stage.handle { $0.cancelled("more", at: Self.start) } == [])
        #expect(stage.machine.cancellation == "enough")
    }

    @Test func `a replay is cancelled where it was the first time`() {
        var stage = Stage(Self.journal(starts: ["a"], ends: ["a"], cancelledBehind: 1))
        #expect(stage.replay().contains("caughtUp"))
        #expect(stage.machine.cancellation == nil, "a stands before it")
        _ = stage.ask("a")
        #expect(stage.replay() == ["give a", "cancelProgram", "caughtUp"])
    }

    @Test func `a program that ends while a cancel of the journal is to come is cancelled first`() {
        var stage = Stage(Self.journal(starts: ["a"], ends: ["a"], cancelledBehind: 1))
        #expect(stage.handle { $0.ended(.success((1, 2))) } == ["report"])
        #expect(stage.handle { $0.report() } == ["cancelProgram", "report"])
        #expect(stage.handle { $0.report() } == ["end"])
    }

    // MARK: Compensation

    @Test func `a failed turn takes back what it did, the latest first, and then ends`() {
        var stage = Self.fresh()
        for path in ["first", "second"] { stage.machine.compensate(Self.step(path)) }
        #expect(stage.handle { $0.ended(.failure(StepFailure.cancelled)) } == ["compensate"])
        #expect(stage.handle { $0.report() } == [], "it ends when that is done")
        #expect(stage.machine.nextCompensation()?.path == "second")
        stage.machine.compensationFailed("second")
        #expect(stage.machine.nextCompensation()?.path == "first")
        #expect(stage.machine.nextCompensation() == nil)
        #expect(stage.handle { $0.compensated() } == ["report"])
        #expect(stage.handle { $0.report() } == ["end"])
        #expect(stage.machine.compensations.failed == ["second"])
    }

    @Test func `a completed turn takes nothing back, unless it is cancelled before its end is written`() {
        var stage = Self.fresh()
        stage.machine.compensate(Self.step("undo"))
        #expect(stage.handle { $0.ended(.success((1, 2))) } == ["report"])
        #expect(stage.handle { $0.cancelled("enough", at: Self.start) } == ["cancelProgram", "compensate"])
    }

    @Test func `an interrupt takes nothing back`() {
        var stage = Self.fresh()
        stage.machine.compensate(Self.step("undo"))
        #expect(stage.handle { $0.ended(.failure(Interrupted(partial: "", redirection: nil))) } == ["report"])
    }

    @Test func `a program that is left keeps nothing that was to be run`() {
        var stage = Self.fresh()
        _ = stage.handle { $0.ask(Self.step("a"), isKnown: false) }
        stage.machine.compensate(Self.step("undo"))
        stage.machine.leaveProgram()
        #expect(stage.machine.waitCount == 0)
        #expect(stage.machine.compensations.registered.isEmpty)
    }

    // MARK: Waits outside the turn

    @Test func `a replay that waits for something outside the turn is looked at again, and said at last`() {
        var stage = Stage(Self.journal(starts: ["a"]))
        #expect(stage.replay() == ["checkOutsideLater", "caughtUp"])
        for _ in 1..<6 { #expect(stage.handle { $0.checkOutside() } == ["checkOutsideLater"]) }
        #expect(stage.handle { $0.checkOutside() } == ["warn: step 'a'"])
    }

    @Test func `a cancelled one first has its program cancelled, and then does not wait for it any longer`() {
        var stage = Stage(Self.journal(starts: ["a"], ends: ["a"], cancelledBehind: 1))
        _ = stage.replay()
        #expect(stage.handle { $0.checkOutside() } == ["cancelProgram", "checkOutsideLater"])
        #expect(stage.handle { $0.checkOutside() } == ["cancelProgram", "release", "checkOutsideLater"])
    }
}

extension TurnMachine.Action {
    fileprivate var word: String {
        switch self {
        case .begin(let request): "begin \(request.path)"
        case .reopen(let request, _): "reopen \(request.path)"
        case .cancel(let request): "cancel \(request.path)"
        case .give(let path, _): "give \(path)"
        case .giveNext(let completion): "giveNext \(completion.path)"
        case .release: "release"
        case .caughtUp: "caughtUp"
        case .checkOutsideLater: "checkOutsideLater"
        case .warnOfOutside(let next): "warn: \(next)"
        case .cancelProgram: "cancelProgram"
        case .compensate: "compensate"
        case .report: "report"
        case .end: "end"
        case .stall: "stall"
        }
    }
}
