import Glibc
import ParleyChannels
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

    /// Two that do not read while an agent works, and one that does.
    @Test func `a slow reader may go over to the settled view, is told so, and misses nothing of it; the others get everything`() throws {
        let server = try TestServer { configuration in
            configuration.unsentBytesMax = 64 << 10
            configuration.pageBytes = 32 << 10
            configuration.http.sendBufferBytes = 16 << 10
        }
        let path = "/v1/stream/agents/echo/slow"
        #expect(try server.request("PUT", path).status == 201)
        func reader(_ choice: String) throws -> TestClient {
            let client = try TestClient(port: server.port, receiveBuffer: choice.isEmpty ? nil : 4_096)
            try client.send("GET", path + "?offset=-1&live=sse" + choice)
            #expect(try client.head().status == 200)
            return client
        }
        let (settling, parking, quick) = (try reader("&behind=settled"), try reader("&behind=park"), try reader(""))
        var seen: [JSON] = []
        func entries(_ events: [TestClient.Event]) -> [JSON] { events.filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] } }
        for number in 0..<60 {
            let position = Position(turn: 1, step: "s\(number)", attempt: 1)
            var step = [NewEntry(.stepStarted, position, ("kind", "model"))]
            for index in 0..<16 {
                let text = TextDelta(
                    part: .text, index: UInt64(index * 1_000), continuesAt: nil, delta: Bytes(repeating: 0x78, count: 1_000))
                step.append(NewEntry(text: text, at: position))
                step.append(NewEntry(.emit, nil, ("name", .string("\(number)/\(index)"))))  // Keeps the pieces apart.
            }
            step.append(NewEntry(.stepCompleted, position, ("text", .string("the text of \(number)"))))
            server.channels.submit(Append(to: "agents/echo/slow", step))
            let tail = UInt64((number + 1) * step.count)
            seen += entries(try quick.events { $0["streamNextOffset"]?.string.flatMap { UInt64($0, radix: 16) } == tail })
        }
        let tail = try server.tail(path)
        #expect(offsets(seen) == Array(1...UInt64(tail, radix: 16)!))
        try server.eventually("two parked readers") { try server.metric("parley_readers_parked") == 2 }
        try server.eventually("their bytes") { try server.metric("parley_readers_unsent_bytes") ?? 0 > 65_536 }
        #expect(try server.metric("parley_readers_unsent_bytes") ?? .infinity < 2 * Double(64 + 2 * 32 + 64) * 1_024, "bounded")
        #expect(try server.metric("parley_waiting_bytes") ?? 0 > 65_536)
        #expect(try server.metric("parley_readers_settled_total") == 0)

        #expect(offsets(entries(try parking.events { $0["streamNextOffset"]?.string == tail })) == Array(1...UInt64(tail, radix: 16)!))
        let events = try settling.events { $0["streamNextOffset"]?.string == tail }
        let change = try #require(events.firstIndex { $0.json?["view"] == "settled" })
        #expect(events.filter { $0.json?["view"] != nil }.count == 1)
        let place = try #require(events[change].json?["streamNextOffset"]?.string)
        #expect(offsets(entries(Array(events[..<change]))) == Array(1...UInt64(place, radix: 16)!))
        #expect(place < tail)
        // From there on it gets the entries of the settled view.
        var (settled, next) = ([JSON](), place)
        while next != tail {
            let page = try server.get(path + "?view=settled&offset=\(next)")
            settled += try #require(page.json?.array)
            next = page.next
        }
        #expect(entries(Array(events[change...])) == settled)
        #expect(settled.contains { $0["type"] == "step.completed" } && settled.allSatisfy { $0["type"] != "text" })
        #expect(try server.metric("parley_readers_settled_total") == 1)
        #expect(try server.metric("parley_readers_parked_total") ?? 0 >= 2)
        #expect(try server.metric("parley_readers_parked") == 0)
    }

    private func offsets(_ entries: [JSON]) -> [UInt64] { entries.compactMap { $0["offset"]?.string.flatMap { UInt64($0, radix: 16) } } }

    @Test func `a reader that was parked and goes away is counted no more`() throws {
        let server = try TestServer {
            $0.unsentBytesMax = 16 << 10
            $0.http.sendBufferBytes = 16 << 10
        }
        let path = try server.stream()
        var slow: TestClient? = try TestClient(port: server.port, receiveBuffer: 4_096)
        try slow!.send("GET", path + "?offset=-1&live=sse")
        try waitForReaders(1, on: server)
        for _ in 0..<100 where try server.metric("parley_readers_parked") == 0 {
            try server.post(path, String(repeating: "x", count: 20_000))
        }
        #expect(try server.metric("parley_readers_parked") == 1)
        slow = nil
        try waitForReaders(0, on: server)
        #expect(try server.metric("parley_readers_parked") == 0)
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

    @Test func `a server that stops tells its readers where to resume`() throws {
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

    @Test func `a server that is about to stop takes no new readers, and those it has continue`() throws {
        let server = try TestServer()
        let path = try server.stream("text/plain", "x")
        let reader = try follow(path, on: server)
        _ = try reader.events { $0["upToDate"] == true }
        server.server.refuseReaders()
        #expect(try server.get("/readyz").status == 503)
        for mode in ["sse", "long-poll"] {
            let refused = try server.get(path + "?offset=now&live=\(mode)")
            #expect(refused.status == 503 && refused.code == "overloaded" && refused.headers["retry-after"] != nil)
        }
        #expect(try server.post(path, "y").status == 204)
        #expect(try reader.event()?.data == "y")
        #expect(try server.get(path).text == "xy")
        #expect(server.server.drain(within: .seconds(5)))
        #expect(try #require(try reader.events().last).json?["streamNextOffset"] == "0000000000000002")
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
