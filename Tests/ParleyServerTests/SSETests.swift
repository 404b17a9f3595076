import ParleySystem
import Testing

@Suite struct `Events beyond the protocol` {
    static let server = try! TestServer()

    @Test func `the head keeps proxies from holding events back`() throws {
        let path = try Self.server.stream("text/plain", "x", closed: true)
        let head = try Self.server.get(path + "?offset=-1&live=sse")
        #expect(head.headers["x-accel-buffering"] == "no")
        #expect(head.headers["cache-control"] == "no-cache")
        #expect(head.headers["content-type"] == "text/event-stream")
    }

    @Test func `a control event has its offset as its id, with which a browser goes on`() throws {
        let path = try Self.server.stream("application/json", "[1,2]")
        let first = try Self.server.follow(path)
        _ = try first.event()
        let offset = try #require(try first.event()?.id)
        #expect(offset == "0000000000000002")
        try Self.server.post(path, "[3,4]", "application/json", closed)
        // What a browser does by itself: the old URL, and how far it got.
        #expect(try Self.server.events(path, "?offset=-1&live=sse", [("Last-Event-ID", offset)])[0].json == [3, 4])
        #expect(try Self.server.events(path, "?offset=-1&live=sse", [("Last-Event-ID", "nonsense")])[0].json == [1, 2, 3, 4])
    }

    @Test func `the connection goes on when the events have ended`() throws {
        let path = try Self.server.stream("text/plain", "x", closed: true)
        let client = try Self.server.follow(path)
        #expect(try client.events().map(\.name) == ["data", "control"])
        #expect(try client.request("GET", path).text == "x")
    }

    @Test func `the end is the last event`() throws {
        let path = try Self.server.stream("text/plain", "x", closed: true)
        let events = try Self.server.follow(path).events()
        #expect(events.last?.json == ["streamNextOffset": .string(try Self.server.tail(path)), "upToDate": true, "streamClosed": true])
    }

    @Test func `a stream that is removed ends without claiming to be closed`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let client = try Self.server.follow(path)
        _ = try client.events { $0["upToDate"] == true }
        #expect([200, 204].contains(try Self.server.request("DELETE", path).status))
        #expect(try client.events().allSatisfy { $0.json?["streamClosed"] == nil })
    }

    @Test func `a reader of a stream that is removed and made anew does not see the new one`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let client = try Self.server.follow(path)
        _ = try client.events { $0["upToDate"] == true }
        #expect([200, 204].contains(try Self.server.request("DELETE", path).status))
        #expect(try Self.server.request("PUT", path, [("Content-Type", "text/plain")] + closed, "new").status == 201)
        #expect(try client.events().filter { $0.name == "data" }.isEmpty)
    }
}

func decodeBase64(_ text: String) -> Bytes? {
    let alphabet = Bytes("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    guard text.utf8.count % 4 == 0 else { return nil }
    var bits: UInt32 = 0
    var count = 0
    var output = Bytes()
    for byte in text.utf8 where byte != UInt8(ascii: "=") {
        guard let value = alphabet.firstIndex(of: byte) else { return nil }
        bits = bits << 6 | UInt32(value)
        count += 6
        if count >= 8 {
            count -= 8
            output.append(UInt8(truncatingIfNeeded: bits >> UInt32(count)))
        }
    }
    return output
}
