import Foundation
import ParleySystem
import Testing

@testable import ParleyServer

@Suite final class `The public folder` {
    private let folder: URL
    private let server: TestServer
    private static let large = Data((0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31) })

    init() throws {
        let base = FileManager.default.temporaryDirectory.appending(path: "parley-public-\(UUID().uuidString)")
        let folder = base.appending(path: "pages")
        self.folder = folder
        try FileManager.default.createDirectory(at: folder.appending(path: "app/.git"), withIntermediateDirectories: true)
        for (name, text) in [
            "chat.html": "<p>chat", "app/index.html": "<p>app", "app/main.js": "1", "app/.git/config": "secret", ".env": "secret",
            "../secret.txt": "secret", "data": "bytes", "a b.css": "p {}", "v1": "never",
        ] {
            try Data(text.utf8).write(to: folder.appending(path: name))
        }
        try Self.large.write(to: folder.appending(path: "large.wasm"))
        for (link, target) in ["link.txt": "../secret.txt", "outside": "..", "inside.html": "chat.html"] {
            try FileManager.default.createSymbolicLink(atPath: folder.appending(path: link).path, withDestinationPath: target)
        }
        server = try TestServer { $0.publicFolder = try! PublicFolder(folder.path) }
    }

    deinit { try? FileManager.default.removeItem(at: folder.deletingLastPathComponent()) }

    @Test func `serves files with their types, at their paths`() throws {
        for (path, type, text) in [
            ("/chat.html", "text/html; charset=utf-8", "<p>chat"), ("/app/", "text/html; charset=utf-8", "<p>app"),
            ("/app/main.js", "text/javascript; charset=utf-8", "1"), ("/a%20b.css", "text/css; charset=utf-8", "p {}"),
            ("/chat.html?page=2", "text/html; charset=utf-8", "<p>chat"), ("/data", "application/octet-stream", "bytes"),
        ] {
            let answer = try server.get(path)
            #expect(answer.status == 200 && answer.text == text, "\(path): \(answer.status)")
            #expect(answer.headers["content-type"] == type)
            #expect(answer.headers["x-content-type-options"] == "nosniff")
        }
        let folder = try server.get("/app?x=1")
        #expect(folder.status == 308 && folder.headers["location"] == "/app/?x=1")
    }

    @Test(arguments: [
        "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/app/../../secret.txt", "/app/%2e%2e/%2e%2e/secret.txt", "/.env",
        "/%2eenv", "/app/.git/config", "/link.txt", "/outside/secret.txt", "/inside.html", "//secret.txt", "/app//main.js",
        "/app%2fmain.js", "/chat.html/", "/chat.html%00", "/%ff", "/.", "/nothing",
    ])
    func `serves nothing else`(_ path: String) throws {
        let answer = try server.get(path)
        #expect([400, 404].contains(answer.status), "\(path) answers \(answer.status)")
        #expect(!answer.text.contains("secret\n") && answer.text != "secret")
    }

    @Test func `leaves the server's own paths alone`() throws {
        #expect(try server.get("/").text.contains("<title>Parley"))
        #expect(try server.get("/healthz").json == ["status": "ok"])
        #expect(try server.get("/v1").code == "route_not_found")
        #expect(try server.get("/v1/agents").json?["agents"] != nil)
        #expect(try server.request("POST", "/chat.html", [], "").status == 404)
    }

    @Test func `says whether a file has changed`() throws {
        let tag = try #require(try server.get("/chat.html").headers["etag"])
        let same = try server.request("GET", "/chat.html", [("If-None-Match", "\"other\", \(tag)")], "")
        #expect(same.status == 304 && same.text.isEmpty)
        try Data("<p>another".utf8).write(to: folder.appending(path: "chat.html"))
        let changed = try server.request("GET", "/chat.html", [("If-None-Match", tag)], "")
        #expect(changed.status == 200 && changed.text == "<p>another" && changed.headers["etag"] != tag)
    }

    @Test func `sends a large file whole, and of HEAD the length alone`() throws {
        let client = try server.connect()
        let head = try client.request("HEAD", "/large.wasm")
        #expect(head.status == 200 && head.headers["content-length"] == String(Self.large.count) && head.body.isEmpty)
        let whole = try client.request("GET", "/large.wasm")
        #expect(whole.body == Bytes(Self.large))
        #expect(try client.request("GET", "/chat.html").text == "<p>chat", "the connection goes on")
    }

    @Test func `needs no key, and shows nothing that does`() throws {
        let folder = folder
        let server = try TestServer {
            $0.publicFolder = try! PublicFolder(folder.path)
            try! $0.keys.add("main:0123456789abcdef0123456789abcdef", separator: ",", from: "test")
        }
        #expect(try server.get("/chat.html").status == 200)
        for path in ["/v1/agents", "/v1/streams", "/metrics", "/readyz", "/v1/kinds"] {
            #expect(try server.get(path).status == 401, "\(path)")
        }
    }

    @Test func `that is not there is said before anything listens`() {
        let error = #expect(throws: PublicFolderError.self) { try PublicFolder("/nowhere/at/all") }
        #expect(error?.description.contains("--public is '/nowhere/at/all'") == true)
    }
}
