internal import ParleySystem

/// How a node is started: what `parley serve` takes from its options and the environment.
package struct ServeConfiguration: Sendable {
    /// The address to listen on. Another than loopback is refused, because there are no keys yet to ask for.
    package var host = "127.0.0.1"
    package var port = 4437
    /// The folder that holds everything the node remembers.
    package var dataFolder = "./parley-data"
    /// The folder with the agents declared in Markdown; `nil`: `./agents`, if there is one.
    package var agentsFolder: String?
    /// How long a stop waits for what is under way.
    package var drainTime = Duration.seconds(10)
    /// How long an agent with nothing to do stays in memory.
    package var idleTime = Duration.seconds(30)
    /// How long the pieces of an answer stay in the log once it is complete.
    package var textRetention = Duration.seconds(3_600)

    package init() {}

    /// Sets the address from `host:port`.
    package mutating func listen(on text: String) throws(ConfigurationError) {
        let bad = ConfigurationError("--listen is '\(text)'; expected <host>:<port>, e.g. 127.0.0.1:4437 (port 0: any free one).")
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else { throw bad }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard !host.isEmpty else { throw bad }
        guard ["127.0.0.1", "::1", "localhost"].contains(host) else {
            throw ConfigurationError(
                "--listen is '\(text)'; without a key only loopback is served (127.0.0.1, ::1, localhost). Put a proxy that authenticates in front."
            )
        }
        self.host = host == "localhost" ? "127.0.0.1" : host
        self.port = Int(port)
    }

    /// Sets a duration in seconds from the option `name`.
    package static func seconds(_ text: String, _ name: String) throws(ConfigurationError) -> Duration {
        guard let value = Double(text), (0...86_400).contains(value) else {
            throw ConfigurationError("--\(name) is '\(text)'; expected seconds from 0 to 86400, e.g. 10.")
        }
        return .milliseconds(Int64(value * 1_000))
    }
}

/// What is wrong with how a node is started, and what to do about it.
package struct ConfigurationError: Error, Sendable, CustomStringConvertible {
    package var message: String
    package var description: String { message }

    package init(_ message: String) { self.message = message }
}
