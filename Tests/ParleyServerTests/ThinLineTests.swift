import ParleySystem
import Testing

@Suite struct `Thin line` {
    @Test func `a stream is made, appended to, read and followed`() throws {
        let server = try TestServer()
        let path = try server.stream("application/json")
        let reader = try server.connect()
        try reader.send("GET", path + "?offset=-1&live=sse")
        #expect(try reader.head().status == 200)
        #expect(try reader.event()?.name == "control")
        #expect(try server.post(path, #"[{"a":1},2]"#, "application/json").status == 204)
        #expect(try reader.event()?.data == #"[{"a":1},2]"#)
        #expect(try server.get(path).text == #"[{"a":1},2]"#)
    }

    @Test func `an agent is made by its first message`() throws {
        let server = try TestServer()
        let answer = try server.post("/v1/stream/agents/echo/a", #"{"type":"message","text":"hi"}"#, "application/json")
        #expect(answer.status == 204)
        let entries = try server.get("/v1/stream/agents/echo/a").json?.array ?? []
        #expect(entries.count == 1)
        #expect(entries[0]["text"] == "hi")
        #expect(entries[0]["by"] == "anonymous")
    }
}
