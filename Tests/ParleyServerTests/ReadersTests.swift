import Glibc
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `Live readers` {
    private func follow(_ path: String, on server: TestServer) throws -> TestClient {
        let client = try server.connect()
        try client.send("GET", path + "?offset=-1&live=sse")
        #expect(try client.head().status == 200)
        return client
    }

    @Test func `a reader that does not read holds a bounded part in memory, and gets everything in the end`() throws {
        let server = try TestServer { configuration in
            configuration.unsentBytesMax = 64 << 10
            configuration.pageBytes = 32 << 10
            configuration.http.sendBufferBytes = 16 << 10
        }
        let path = try server.stream("application/json")
        let slow = try follow(path, on: server)
        let quick = try follow(path, on: server)
        _ = try quick.event()
        let filler = String(repeating: "z", count: 10_000)
        for number in 0..<400 {
            try server.post(path, "[\(number),\"\(filler)\"]", "application/json")
            if number % 50 == 0 { _ = try quick.events { $0["streamNextOffset"]?.string == (try? server.tail(path)) } }
        }
        try server.post(path, "", "application/json", closed)
        for reader in [slow, quick] {
            let numbers = try reader.events().filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] }.compactMap(\.integer)
            #expect(numbers == Array(numbers.first!...399))
        }
    }

    @Test func `readers beyond the limit are refused`() throws {
        let server = try TestServer {
            $0.loopCount = 1
            $0.readersPerLoopMax = 2
        }
        let path = try server.stream()
        let readers = [try follow(path, on: server), try follow(path, on: server)]
        let refused = try server.get(path + "?offset=-1&live=sse")
        #expect(refused.status == 503)
        #expect(refused.code == "overloaded")
        #expect(refused.headers["retry-after"] != nil)
        withExtendedLifetime(readers) {}
        try waitForReaders(2, on: server)
    }

    @Test func `a reader that goes away is let go`() throws {
        let server = try TestServer()
        let path = try server.stream()
        var readers = try (0..<5).map { _ in try follow(path, on: server) }
        try waitForReaders(5, on: server)
        readers.removeLast(3)
        try waitForReaders(2, on: server)
        readers.removeAll()
        try waitForReaders(0, on: server)
    }

    @Test func `a connection ends after its time, behind a control event`() throws {
        let server = try TestServer { $0.streamLifetime = .milliseconds(200) }
        let path = try server.stream("text/plain", "x")
        let events = try follow(path, on: server).events()
        #expect(events.first?.data == "x")
        #expect(events.last?.name == "control")
        #expect(events.last?.json?["streamClosed"] == nil)
        #expect(events.last?.json?["streamNextOffset"] == "0000000000000001")
    }

    @Test func `a quiet stream is kept alive by comments`() throws {
        let server = try TestServer { $0.heartbeatInterval = .milliseconds(40) }
        let client = try follow(try server.stream(), on: server)
        _ = try client.event()
        #expect(try client.comments(3) >= 3)
    }

    @Test func `a server that stops tells its readers where to go on`() throws {
        let server = try TestServer()
        let path = try server.stream("text/plain", "x")
        let reader = try follow(path, on: server)
        _ = try reader.events { $0["upToDate"] == true }
        let poller = try server.connect()
        try poller.send("GET", path + "?offset=0000000000000001&live=long-poll")
        try waitForReaders(2, on: server)
        #expect(server.server.drain(within: .seconds(5)))
        let last = try #require(try reader.events().last)
        #expect(last.json?["streamNextOffset"] == "0000000000000001")
        #expect(try poller.answer().status == 204)
    }

    @Test func `a channel that nobody watches any more is watched again by the next reader`() throws {
        let server = try TestServer()
        let path = try server.stream("text/plain")
        for round in 0..<5 {
            let reader = try follow(path, on: server)
            _ = try reader.events { $0["upToDate"] == true }
            try server.post(path, "r\(round)")
            #expect(try reader.event()?.data == "r\(round)")
        }
    }
}

@Suite struct `Cursors and base64` {
    @Test func `a cursor counts intervals of 20 s since October 2024`() {
        #expect(StreamCursor.current(Timestamp("2024-10-09T00:00:00Z")!) == 0)
        #expect(StreamCursor.current(Timestamp("2024-10-09T00:00:39.999Z")!) == 1)
        #expect(StreamCursor.current(Timestamp("2024-10-10T00:00:00Z")!) == 4_320)
        #expect(StreamCursor.current(Timestamp("2020-01-01T00:00:00Z")!) == 0)
    }

    @Test(arguments: [
        ("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy"),
    ])
    func `base64 is that of RFC 4648`(_ text: String, _ expected: String) {
        var output = Bytes()
        Base64.encode(Bytes(text.utf8), to: &output)
        #expect(output.text == expected)
    }
}
