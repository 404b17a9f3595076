internal import ParleyChannels
internal import ParleyLog
package import ParleySystem

/// What decides what an agent's turns ask for, as far as it is data: stored once by its hash, which `turn.started` names.
package struct AgentDefinition: Sendable {
    /// RFC 8785.
    let content: Bytes
    let digest: Bytes

    package init(_ json: JSON) {
        content = json.canonical
        digest = SHA256.digest(content)
    }

    /// The SHA-256 in hexadecimal.
    package var sha256: String { hexadecimal(digest) }
}

extension Activation {
    /// The program of a turn that was begun before: with the definition that it began with, if the agent has another one now.
    ///
    /// Journals of earlier versions, and those of agents written in Swift, name no definition: they go on with the program of now.
    func receive(of journal: Journal) throws -> AnyAgent.Receive {
        guard let name = journal.definition, name != agent.definition?.sha256, let beganWith = agent.beganWith,
            let digest = Bytes(hexadecimal: name), let content = try runtime.channels.log.get(.big, channel.id.key(digest))
        else { return agent.receive }
        return beganWith(try JSON.parse(content))
    }
}
