package import ParleySystem

/// The services of a node besides channels and agents, as the routes see it.
package protocol NodeHost: AnyObject, Sendable {
    /// The kinds of agents with where they come from, by name: `{kind, source, file?, model?, tools?, approve?}`. Must not block.
    var kinds: [JSON] { get }

    /// Copies all data to a folder on the node's machine while the node runs. Blocks.
    /// - Throws: an error whose description says why, and what helps.
    func backUp(to folder: String) throws
}
