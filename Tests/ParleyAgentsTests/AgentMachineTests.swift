import ParleyChannels
import ParleyLog
import ParleySystem
import Testing

@testable import ParleyAgents

/// An agent, event by event: each row is an event, and the actions that follow.
@Suite struct `An agent as a value` {
    // MARK: Turns

    @Test func `a message begins a turn, and its program starts once that is durable`() {
        var stage = MachineStage()
        #expect(stage.send(.message, ["text": "a"]) == ["write receipt turn.started as running"])
        #expect(stage.commit() == ["start 1"])
    }

    @Test func `the end of the program is written, and the next message begins behind it`() {
        var stage = MachineStage.running()
        #expect(stage.send(.message, ["text": "b"]) == [])
        #expect(stage.end("x") == ["write turn.completed as idle"])
        #expect(stage.commit() == ["fence Fenced", "stop all", "turn 1 ended", "write receipt turn.started as running"])
    }

    @Test func `a message waits in the log while there is no memory for its turn`() {
        var stage = MachineStage.idle()
        stage.view.hasRoom = false
        #expect(stage.send(.message, ["text": "a"]) == ["ask for room"])
        #expect(stage.idle() == [], "it stays to be told")
        #expect(stage.handle(.hasRoom) == ["write receipt turn.started as running"])
    }

    @Test func `a step at least once runs at once, and one at most once when its start is durable`() {
        var stage = MachineStage.running()
        #expect(stage.ask("a", .body(.atLeastOnce, .standard)) == ["write step.started", "run a"])
        #expect(stage.ask("b", .body(.atMostOnce, .standard)) == ["write step.started"])
        #expect(stage.commit() == [])
        #expect(stage.commit() == ["run b"])
    }

    @Test func `a result is given once it is durable, and only once`() {
        var stage = MachineStage.running()
        _ = stage.ask("a", .body(.atLeastOnce, .standard))
        #expect(stage.commit() == [])
        #expect(stage.turn(.bodyEnded(path: "a", attempt: 1, .success(1))) == ["write step.completed"])
        #expect(stage.turn(.bodyEnded(path: "a", attempt: 1, .success(2))) == [])
        #expect(stage.commit() == ["forget a", "give a"])
    }

    @Test func `a failed attempt is followed by another one, and the last failure is the program's`() {
        var stage = MachineStage.running()
        let policy = RetryPolicy(maximumAttempts: 2)
        _ = (stage.ask("a", .body(.atLeastOnce, policy)), stage.commit())
        let failure = StepFailure(code: "later", message: "", retryable: true)
        #expect(stage.turn(.bodyEnded(path: "a", attempt: 1, .failure(failure))) == ["write step.failed"])
        #expect(stage.commit() == ["forget a"])
        #expect(stage.turn(.retry(path: "a", attempt: 2, SavedText())) == ["write step.started", "run a"])
        _ = stage.commit()
        #expect(stage.turn(.bodyEnded(path: "a", attempt: 2, .failure(failure))) == ["write step.failed"])
        #expect(stage.commit() == ["forget a", "give a"])
    }

    // MARK: Talking to a turn

    @Test func `an interrupt ends what runs, and the program continues`() {
        var stage = MachineStage.running()
        _ = (stage.ask("a", .body(.atLeastOnce, .standard)), stage.commit())
        #expect(stage.send(.interrupt) == ["stop a", "write receipt step.failed"])
        #expect(stage.commit() == ["forget a", "give a"])
    }

    @Test func `an interrupt that meets nothing waits for the next step`() {
        var stage = MachineStage.running()
        #expect(stage.send(.interrupt) == [])
        #expect(stage.ask("a", .body(.atLeastOnce, .standard)) == ["write step.started", "run a"])
        #expect(stage.commit() == ["stop a", "write receipt step.failed"])
    }

    @Test func `nothing is bought for a step that is interrupted in the same breath`() {
        var stage = MachineStage.reopening("m", .model(MachineStage.model, ModelRequest(messages: [.user("x")]), .standard))
        #expect(stage.send(.interrupt) == [], "it replays")
        #expect(stage.turn(.release) == ["reopened m", "write step.started", "forget m", "write receipt step.completed"])
    }

