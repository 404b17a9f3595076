import ParleyChannels
import ParleySystem
import Testing

@testable import ParleyWebhooks

private let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

@Suite struct `The configuration of a webhook` {
    @Test func `chooses by itself what an agent waits for somebody by`() throws {
        let configuration = try WebhookConfiguration(url: "https://hooks.example.com/a?key=b", secret: secret)
        #expect(configuration.events == [.approvalRequested, .agentParked, .agentStalled])
        #expect(configuration.origin == "https://hooks.example.com" && configuration.url == "https://hooks.example.com/a?key=b")
        #expect(!configuration.allowsPrivate && configuration.secrets.count == 1)
    }

    @Test func `takes any type that agents write but text`() throws {
        #expect(try WebhookConfiguration.events("turn.failed, emit ,agent.closed") == [.turnFailed, .emit, .agentClosed])
        let names = WebhookConfiguration.possibleEvents.map(\.name)
        #expect(try WebhookConfiguration.events(names.joined(separator: ",")).count == names.count)
        #expect(!names.contains("text") && !names.contains("message") && !names.contains("data") && names.contains("receipt"))
    }

    @Test(arguments: ["child.started", "child.ended", "budget", "memory.written", "memory.recalled", "memory.forgotten"])
    func `refuses a type that nothing writes yet, and does not offer it`(_ name: String) throws {
        let error = #expect(throws: WebhookConfigurationError.self) { try WebhookConfiguration.events("emit,\(name)") }
        #expect(error?.description.contains("--webhook-events has '\(name)'") == true)
        #expect(!WebhookConfiguration.possibleEvents.map(\.name).contains(name))
    }

    struct Case: Sendable, CustomTestStringConvertible {
        var url = "https://hooks.example.com/"
        var events: String?
        var secret: String? = ParleyWebhooksTests.secret
        var allowsPrivate = false
        var says: [String]
        var hides: [String] = []

        var testDescription: String { says.joined(separator: ", ") }
    }

    @Test(arguments: [
        Case(url: "hooks", says: ["--webhook", "https://<host>"]),
        Case(url: "ftp://example.com/", says: ["http nor https"]),
        Case(url: "file:///etc/passwd", says: ["--webhook"]),
        Case(url: "https://exa mple.com/hidden", says: ["space"], hides: ["hidden"]),
        Case(url: "https://", says: ["--webhook"]),
        Case(url: "https://example.com:hidden/", says: ["--webhook"], hides: ["hidden"]),
        Case(url: "https://user:hidden@example.com/", says: ["user name", "signature"], hides: ["hidden"]),
        Case(url: "https://hidden@example.com/", says: ["user name"], hides: ["hidden"]),
        Case(url: "https://example.com/hidden#a", says: ["fragment"], hides: ["hidden"]),
        Case(url: "http://example.com/?key=hidden", says: ["https", "--webhook-allow-private"], hides: ["hidden"]),
        Case(url: "https://127.0.0.1/", says: ["127.0.0.1", "public", "--webhook-allow-private"]),
        Case(
            url: "http://127.0.0.1:9000/hidden",
            says: [
                "--webhook is http://127.0.0.1:9000/…; expected https, and 127.0.0.1 is not an address of the public Internet. For a receiver"
            ], hides: ["hidden", "Internet. For a receiver on this machine or in its network add --webhook-allow-private. "]),
        Case(url: "https://2130706433/", says: ["127.0.0.1", "public"]),
        Case(url: "https://0x7f.1/", says: ["127.0.0.1", "public"]),
        Case(url: "https://[::1]:8443/", says: ["::1", "public"]),
        Case(url: "https://[::ffff:169.254.169.254]/", says: ["169.254.169.254", "public"]),
        Case(events: "aproval.requested", says: ["aproval.requested", "approval.requested", "agent.stalled"]),
        Case(
            events: "approval.request,nope",
            says: ["--webhook-events has 'approval.request' (did you mean approval.requested?) and 'nope'; there are "]),
        Case(url: "hidden", says: ["--webhook is not a URL: it has no scheme"], hides: ["hidden"]),
        Case(events: "text", says: ["'text'", "turn.completed"]),
        Case(events: "message", says: ["'message'"]),
        Case(events: "", says: ["''"]),
        Case(secret: nil, says: ["PARLEY_WEBHOOK_SECRET", "openssl rand -base64 32"]),
        Case(secret: "hidden", says: ["whsec_<base64", "openssl"], hides: ["hidden"]),
        Case(secret: "whsec_aGlkZGVu", says: ["24 to 64 bytes"], hides: ["aGlkZGVu"]),
        Case(secret: ParleyWebhooksTests.secret + " hidden", says: ["number 2", "PARLEY_WEBHOOK_SECRET"], hides: ["hidden", "MfKQ"]),
        Case(url: "nothing", events: "nope", secret: nil, says: ["--webhook is", "nope", "PARLEY_WEBHOOK_SECRET"]),
    ])
    func `says what is wrong and what to do, and keeps secrets`(of: Case) throws {
        let error = try #require(throws: WebhookConfigurationError.self) {
            try WebhookConfiguration(url: of.url, events: of.events, secret: of.secret, allowsPrivate: of.allowsPrivate)
        }
        for part in of.says { #expect(error.description.contains(part)) }
        for part in of.hides { #expect(!error.description.contains(part)) }
    }

    @Test func `does not tell secrets when it is printed`() throws {
        let configuration = try WebhookConfiguration(url: "https://example.com/hidden?key=hidden", secret: secret)
        for text in ["\(configuration)", String(reflecting: configuration), "\(configuration.secrets)"] {
            #expect(!text.contains("hidden") && !text.contains("49, 242"))
        }
    }

    @Test(arguments: ["http://127.0.0.1:8080/hook", "http://localhost/", "http://receiver:9000/a", "https://10.0.0.1/"])
    func `allows a receiver nearby where that was asked for`(url: String) throws {
        #expect(try WebhookConfiguration(url: url, secret: secret, allowsPrivate: true).allowsPrivate)
    }
}

@Suite struct `The signature of a webhook` {
    /// The first vector is the one that the libraries of Standard Webhooks test themselves by; the second was made with Python's hmac.
    @Test func `is that of Standard Webhooks, one for each secret`() throws {
        let secrets = try WebhookSecret.list("\(secret)  whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
        let headers = WebhookSignature.headers(
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek", at: Timestamp(milliseconds: 1_614_265_330_999), body: Bytes(#"{"test": 2432232314}"#.utf8),
            secrets: secrets)
        #expect(headers.map(\.name) == ["webhook-id", "webhook-timestamp", "webhook-signature"])
        #expect(
            headers.map(\.value) == [
                "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330",
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,O4Gjv1HqPqsMrjmczoggs/sWA8gZD0VyHG+fLh4+ktI=",
            ])
    }

