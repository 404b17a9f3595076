package import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// The receiver that is told of entries, the entries it is told of, and the keys that prove who calls.
package struct WebhookConfiguration: Sendable {
    /// http or https, without credentials.
    package let url: String
    /// Scheme, host and port: the part that may be logged, as path and query may be secrets.
    package let origin: String
    package let secrets: [WebhookSecret]
    package let events: Set<EntryKind>
    /// Whether the receiver may be on this machine or in its network, and be called without TLS.
    package let allowsPrivate: Bool

    /// The events that a person has to be told of because an agent waits for them, and no others.
    package static let usualEvents: Set<EntryKind> = [.approvalRequested, .agentParked, .agentStalled]

    /// The possible events: all that agents write, but text, which comes by the token.
    package static let possibleEvents = EntryKind.allCases.filter { $0.rawValue >= 32 && $0 != .text && !unwritten.contains($0) }

    /// Kept for later versions: this one never writes them, and a receiver that chose them would wait in vain.
    private static let unwritten: Set<EntryKind> = [.childStarted, .childEnded, .budget, .memoryWritten, .memoryRecalled, .memoryForgotten]

    /// - Parameters:
    ///   - events: Names of entry types, separated by commas; `nil`: ``usualEvents``.
    ///   - secret: `whsec_<base64>`, several separated by spaces; `nil` or empty is an error that says how to make one.
    /// - Throws: ``WebhookConfigurationError`` with everything that is wrong.
    package init(url: String, events: String? = nil, secret: String?, allowsPrivate: Bool = false) throws(WebhookConfigurationError) {
        var problems: [String] = []
        func value<Value>(_ make: () throws(WebhookConfigurationError) -> Value) -> Value? {
            do { return try make() } catch {
                problems += error.problems
                return nil
            }
        }
        let parts = value { () throws(WebhookConfigurationError) in try WebhookURL(url, allowsPrivate: allowsPrivate) }
        let chosen = value { () throws(WebhookConfigurationError) in
            try events.map { text throws(WebhookConfigurationError) in try WebhookConfiguration.events(text) }
                ?? WebhookConfiguration.usualEvents
        }
        let secrets = value { () throws(WebhookConfigurationError) in try WebhookSecret.list(secret) }
        guard let parts, let chosen, let secrets else { throw WebhookConfigurationError(problems) }
        (self.url, origin, self.secrets, self.events, self.allowsPrivate) = (url, parts.origin, secrets, chosen, allowsPrivate)
    }

    /// The entry types that `text` names.
    package static func events(_ text: String) throws(WebhookConfigurationError) -> Set<EntryKind> {
        var events: Set<EntryKind> = []
        var unknown: [String] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let name = String(part).trimmingSpaces
            if let kind = possibleEvents.first(where: { $0.name == name }) {
                events.insert(kind)
            } else {
                unknown.append(name)
            }
        }
        guard unknown.isEmpty else { throw WebhookConfigurationError([problem(with: unknown)]) }
        return events
    }

    private static func problem(with unknown: [String]) -> String {
        let names = possibleEvents.map(\.name)
        let meant = unknown.map { name in
            "'\(name)'" + (Suggestion.closest(to: name, in: names).map { " (did you mean \($0)?)" } ?? "")
        }
        return "--webhook-events has \(meant.joined(separator: " and ")); there are \(names.joined(separator: ", "))."

    }
}

extension WebhookConfiguration: CustomStringConvertible {
    package var description: String { "webhook at \(origin)" }
}

/// The problem with the configuration of a webhook, and the remedy.
package struct WebhookConfigurationError: Error, Sendable, CustomStringConvertible {
    package var problems: [String]
    package var description: String { problems.joined(separator: "\n") }

    init(_ problems: [String]) { self.problems = problems }
}

/// The requirements on the URL of a receiver.
private struct WebhookURL {
    let origin: String

    init(_ text: String, allowsPrivate: Bool) throws(WebhookConfigurationError) {
        let parts: OutgoingURL
        do { parts = try OutgoingURL(text) } catch {
            // The URL itself may hold a secret: it is not repeated.
            let reason = text.contains("://") ? error.message : "it has no scheme such as https:// in front"
            throw WebhookConfigurationError(["--webhook is not a URL: \(reason). Expected https://<host>[:<port>]/<path>."])
        }
        origin = parts.origin
        var problems: [String] = []
        if parts.hasCredentials {
            problems.append(
                "--webhook contains a user name or password, which would be sent. Remove it: the signature identifies the sender.")
        }
        if parts.hasFragment { problems.append("--webhook has a fragment (#), which is never sent. Leave it out.") }
        if !allowsPrivate {
            var reasons = parts.scheme == "https" ? [] : ["expected https"]
            if let address = IPAddress(numericHost: parts.host), !address.isPublic {
                reasons.append("\(address) is not an address of the public Internet")
            }
            if !reasons.isEmpty {
                // The path may be a secret.
                problems.append(
                    "--webhook is \(parts.origin)/…; \(reasons.joined(separator: ", and ")). For a receiver on this machine or in its network add --webhook-allow-private."
                )
            }
        }
        guard problems.isEmpty else { throw WebhookConfigurationError(problems) }
    }
}
