package import ParleyAgents
package import ParleyHTTP
package import ParleySystem

/// Makes models from their specs.
package struct ModelProviders: Sendable {
    package let configuration: ModelConfiguration
    private let transport: any OutgoingTransport
    private let world: any World
    private let probes: ContinuationProbes
    private let slots: CallSlots

    package init(
        _ configuration: ModelConfiguration, transport: any OutgoingTransport, world: any World, probes: ContinuationProbes = .shared
    ) {
        (self.configuration, self.transport, self.world, self.probes) = (configuration, transport, world, probes)
        slots = CallSlots(callsMax: configuration.callsMax)
    }

    /// Makes the model that `spec` names; the default one for `nil`.
    ///
    /// - Parameter continues: The agent's setting. It gives way to a `scripted` spec with a setting of its own; without it the configuration decides,
    ///   then the provider: `auto` for `openai`, `prefix` for `scripted`.
    /// - Parameter firstByteTimeout: How long the model may take until its answer begins; `nil`: as configured.
    /// - Throws: ``ModelConfigurationError``: no default model, a provider without its key, a way to continue that it does not have.
    package func make(
        _ spec: ModelSpec? = nil, continues: Continuation? = nil, firstByteTimeout: Duration? = nil
    ) throws(ModelConfigurationError) -> any Model {
        guard let spec = spec ?? configuration.defaultModel else {
            throw ModelConfigurationError(problems: [
                "PARLEY_MODEL is not set, and the agent names no model; accepted: \(ModelSpec.accepted). "
                    + "Remedy: try \"scripted\", which needs no network, or \"openai:\(ModelSpec.exampleModel)\"."
            ])
        }
        let continues = continues ?? configuration.continues
        var problems = [configuration.problem(with: spec)].compactMap { $0 }
        if let continues, let problem = spec.problem(with: continues) { problems.append("continues \"\(continues)\" \(problem)") }
        guard problems.isEmpty else { throw ModelConfigurationError(problems: problems) }

        switch spec.provider {
        case .openai:
            var chat = ChatCompletionsModel.Configuration(
                baseURL: configuration.baseURL, apiKey: configuration.apiKey, model: spec.model, continues: continues ?? .auto)
            chat.firstByteTimeout = firstByteTimeout ?? configuration.firstByteTimeout
            if firstByteTimeout != nil { chat.names.firstByte = "first_token_timeout in the agent's file" }
            return ChatCompletionsModel(chat, transport: transport, world: world, probes: probes, slots: slots)
        case .scripted:
            return try scripted(spec, continues: continues)
        }
    }

    private func scripted(_ spec: ModelSpec, continues: Continuation?) throws(ModelConfigurationError) -> any Model {
        do throws(SettingError) {
            var options = try ScriptedModel.Options(parsing: spec.model)
            // The spec is about this one model, the configuration about all.
            if let continues, !spec.model.contains("continues=") { options.continues = continues }
            return ScriptedModel(options, name: spec.description, world: world)
        } catch {
            throw ModelConfigurationError(problems: error.problems.map { "model \"\(spec)\" \($0)" })
        }
    }
}