    @Test func `an end that no entry asked for gives way to an interrupt before it`() {
        var stage = MachineStage.running()
        _ = (stage.ask("s", .sleep(until: stage.view.now)), stage.commit())
        #expect(stage.handle(.timerDue(DueTimer(turn: 1, path: "s", due: stage.view.now))) == ["write timer.fired step.completed"])
        stage.put(.interrupt)
        #expect(stage.yield() == ["stop s", "write receipt step.failed"])
        #expect(stage.commit() == ["forget s", "settled s", "give s"])
    }

    @Test func `a cancel ends what runs and is not shielded`() {
        var stage = MachineStage.running()
        _ = (stage.ask("a", .body(.atLeastOnce, .standard)), stage.commit())
        _ = (stage.ask("b", .body(.atLeastOnce, .standard), isShielded: true), stage.commit())
        #expect(stage.send(.cancel) == ["stop a", "write receipt supervision step.failed"])
        #expect(stage.commit() == ["forget a", "cancel program", "give a"])
    }

    @Test func `a signal is kept until something waits for it`() {
        var stage = MachineStage.running()
        #expect(stage.send(.signal, ["name": "go", "data": 1]) == [])
        #expect(stage.ask("w", .wait(signal: "go", match: [], until: nil)) == ["write step.started"])
        #expect(stage.commit() == ["write receipt step.completed"])
        #expect(stage.commit() == ["forget w", "give w"])
    }

    @Test func `a signal is for the wait of its name, byte for byte`() {
        var stage = MachineStage.running()
        for (path, name) in [("v", "\u{E9}"), ("w", "e\u{301}")] {
            _ = (stage.ask(path, .wait(signal: name, match: [], until: nil)), stage.commit())
        }
        #expect(stage.send(.signal, ["name": "e\u{301}"]) == ["write receipt step.completed"])
        #expect(stage.commit() == ["forget w", "give w"])
    }

    @Test func `an entry that came in time to a channel is read although its wait is due by now`() {
        var stage = MachineStage.running()
        let due = stage.view.now
        _ = (stage.ask("f", .follow(channel: "streams/s", after: 0, incarnation: nil, until: due)), stage.commit())
        stage.view.followed = .completed(["result": ["entries": []]])
        #expect(stage.handle(.timerDue(DueTimer(turn: 1, path: "f", due: due))) == ["write step.completed"])
        stage.put(.interrupt)
        #expect(stage.yield() == ["stop f", "write receipt step.failed"], "it stands before the entry was read")
        var other = MachineStage.running()
        _ = (other.ask("f", .follow(channel: "streams/s", after: 0, incarnation: nil, until: due)), other.commit())
        #expect(other.handle(.timerDue(DueTimer(turn: 1, path: "f", due: due))) == ["write timer.fired step.failed"])
    }

    @Test func `a channel whose wait is given up before the replay is over is no longer followed`() {
        let work = StepRequest.Work.follow(channel: "streams/s", after: 0, incarnation: nil, until: nil)
        var stage = MachineStage.reopening("f", work, Journal.OpenStep(followed: "0-7"))
        #expect(stage.turn(.gaveUp(path: "f")) == [], "it replays")
        #expect(stage.turn(.release) == ["stop f", "write step.failed"])
        #expect(stage.endedFollows == ["\(Offset(1))/f"])
        #expect(stage.commit() == ["forget f", "give f"])
    }

    @Test func `a channel in which there is nothing to read is followed again from there, once`() {
        var stage = MachineStage.running()
        _ = (stage.ask("f", .follow(channel: "streams/s", after: 2, incarnation: "0-7", until: nil)), stage.commit())
        #expect(stage.handle(.look) == [], "nothing has come")
        stage.view.followedUpTo = 5
        #expect(stage.handle(.look) == ["follow 0-7 again for \(Offset(1))/f from 5"])
        #expect(stage.handle(.look) == [])
        stage.view.followed = .completed(["result": ["entries": []]])
        #expect(stage.handle(.look) == ["write step.completed"])
    }

