import FoundationEssentials
import Glibc
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyWebhooks

@Suite struct `Signing keys` {
    private func withFolder(_ body: (String) throws -> Void) throws {
        let folder = FileManager.default.temporaryDirectory.path + "/parley-keys-\(SystemWorld(threads: 1).random())"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try body(folder)
    }

    @Test func `the key of RFC 8032, section 7.1, signs as it says there`() throws {
        let seed: Bytes = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b,
            0x32,
            0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ]
        let key = try #require(Ed25519(seed: seed))
        #expect(hexadecimal(key.publicKey) == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
        #expect(hexadecimal(key.sign([])).hasPrefix("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"))
        #expect(SigningKeys(signing: key, others: [], tokenKey: []).activeID == "ds_kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k")
    }

    @Test func `keys are made once, for their owner only, and stay`() throws {
        try withFolder { folder in
            let (first, second) = (try SigningKeys.load(folder), try SigningKeys.load(folder))
            #expect(first.activeID == second.activeID && first.tokenKey == second.tokenKey && first.keys.count == 1)
            for file in ["0001.pem", "tokens.key"] {
                var status = stat()
                #expect(stat(folder + "/" + file, &status) == 0 && status.st_mode & 0o777 == 0o600)
            }
        }
    }

    @Test func `a further key takes over, and the one before stays published`() throws {
        try withFolder { folder in
            let first = try SigningKeys.load(folder)
            let text = try String(contentsOfFile: folder + "/0001.pem", encoding: .utf8)
            // As openssl genpkey writes it.
            let pem =
                "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"
            try pem.write(toFile: folder + "/0002.pem", atomically: true, encoding: .utf8)
            let second = try SigningKeys.load(folder)
            #expect(second.activeID != first.activeID && second.keys.map(\.id).contains(first.activeID) && second.keys.count == 2)
            #expect(second.keys[0].publicKey.count == 32 && text != pem)
            #expect(second.jwks["keys"]?.array?.count == 2)
        }
    }

    @Test func `a file that is no key is named`() throws {
        try withFolder { folder in
            _ = try SigningKeys.load(folder)
            try "nothing".write(toFile: folder + "/0002.pem", atomically: true, encoding: .utf8)
            #expect { try SigningKeys.load(folder) } throws: { "\($0)".contains("0002.pem") }
        }
    }

    @Test func `receivers on this machine are called where that is allowed, and connected to there only`() throws {
        for url in ["http://localhost:9/x", "http://127.0.0.1:9/x", "https://127.0.0.7/"] {
            guard case .loopbackOnly = try SubscriptionURL(url, allowsLoopback: true).addresses else {
                Issue.record("\(url) may be anywhere")
                continue
            }
            #expect(throws: WebhookConfigurationError.self) { try SubscriptionURL(url, allowsLoopback: false) }
        }
        guard case .publicOnly = try SubscriptionURL("https://worker.example/x", allowsLoopback: true).addresses else {
            Issue.record("a name may be anywhere")
            return
        }
        #expect(AddressPolicy.loopbackOnly.permits(try #require(IPAddress("127.3.2.1"))))
        #expect(!AddressPolicy.loopbackOnly.permits(try #require(IPAddress("10.0.0.1"))))
    }
}
