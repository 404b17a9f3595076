internal import ParleyChannels
package import ParleySystem

/// A key that we share with the receiver: `whsec_` and the Base64 of 24 to 64 random bytes (Standard Webhooks, "Signature scheme").
package struct WebhookSecret: Sendable {
    let key: Bytes

    static let prefix = "whsec_"
    private static let keyBytes = 24...64
    private static let remedy = #"Make one with: echo "whsec_$(openssl rand -base64 32)""#

    /// `nil` for anything else.
    package init?(_ text: some StringProtocol) {
        guard text.hasPrefix(WebhookSecret.prefix), let key = Base64.decode(text.dropFirst(WebhookSecret.prefix.count)),
            WebhookSecret.keyBytes.contains(key.count)
        else { return nil }
        self.key = key
    }

    /// Secrets separated by spaces: while one replaces another, both sign.
    static func list(_ text: String?) throws(WebhookConfigurationError) -> [WebhookSecret] {
        let parts = (text ?? "").split { $0 == " " || $0 == "\t" || $0.isNewline }
        guard !parts.isEmpty else { throw WebhookConfigurationError(["PARLEY_WEBHOOK_SECRET is not set. \(remedy)"]) }
        var secrets: [WebhookSecret] = []
        for (index, part) in parts.enumerated() {
            guard let secret = WebhookSecret(part) else {
                let which = parts.count > 1 ? "number \(index + 1) of PARLEY_WEBHOOK_SECRET" : "PARLEY_WEBHOOK_SECRET"
                throw WebhookConfigurationError([
                    "\(which) is not whsec_<base64> of \(keyBytes.lowerBound) to \(keyBytes.upperBound) bytes. \(remedy)"
                ])
            }
            secrets.append(secret)
        }
        return secrets
    }
}

extension WebhookSecret: CustomStringConvertible {
    package var description: String { "\(WebhookSecret.prefix)…" }
}

/// The three headers of Standard Webhooks that tell a receiver who calls, and which delivery it is.
package enum WebhookSignature {
    /// - Parameters:
    ///   - id: The same over all attempts; without a full stop, which separates what is signed.
    ///   - at: When this attempt is made. Receivers refuse old ones, so that no eavesdropper can replay them.
    package static func headers(id: String, at: Timestamp, body: Bytes, secrets: [WebhookSecret]) -> [(name: String, value: String)] {
        let seconds = at.milliseconds / 1_000
        let signed = Bytes("\(id).\(seconds).".utf8) + body
        let signatures = secrets.map { secret in
            var text = Bytes("v1,".utf8)
            Base64.encode(HMACSHA256.code(signed, key: secret.key), to: &text)
            return text.text
        }
        return [
            ("webhook-id", id), ("webhook-timestamp", "\(seconds)"), ("webhook-signature", signatures.joined(separator: " ")),
        ]
    }
}
