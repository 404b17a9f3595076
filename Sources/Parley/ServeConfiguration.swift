internal import Foundation
internal import ParleyHTTP
package import ParleyServer
internal import ParleySystem
internal import ParleyWebhooks

/// The start parameters of a node: the options of `parley serve`, and its environment.
package struct ServeConfiguration: Sendable {
    /// The address to listen on. Another than loopback needs keys: see ``complete(_:)``.
    package var host = "127.0.0.1"
    package var port = 4437
    /// The folder that holds everything the node remembers.
    package var dataFolder = "./parley-data"
    /// The folder with the agents declared in Markdown; `nil`: `./agents`, if there is one.
    package var agentsFolder: String?
    /// Whether changes to files of that folder count at once, without SIGHUP.
    package var watchesAgents = false
    /// The folder of web pages that need no key; `nil`: none.
    package var publicFolder: String?
    /// How long a stop waits for what is in flight.
    package var drainTime = Duration.seconds(10)
    /// How long an agent with nothing to do stays in memory.
    package var idleTime = Duration.seconds(30)
    /// How long the pieces of an answer stay in the log once it is complete.
    package var textRetention = Duration.seconds(3_600)
    /// The receiver that is told of entries; `nil`: PARLEY_WEBHOOK_URL, or none.
    package var webhookURL: String?
    /// The entry types it is told of, separated by commas; `nil`: those by which an agent waits for a person or another program.
    package var webhookEvents: String?
    /// Whether the receiver may be on this machine or in its network.
    package var webhookAllowsPrivate = false

    /// The keys and their rights; without keys, every client that reaches the server has all rights.
    package private(set) var keys = KeyRing()
    private var keyFiles: [String] = []
    /// PEM files; both or none.
    package var tlsCertificate: String?
    package var tlsKey: String?
    /// Further origins, besides the server's own, whose pages may use it.
    package var corsOrigins: Set<String> = []
    /// Requests a second of each sender; `nil`: any.
    package var rate: Double?
    package var connectionsMax: Int?
    package var channelsMax: Int?
    /// MiB that requests may hold together.
    package var requestMemory: Int?
    package var readersPerAccountMax: Int?
    /// How many agents are in memory at most; others with something to do wait for room.
    package var agentsInMemoryMax: Int?

    package init() {}

    /// Whether only this machine can reach the node: then receivers of subscriptions may be on it, too.
    var isLoopbackOnly: Bool { isLoopback }

    /// Sets the address from `host:port`.
    package mutating func listen(on text: String) throws(ConfigurationError) {
        let meant = UInt16(text.drop { $0 == ":" }).map { " Did you mean 127.0.0.1:\($0)?" } ?? ""
        let bad = ConfigurationError("--listen is '\(text)'; expected <host>:<port>, e.g. 127.0.0.1:4437 (port 0: any free one).\(meant)")
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else { throw bad }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard !host.isEmpty else { throw bad }
        self.host = host == "localhost" ? "127.0.0.1" : host
        self.port = Int(port)
    }

    /// Takes what the environment has, and checks what the options say together.
    package mutating func complete(_ environment: [String: String]) throws(ConfigurationError) {
        keys = try readKeys(environment)
        guard (tlsCertificate == nil) == (tlsKey == nil) else {
            throw ConfigurationError("--tls-\(tlsKey == nil ? "key" : "cert") is missing: --tls-cert and --tls-key go together.")
        }
        guard !keys.isEmpty || isLoopback else {
            throw ConfigurationError(
                "--listen is '\(host):\(port)'; without keys only loopback is served (127.0.0.1, ::1, localhost): whoever reaches the address could do everything. Set PARLEY_KEYS=<name>:<secret> or --keys <file>, with a secret of `openssl rand -hex 32`."
            )
        }
    }

    private var isLoopback: Bool { ["127.0.0.1", "::1", "localhost"].contains(host) }

    /// Whether there are keys or a certificate that can be read again while the node runs.
    package var canReload: Bool { hasKeyFiles || tlsCertificate != nil }

    /// Whether keys come from files, and not from the environment alone.
    var hasKeyFiles: Bool { !keyFiles.isEmpty }

    /// Takes the keys of a file, too.
    package mutating func addKeys(file: String) { keyFiles.append(file) }

    /// The keys of the environment and of the files as they are now.
    package func readKeys(_ environment: [String: String]) throws(ConfigurationError) -> KeyRing {
        do throws(SafetyError) {
            var keys = KeyRing()
            try keys.add(environment["PARLEY_KEYS"] ?? "", separator: ",", from: "PARLEY_KEYS")
            for file in keyFiles {
                do throws(SafetyError) { try keys.addFile(file) } catch { throw SafetyError("--keys: \(error.message)") }
            }
            return keys
        } catch {
            throw ConfigurationError(error.message)
        }
    }

    /// The certificate for clients; `nil`: no TLS.
    /// - Throws: ``ConfigurationError`` that names the option.
    func identity() throws(ConfigurationError) -> TLSIdentity? {
        guard let tlsCertificate, let tlsKey else { return nil }
        try ServeConfiguration.requirePEM(tlsCertificate, "tls-cert", "CERTIFICATE", "certificate, followed by its chain", other: "tls-key")
        try ServeConfiguration.requirePEM(tlsKey, "tls-key", "PRIVATE KEY", "private key", other: "tls-cert")
        do throws(TLSError) { return try TLSIdentity(certificateFile: tlsCertificate, keyFile: tlsKey) } catch {
            throw ConfigurationError("--tls-cert, --tls-key: \(error.message).")
        }
    }

    /// Refuses a file that lacks the expected parts: OpenSSL only reports that there is no line to start at.
    private static func requirePEM(
        _ file: String, _ option: String, _ label: String, _ what: String, other: String
    ) throws(ConfigurationError) {
        let expected = "expected a PEM file with the \(what)."
        guard let text = FileManager.default.contents(atPath: file).map({ String(decoding: $0, as: UTF8.self) }) else {
            let reason = FileManager.default.fileExists(atPath: file) ? "cannot be read" : "does not exist"
            throw ConfigurationError("--\(option) is '\(file)', which \(reason); \(expected)")
        }
        guard !text.contains("\(label)-----") else { return }
        let isSwapped = text.contains(label == "CERTIFICATE" ? "PRIVATE KEY-----" : "CERTIFICATE-----")
        throw ConfigurationError(
            "--\(option) is '\(file)', which has no PEM \(label.lowercased()); \(expected)\(isSwapped ? " Is it swapped with --\(other)?" : "")"
        )
    }

    /// The pages for everyone; `nil`: none.
    func pages() throws(ConfigurationError) -> PublicFolder? {
        do throws(PublicFolderError) { return try publicFolder.map { path throws(PublicFolderError) in try PublicFolder(path) } } catch {
            throw ConfigurationError("\(error)")
        }
    }

    /// Adds origins, separated by commas.
    package mutating func addOrigins(_ text: String) throws(ConfigurationError) {
        for origin in text.split(separator: ",").map(String.init) {
            guard origin == "*" || URLOrigin(origin) != nil else {
                throw ConfigurationError("--cors-origin is '\(origin)'; expected an origin such as https://app.example.com, or *.")
            }
            corsOrigins.insert(origin)
        }
    }

    /// A count from the option `name`.
    package static func count(_ text: String, _ name: String, max: Int = 1_000_000_000) throws(ConfigurationError) -> Int {
        guard let value = Int(text), (1...max).contains(value) else {
            throw ConfigurationError("--\(name) is '\(text)'; expected a number from 1 to \(max).")
        }
        return value
    }

    package static func rate(_ text: String) throws(ConfigurationError) -> Double {
        guard let value = Double(text), (0.01...1_000_000).contains(value) else {
            throw ConfigurationError("--rate is '\(text)'; expected requests a second from 0.01 to 1000000, e.g. 50.")
        }
        return value
    }

    /// The webhook's receiver and the entries it is told of; `nil` without a webhook.
    /// - Throws: ``ConfigurationError`` with everything that is wrong.
    func webhook(_ environment: [String: String]) throws(ConfigurationError) -> WebhookConfiguration? {
        let url = webhookURL ?? environment["PARLEY_WEBHOOK_URL"] ?? ""
        guard !url.isEmpty else {
            guard webhookEvents == nil, !webhookAllowsPrivate else {
                throw ConfigurationError("there is no webhook; expected --webhook <url> or PARLEY_WEBHOOK_URL beside the options of one.")
            }
            return nil
        }
        do throws(WebhookConfigurationError) {
            return try WebhookConfiguration(
                url: url, events: webhookEvents, secret: environment["PARLEY_WEBHOOK_SECRET"], allowsPrivate: webhookAllowsPrivate)
        } catch {
            throw ConfigurationError(error.description)
        }
    }

    /// PEM: certificate authorities that the node's own calls, of models and receivers, trust besides the system's; `nil`: those alone.
    static func authorityFile(_ environment: [String: String]) throws(ConfigurationError) -> String? {
        guard let file = environment["PARLEY_CA_FILE"], !file.isEmpty else { return nil }
        guard FileManager.default.isReadableFile(atPath: file) else {
            throw ConfigurationError("PARLEY_CA_FILE is '\(file)', which cannot be read; expected a file of certificates (PEM).")
        }
        return file
    }

    /// Sets a duration in seconds from the option `name`.
    package static func seconds(_ text: String, _ name: String, example: Int) throws(ConfigurationError) -> Duration {
        guard let value = Double(text), (0...86_400).contains(value) else {
            throw ConfigurationError("--\(name) is '\(text)'; expected seconds from 0 to 86400, e.g. \(example).")
        }
        return .milliseconds(Int64(value * 1_000))
    }
}

/// The problem with how a node is started, and the remedy.
package struct ConfigurationError: Error, Sendable, CustomStringConvertible {
    package var message: String
    package var description: String { message }

    package init(_ message: String) { self.message = message }
}
