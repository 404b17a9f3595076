package import ParleyAgents

/// A placeholder for a model that the configuration does not have (any more): each call fails for good, and says why.
package struct UnconfiguredModel: Model {
    package let name: String
    private let problem: String

    package init(name: String, problem: String = "nothing configures it") { (self.name, self.problem) = (name, problem) }

    package var continues: Continuation { .no }

    package func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        sink.received(
            .failed(
                StepFailure(
                    code: "model_not_configured", message: "\(which): \(problem)\(remedy)", retryable: false)))
        return EndedCall()
    }

    private var which: String { name.isEmpty ? "no model is configured" : "the model '\(name)' is not configured" }
    /// A node reads its environment at start.
    private var remedy: String { (problem.hasSuffix(".") ? "" : ".") + " Then restart the server." }

    private final class EndedCall: ModelCall {
        func cancel() {}
    }
}