    @Test func `a channel that was made while a step began to follow it is followed from then on`() {
        var stage = MachineStage.running()
        _ = stage.ask("f", .follow(channel: "streams/s", after: 0, incarnation: nil, until: nil))
        #expect(stage.commit() == ["follow 0-7 again for \(Offset(1))/f from 0"])
        #expect(stage.handle(.look) == [])
    }

    @Test func `a steer joins the next call, and stays with its later attempts`() {
        var stage = MachineStage.running()
        #expect(stage.send(.steer, ["text": "louder"]) == [])
        let work = StepRequest.Work.model(MachineStage.model, ModelRequest(messages: [.user("x")]), .standard)
        #expect(stage.ask("m", work) == ["write step.started receipt", "call m with x, louder"])
        _ = stage.commit()
        let failure = StepFailure(code: "model_unavailable", message: "", retryable: true)
        _ = (stage.turn(.modelEnded(path: "m", attempt: 1, .failed(failure, SavedText()))), stage.commit())
        #expect(stage.send(.steer, ["text": "softer"]) == [])
        #expect(
            stage.turn(.retry(path: "m", attempt: 2, SavedText()))
                == ["write step.started receipt", "call m with x, louder, softer"])
    }

    private static func call(_ messages: ModelMessage...) -> StepRequest.Work {
        .model(MachineStage.model, ModelRequest(messages: messages), .standard)
    }

    /// The words of the entry at `offset`, as a program has them that was interrupted by it.
    private static func said(_ text: String, at offset: UInt64) -> ModelMessage { .user(text, source: Offset(offset).token) }

    @Test func `steers and the words of an interrupt reach the model in log order, also in later attempts`() {
        var stage = MachineStage.running()
        _ = (stage.ask("m", Self.call(.user("x"))), stage.commit())
        #expect(stage.send(.steer, ["text": "only green tea"]) == [])
        #expect(stage.send(.interrupt, ["text": "enough"]) == ["forget m", "write receipt step.completed"])
        let interrupt = stage.view.head
        #expect(stage.send(.steer, ["text": "and thanks"]) == [])
        _ = stage.commit()
        let work = Self.call(.user("x"), .assistant("tea"), Self.said("enough", at: interrupt))
        let called = "call m#2 with x, tea, only green tea, enough, and thanks"
        #expect(stage.ask("m#2", work) == ["write step.started receipt receipt", called])
        _ = stage.commit()
        let failure = StepFailure(code: "model_unavailable", message: "", retryable: true)
        _ = (stage.turn(.modelEnded(path: "m#2", attempt: 1, .failed(failure, SavedText()))), stage.commit())
        #expect(stage.turn(.retry(path: "m#2", attempt: 2, SavedText())) == ["write step.started", called])
    }

    @Test func `what is said after an interrupt that waits for the next step joins the call after it`() {
        var stage = MachineStage.running()
        _ = (stage.send(.steer, ["text": "a"]), stage.send(.interrupt, ["text": "b"]))
        let interrupt = stage.view.head
        #expect(stage.send(.steer, ["text": "c"]) == [])
        #expect(stage.ask("m", Self.call(.user("x"))) == ["write step.started receipt", "call m with x, a"])
        #expect(stage.commit() == ["forget m", "write receipt step.completed"])
        _ = stage.commit()
        let work = Self.call(.user("x"), .user("a"), Self.said("b", at: interrupt))
        #expect(stage.ask("m#2", work) == ["write step.started receipt", "call m#2 with x, a, b, c"])
    }

    @Test func `what is for another turn is refused, whatever runs`() {
        var stage = MachineStage.running()
        #expect(stage.send(.cancel, ["if_turn": .string(Offset(90).token)]) == ["write receipt"])
        #expect(stage.send(.steer, ["text": "b", "if_turn": .string(Offset(90).token)]) == ["write receipt"])
    }

    @Test func `a close for the turn that runs ends the agent behind it`() {
        var stage = MachineStage.running()
        #expect(stage.send(.close, ["if_turn": .string(Offset(1).token)]) == [])
        _ = stage.end("x")
        #expect(stage.commit().last == "write receipt agent.closed as closed")
        #expect(stage.commit() == ["stop all", "leave"])
    }

    // MARK: Passivation

    @Test func `an agent with nothing to do leaves, unless something was delivered`() {
        var stage = MachineStage.idle()
        #expect(stage.idle() == ["rest"])
        #expect(stage.handle(.stayed) == [])
        #expect(stage.idle() == ["rest"])
        #expect(stage.handle(.rested) == [])
        #expect(stage.send(.message, ["text": "a"]) == [], "it is for the next activation")
    }

    @Test func `an agent with nothing to do leaves although the clock was set back`() {
        var stage = MachineStage.idle()
        stage.view.now = stage.view.now.advanced(by: .seconds(-86_400))
        #expect(stage.handle(.alarm(.idle)) == [])
        #expect(stage.idle() == ["rest"])
    }

    @Test func `a turn that only waits is marked, and leaves when the mark is durable`() {
        var stage = MachineStage.waiting()
        #expect(stage.idle() == ["write as waiting"])
        #expect(stage.commit() == ["rest"])
        #expect(stage.handle(.rested) == ["fence Passivated"])
    }

    @Test func `input that comes while the mark is written is decided, and the agent stays`() {
        var stage = MachineStage.waiting()
        #expect(stage.idle() == ["write as waiting"])
        stage.put(.signal, ["name": "go"])
        #expect(stage.handle(.input(upTo: stage.view.head)) == ["write receipt step.completed as running"])
        #expect(stage.commit() == [], "it has something in flight")
    }

    @Test func `a turn that only waits since its last work has ended is soon marked, too`() {
        var stage = MachineStage.waiting()
        _ = (stage.ask("a", .body(.atLeastOnce, .standard)), stage.commit())
        #expect(stage.handle(.alarm(.waitingMark)) == [], "it works")
        _ = (stage.turn(.bodyEnded(path: "a", attempt: 1, .success(1))), stage.commit())
        #expect(stage.machine.rest.alarms.contains(.waitingMark))
        #expect(stage.handle(.alarm(.waitingMark)) == ["write as waiting"])
    }

    @Test func `an agent whose writes are not answered stays`() {
        var stage = MachineStage.idle()
        stage.view.isWritingText = true
        #expect(stage.idle() == [])
    }

    @Test func `a turn in which a task of its own waits leaves only when others need the room`() {
        var stage = MachineStage.running()
        _ = (stage.ask("w", .wait(signal: "go", match: [], until: nil), isFromOwnTask: true), stage.commit())
        #expect(stage.idle() == [])
        stage.view.isCrowded = true
        #expect(stage.idle() == ["write as waiting"])
    }

    // MARK: Turns without a program

    @Test func `a program that changed stalls its agent, and what it runs is of no use`() {
        var stage = MachineStage.running()
        _ = (stage.ask("a", .body(.atLeastOnce, .standard)), stage.commit())
        #expect(
            stage.turn(.differs(.mismatch(expected: "a", found: "b"), source: "X.swift:1"))
                == ["notice", "fence TurnError", "stop all", "write agent.stalled as stalled"])
        #expect(stage.commit() == ["turn 1 ended"])
    }

    @Test func `a request that differs from the journal's is told by what differs`() {
        var other = MachineStage.model
        other.name = "table:other"
        var asked = ModelRequest(messages: [.user("x")])
        let recorded = asked.journal("table:model", digest: "1", base: nil, RequestListing(asked.messages[...], history: []))
        #expect(asked.differences(from: recorded, "table:model") == "messages")
        #expect(asked.differences(from: recorded, other.name) == "model (was 'table:model', is 'table:other')")
        asked.options.maxTokens = 5
        asked.tools = [ToolDefinition(name: "t", description: "d", parameters: .object([]))]
        #expect(asked.differences(from: recorded, "table:model") == #"tools, options (were {}, are {"max_tokens":5})"#)
    }

    @Test(arguments: [
        (EntryKind.cancel, "write receipt supervision turn.cancelled as idle"), (.interrupt, "write receipt turn.interrupted as idle"),
        (.close, "write supervision turn.cancelled as idle"), (.resume, "write receipt agent.resumed as running"),
    ])
    func `a stalled agent decides every control without its program`(kind: EntryKind, action: String) {
        var stage = MachineStage.halted(.stalled)
        #expect(stage.send(.message, ["text": "b"]) == [], "it waits")
        #expect(stage.send(kind) == [action])
    }

    @Test func `a turn that ended its process pauses the second time and is parked the third`() {
        #expect(MachineStage.crashed(inVain: 0) == ["write supervision as running"])
        #expect(MachineStage.crashed(inVain: 1) == [])
        #expect(MachineStage.crashed(inVain: 2) == [])
        #expect(MachineStage.crashed(inVain: 3) == ["notice", "write supervision agent.parked as parked"])
    }

    @Test func `while it pauses a cancel is decided, but not before what the program may be given`() {
        var stage = MachineStage.halted(.running)
        #expect(stage.send(.cancel) == ["write receipt supervision turn.cancelled as idle"])
        var other = MachineStage.halted(.running)
        #expect(other.send(.signal, ["name": "go"]) == [])
        #expect(other.send(.cancel) == [])
    }

    // MARK: Logs that cannot be read, drains

    @Test func `an entry that cannot be read stops the agent, which is tried again`() {
        var stage = MachineStage.idle()
        stage.view.unreadable = [stage.view.head + 1]
        #expect(stage.send(.message, ["text": "a"]) == ["note", "stop all", "leave", "again later"])
    }

    @Test func `a write that fails for a read does the same, and one that was overtaken ends the agent`() {
        var stage = MachineStage.running()
        _ = stage.ask("a", .body(.atLeastOnce, .standard))
        #expect(stage.refuse("data_folder_inaccessible") == ["note", "fence Fenced", "stop all", "leave", "again later"])
        var other = MachineStage.running()
        _ = other.ask("a", .body(.atLeastOnce, .standard))
        #expect(other.refuse("fenced") == ["notice", "fence Fenced", "stop all", "leave"])
        var deleted = MachineStage.running()
        _ = deleted.ask("a", .body(.atLeastOnce, .standard))
        deleted.view.isDeleted = true
        #expect(deleted.refuse("agent_deleted") == ["fence Fenced", "stop all", "leave"], "a deletion is no cause for alarm")
    }

    @Test func `a process that drains begins no step and no turn`() {
        var stage = MachineStage.running()
        stage.view.isDraining = true
        #expect(stage.ask("a", .body(.atLeastOnce, .standard)) == [])
        #expect(stage.turn(.gaveUp(path: "a")) == [])
        _ = (stage.end("x"), stage.send(.message, ["text": "b"]))
        #expect(stage.commit() == ["fence Fenced", "stop all", "turn 1 ended"])
    }

    @Test func `a close that gave way does not hide what is for another turn`() {
        var stage = MachineStage.running()
        _ = stage.end("x")
        _ = stage.commit()
        #expect(stage.send(.close) == ["write receipt agent.closed as closed"])
        stage.put(.cancel, ["if_turn": .string(Offset(90).token)])
        stage.put(.cancel, ["if_turn": .string(Offset(91).token)])
        _ = stage.handle(.input(upTo: stage.view.head))
        #expect(stage.yield() == ["write receipt receipt"])
    }

    @Test func `a timer stays that is due behind one whose channel cannot be read`() {
        var stage = MachineStage.running()
        let due = stage.view.now
        for path in ["f", "g"] {
            _ = (stage.ask(path, .follow(channel: "streams/s", after: 0, incarnation: nil, until: due)), stage.commit())
        }
        stage.machine.deferredTimers = ["f", "g"].map { DueTimer(turn: 1, path: $0, due: due) }
        stage.view.isFollowedUnreadable = true
        #expect(stage.handle(.look) == ["note", "fence Fenced", "stop all", "leave", "again later"])
    }

    @Test func `a timer that brought an agent to a log which cannot be read comes again later, with the agent`() {
        var stage = MachineStage.sleeping()
        stage.view.isHistoryUnreadable = true
        #expect(stage.handle(.timerDue(DueTimer(turn: 1, path: "s", due: stage.view.now))) == ["write as running"])
        #expect(stage.commit() == ["note", "stop all", "leave", "again later with s"])
    }
}
