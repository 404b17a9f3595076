import ParleyServer
import ParleySystem
import Testing

@Suite struct `Events beyond the protocol` {
    static let server = try! TestServer()

    @Test func `the head keeps proxies from holding events back`() throws {
        let path = try Self.server.stream("text/plain", "x", closed: true)
        let head = try Self.server.get(path + "?offset=-1&live=sse")
        #expect(head.headers["x-accel-buffering"] == "no")
        #expect(head.headers["cache-control"] == "no-cache, no-transform")
        #expect(head.headers["content-type"] == "text/event-stream")
    }

    @Test func `a control event has its offset as its id, with which a browser continues`() throws {
        let path = try Self.server.stream("application/json", "[1,2]")
        let first = try Self.server.follow(path)
        _ = try first.event()
        let offset = try #require(try first.event()?.id)
        #expect(offset == "0000000000000002")
        try Self.server.post(path, "[3,4]", "application/json", closed)
        // As a browser does by itself: the old URL, and how far it got.
        #expect(try Self.server.events(path, "?offset=-1&live=sse", [("Last-Event-ID", offset)])[0].json == [3, 4])
        #expect(try Self.server.events(path, "?offset=-1&live=sse", [("Last-Event-ID", "nonsense")])[0].json == [1, 2, 3, 4])
    }

    /// A replacement for `EventSource` cannot always set the field, and adds its last event id to the URL that it was given.
    @Test(
        arguments: ["lastEventId", "last-event-id", "Last-Event-ID", "last_event_id", "lastEventID", "evs_last_event_id"], ["-1", "now"])
    func `the last event's id counts in the query, too, and more than the offset`(_ name: String, _ offset: String) throws {
        let path = try Self.server.stream("application/json", "[1,2]")
        let id = try #require(try Self.server.events(path).last?.id)
        try Self.server.post(path, "[3,4]", "application/json", closed)
        let query = "?offset=\(offset)&live=sse&\(name)="
        #expect(try Self.server.events(path, query + id)[0].json == [3, 4])
        #expect(try Self.server.events(path, query + "0000000000000003&\(name)=\(id)")[0].json == [3, 4], "the one that was added last")
        #expect(try Self.server.events(path, query + "0000000000000003", [("Last-Event-ID", id)])[0].json == [3, 4], "the browser's own")
        #expect(try Self.server.events(path, query + id, [("Last-Event-ID", "")])[0].json == [3, 4])
        #expect(try Self.server.events(path, query).map(\.name) == (offset == "now" ? ["control"] : ["data", "control"]))
    }

    @Test func `it says nothing where there are no events`() throws {
        let path = try Self.server.stream("application/json", "[1,2]")
        #expect(try Self.server.get(path + "?offset=-1&lastEventId=0000000000000001").json == [1, 2])
    }

    @Test func `a reader from now on has an id before anything comes`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let client = try Self.server.follow(path, "?offset=now&live=sse")
        #expect(try client.event()?.id == "0000000000000001")
        try Self.server.post(path, "y")
        #expect(try client.event()?.data == "y")
        #expect(try client.event()?.id == "0000000000000002")
    }

    @Test func `a comment ends no event`() throws {
        let server = try TestServer { $0.heartbeatInterval = .milliseconds(40) }
        let path = try server.stream("text/plain", "x")
        let client = try server.follow(path)
        _ = try client.text(through: "\n\nevent: control\n")
        let quiet = try client.text(through: "\n: \n: \n")
        #expect(!quiet.contains("\n\n:") || quiet.hasSuffix("\n\n: \n: \n"))
        try server.post(path, "y")
        let rest = try client.text(through: "event: control\n")
        #expect(rest.replacing(": \n", with: "").hasPrefix("event: data\ndata:y\n"))
    }

    @Test func `who may take it for something else is told that it is UTF-8`() throws {
        let path = try Self.server.stream("text/plain", "x", closed: true)
        func type(_ path: String, _ headers: [(String, String)]) throws -> String? {
            try Self.server.get(path, headers).headers["content-type"]
        }
        let named = ("User-Agent", "python-requests/2.32")
        #expect(try type(path + "?offset=-1&live=sse", [named]) == "text/event-stream; charset=utf-8")
        #expect(try type(path + "?offset=-1&live=sse", [named, ("Sec-Fetch-Mode", "cors")]) == "text/event-stream")
        #expect(try type("/healthz", [named]) == "application/json; charset=utf-8")
        #expect(try type(path, [named]) == "text/plain", "a stream's type is what it was created with")
    }

    @Test func `the connection continues when the events have ended`() throws {
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

    @Test func `a reader of a stream that is removed and recreated does not see the new one`() throws {
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
