import Testing

@testable import ParleyHTTP

@Suite struct `An authority` {
    @Test(
        arguments: [
            ("Example.COM", "example.com", nil), ("a.b.", "a.b", nil), ("a:8080", "a", 8_080), ("a:", "a", nil), ("a.:80", "a", 80),
            ("127.0.0.1:1", "127.0.0.1", 1), ("[::1]", "[::1]", nil), ("[0:0::1]:443", "[::1]", 443),
            ("[2001:DB8::A]", "[2001:db8::a]", nil),
            ("a:65535", "a", 65_535), ("a:0080", "a", 80),
        ] as [(String, String, UInt16?)])
    func `is a host and a port in one form`(_ text: String, _ host: String, _ port: UInt16?) throws {
        let authority = try #require(Authority(text))
        #expect(authority.host == host && authority.port == port)
    }

    @Test(arguments: [
        "", ".", ":80", "a:65536", "a:1x", "a:-1", "a:000080", "u@a", "[::1", "::1", "[127.0.0.1]", "[]", "a b", "a/b", "[::1]x", "a]",
        "a\u{e9}",
    ])
    func `is nothing else`(_ text: String) { #expect(Authority(text) == nil) }

    @Test(arguments: [
        ("x", "x:80", "http", true), ("X.", "x:443", "https", true), ("x", "x:443", "http", false), ("x:80", "x:80", "https", true),
        ("x", "x.", "http", true), ("x", "y", "http", false), ("[::1]:80", "[0::1]", "http", true), ("x:8080", "x", "http", false),
    ])
    func `is another's when both lead to one place`(_ a: String, _ b: String, _ scheme: String, _ isSame: Bool) throws {
        #expect(try #require(Authority(a)).isSame(as: #require(Authority(b)), in: scheme) == isSame)
    }

    @Test func `is this machine's by its name or number`() {
        for name in ["localhost", "LOCALHOST.:1", "a.localhost", "127.9.9.9", "[::1]:2"] {
            #expect(Authority(name)?.isLoopback == true, "\(name)")
        }
        for name in ["localhost.x", "xlocalhost", "128.0.0.1", "[::2]", "127.0.0.1.x", "[::1].evil.com"] {
            #expect(Authority(name)?.isLoopback != true, "\(name)")
        }
    }

    @Test func `stands with its scheme in front of a URL`() throws {
        let (origin, rest) = try #require(URLOrigin.split("HTTPS://X.example:443/a/b?c#d"))
        #expect(origin == URLOrigin("https://x.example") && rest == "/a/b?c#d")
        #expect(Set([origin]).contains(try #require(URLOrigin("https://x.example."))))
        #expect(URLOrigin("http://x") != URLOrigin("https://x"))
        for text in ["null", "", "http://", "ftp://x", "http://x/", "http://u@x", "//x", "http//x"] {
            #expect(URLOrigin(text) == nil, "\(text)")
        }
    }

    @Test(arguments: [
        ("http://localhost:1/", true), ("http://LOCALHOST./", true), ("http://a.localhost/", true), ("https://127.0.0.1/", true),
        ("http://127.1/", true), ("http://0x7f000001/", true), ("http://[::1]:8/", true), ("http://128.0.0.1/", false),
        ("http://localhost.example/", false), ("http://example/", false), ("http://[::2]/", false),
    ])
    func `of an outgoing call that is this machine's is asked without a proxy`(_ url: String, _ isLoopback: Bool) throws {
        #expect(try OutgoingURL(url).isLoopback == isLoopback)
    }
}
