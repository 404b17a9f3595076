package import ParleyHTTP

/// Where notifications of a subscription may be sent: any client that may subscribe chooses the URL (PROTOCOL.md, section 12.8).
package struct SubscriptionURL: Sendable {
    package let text: String
    /// The addresses that may be connected to once the name is resolved.
    package let addresses: AddressPolicy
    /// Scheme, host and port: the part that may be logged.
    package let origin: String

    /// - Parameter allowsLoopback: Whether a receiver on this machine may be called, as one under development is.
    /// - Throws: ``WebhookConfigurationError`` with the reason and what is accepted; the URL is not repeated, it may hold a secret.
    package init(_ text: String, allowsLoopback: Bool) throws(WebhookConfigurationError) {
        let parts: OutgoingURL
        do { parts = try OutgoingURL(text) } catch { throw SubscriptionURL.refused("is not a URL: \(error.message)") }
        guard !parts.hasCredentials else { throw SubscriptionURL.refused("has a user name or a password, which would be sent") }
        guard !parts.hasFragment else { throw SubscriptionURL.refused("has a fragment (#), which is never sent") }
        (self.text, origin) = (text, parts.origin)
        let address = IPAddress(numericHost: parts.host)
        let isLocal = parts.host.lowercased() == "localhost" || parts.host.hasPrefix("127.") && address?.isLoopback == true
        if isLocal {
            guard allowsLoopback else { throw SubscriptionURL.refused("is on the server's own machine") }
            addresses = .loopbackOnly
            return
        }
        guard parts.scheme == "https" else { throw SubscriptionURL.refused("is neither https nor on localhost") }
        if let address, !address.isPublic { throw SubscriptionURL.refused("is at \(address), which is no address of the public Internet") }
        addresses = .publicOnly
    }

    private static func refused(_ reason: String) -> WebhookConfigurationError {
        WebhookConfigurationError(["webhook.url \(reason). Expected https://<host>/<path> on the public Internet."])
    }
}
