internal import ParleyAgents
internal import Synchronization

/// The findings on models whose way to continue is ``Continuation/auto``: once per server and model in a process.
package final class ContinuationProbes: Sendable {
    package struct Key: Hashable, Sendable {
        package var baseURL: BaseURL
        package var model: String
    }

    /// How a model treats an unfinished last message.
    package enum Finding: Sendable, Equatable {
        case prefix
        /// Continues when told so by the fields that vLLM knows.
        case prefixWithFields
        case no
    }

    package enum Outcome: Sendable, Equatable {
        case found(Finding)
        /// The upstream could not be asked. This is not remembered, so that an outage does not decide for good.
        case unknown
    }

    private enum Entry {
        case asking(waiting: [@Sendable (Bool) -> Void])
        case known(Finding)
    }

    package static let shared = ContinuationProbes()

    private let entries = Mutex<[Key: Entry]>([:])

    package init() {}

    package func known(for key: Key) -> Finding? {
        entries.withLock { if case .known(let finding) = $0[key] { finding } else { nil } }
    }

    /// Answers whether the model continues: from memory, or by `probe`, whose result is shared with all callers that ask in the meantime.
    package func find(
        for key: Key, probe: (@escaping @Sendable (Outcome) -> Void) -> Void, _ answer: @escaping @Sendable (Bool) -> Void
    ) {
        enum Step { case answer(Bool), probe, wait }
        let step: Step = entries.withLock {
            switch $0[key] {
            case .known(let finding): return .answer(finding != .no)
            case .asking(let waiting):
                $0[key] = .asking(waiting: waiting + [answer])
                return .wait
            case nil:
                $0[key] = .asking(waiting: [answer])
                return .probe
            }
        }
        switch step {
        case .answer(let continues): answer(continues)
        case .probe: probe { [self] in settle(key, $0) }
        case .wait: break
        }
    }

    private func settle(_ key: Key, _ outcome: Outcome) {
        let (finding, waiting): (Finding?, [@Sendable (Bool) -> Void]) = entries.withLock {
            guard case .asking(let waiting) = $0[key] else { return (nil, []) }
            guard case .found(let finding) = outcome else {
                $0[key] = nil
                return (nil, waiting)
            }
            $0[key] = .known(finding)
            return (finding, waiting)
        }
        for answer in waiting { answer(finding.map { $0 != .no } ?? false) }
    }
}

/// One small call that shows whether a model continues from a prefix.
enum ContinuationProbe {
    enum Outcome: Sendable, Equatable {
        case continues
        case startsOver
        /// The upstream does not take a request of this form.
        case refused
        case unknown
    }

    /// A count that is broken off. A model that starts over says "One" or "Sure"; one that takes it for a finished message and adds another may
    /// say "six", but not with the space that a continued line needs. Measured with a model of 135M parameters, which gets this one right.
    static let request = ModelRequest(
        messages: [.user("Count from one to ten in words, separated by commas.")], options: ModelOptions(maxTokens: 8, temperature: 0),
        continuing: "one, two, three, four, five,")

    static func continues(_ text: String) -> Bool {
        guard text.first?.isWhitespace == true else { return false }
        return text.drop(while: \.isWhitespace).lowercased().hasPrefix("six")
    }

    final class Sink: ModelSink {
        private let text = Mutex("")
        private let report: @Sendable (Outcome) -> Void

        init(_ report: @escaping @Sendable (Outcome) -> Void) { self.report = report }

        func received(_ event: ModelEvent) {
            switch event {
            case .text(let piece): text.withLock { $0 += piece }
            case .finished: report(ContinuationProbe.continues(text.withLock { $0 }) ? .continues : .startsOver)
            case .failed(let failure): report(failure.code == "model_bad_request" ? .refused : .unknown)
            case .reasoning, .toolCall, .returned, .usage: break
            }
        }
    }
}