    @Test func `is over the bytes of the body, whatever they are`() throws {
        let headers = WebhookSignature.headers(
            id: "msg_1", at: Timestamp(milliseconds: 1_700_000_000_000), body: Bytes(#"{"name":"Zoë 🌊"}"#.utf8),
            secrets: try WebhookSecret.list("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
        #expect(headers.last?.value == "v1,3HH1hQAibo2Jqb9KQQZPjuXXrjCSK+WurfWxIDNUTzQ=")
    }

    @Test(arguments: [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zg", "f"), ("Zm8", "fo")])
    func `reads Base64`(text: String, bytes: String) { #expect(Base64.decode(text)?.text == bytes) }

    @Test(arguments: ["Z", "Zg=", "Zg===", "Zh==", "Zm9=", "Zm9v=", "Zm 9v", "Zm-v", "====", "Zm9vZ"])
    func `takes nothing else for Base64`(text: String) { #expect(Base64.decode(text) == nil) }
}

@Suite struct `The retries of a webhook` {
    private let retry = WebhookRetry()
    private let start = Timestamp(milliseconds: 1_000_000)

    private func pause(_ attempts: UInt32, retryAfter: Duration? = nil, random: UInt64) -> Duration? {
        retry.next(after: attempts, written: start, now: start, retryAfter: retryAfter, random: random).map { start.duration(to: $0) }
    }

    @Test func `double from five seconds to an hour, give or take a fifth`() throws {
        let expected: [Double] = [5, 10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600]
        for (index, seconds) in expected.enumerated() {
            let shortest = try #require(pause(UInt32(index + 1), random: 0)) / .seconds(1)
            let longest = try #require(pause(UInt32(index + 1), random: .max)) / .seconds(1)
            #expect(abs(shortest - 0.8 * seconds) < 0.01 && abs(longest - 1.2 * seconds) < 0.01)
        }
        #expect(pause(.max, random: .max).map { $0 <= .seconds(4_320) } == true)
    }

    @Test func `wait as long as the receiver asks, up to a day`() {
        #expect(pause(1, retryAfter: .seconds(120), random: 0) == .seconds(120))
        #expect(pause(12, retryAfter: .seconds(120), random: 0) == .seconds(2_880))
        #expect(pause(1, retryAfter: .seconds(999_999_999), random: 0) == .seconds(86_400))
    }

    @Test func `end three days after the entry, with one at that instant`() {
        let last = start.advanced(by: .seconds(3 * 86_400))
        let before = last.advanced(by: .seconds(-60))
        #expect(retry.next(after: 80, written: start, now: before, retryAfter: nil, random: 1) == last)
        #expect(retry.next(after: 81, written: start, now: last, retryAfter: nil, random: 1) == nil)
    }
}
