package import ParleySystem

/// The data that determines what an agent's turns ask for, if it is declared by data: stored once by its hash, which `turn.started` names.
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
