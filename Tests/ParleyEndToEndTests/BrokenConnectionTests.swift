import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `A connection that breaks between two events` {
    /// The offset to continue from comes behind the data. Cut in between, the same data is sent again.
    @Test func `tail prints each entry once`() async throws {
        try await OwnThread.run {
            let server = try StreamServer { count, responder in
                let stream = StreamServer.stream(responder, count == 1 ? #"[{"number":1}]"# : #"[{"number":2}]"#)
                switch count {
                case 1: stream.end(#"{"streamNextOffset":"one"}"#)
                // Once what was written has left.
                case 2: stream.loop.schedule(after: .milliseconds(50)) { stream.abort() }
                default: stream.end(#"{"streamNextOffset":"two","streamClosed":true}"#)
                }
            }
            let output = try parley("tail", "/orders/42/events", "--json", environment: ["PARLEY_URL": server.url])
            #expect(output.exit == .status(0), "\(output.error)")
            #expect(output.standard == "{\"number\":1}\n{\"number\":2}\n")
            #expect(server.offsets == ["-1", "one", "one"])
        }
    }
}

@Suite struct `A server that drains` {
    private static func refuse(_ responder: HTTPResponder) {
        responder.respond(
            status: 503, headers: [("Retry-After", "1"), ("Content-Type", "application/problem+json")],
            body: Bytes(#"{"code":"overloaded","detail":"the server is stopping. Try again later."}"#.utf8))
    }

    @Test func `is waited for by a command that follows`() async throws {
        try await OwnThread.run {
            let server = try StreamServer { count, responder in
                switch count {
                case 1: StreamServer.stream(responder, #"[{"number":1}]"#).end(#"{"streamNextOffset":"one"}"#)
                case 2, 3: Self.refuse(responder)
                default: StreamServer.stream(responder, #"[{"number":2}]"#).end(#"{"streamNextOffset":"two","streamClosed":true}"#)
                }
            }
            let output = try parley("tail", "/orders", environment: ["PARLEY_URL": server.url])
            #expect(output.exit == .status(0) && output.standard == "{\"number\":1}\n{\"number\":2}\n", "\(output)")
            #expect(
                output.error == """
                    parley: the server at \(server.url) is stopping or overloaded; retrying
                    parley: connected again; nothing was missed

                    """)
            #expect(server.offsets == ["-1", "one", "one", "one"])
        }
    }

    @Test func `is an error at once for one that has not begun`() async throws {
        try await OwnThread.run {
            let server = try StreamServer { _, responder in Self.refuse(responder) }
            let output = try parley("tail", "/orders", environment: ["PARLEY_URL": server.url])
            #expect(output.exit == .status(1) && output.error.contains("(overloaded). Try again in 1 second."), "\(output)")
        }
    }
}

@Suite struct `What is said beside an answer` {
    @Test func `has lines of its own where both go to one place, and the answer continues`() async throws {
        try await OwnThread.run {
            let server = try StreamServer { _, responder in
                StreamServer.stream(
                    responder,
                    #"""
                    [{"type":"text","turn":"1","step":"a","part":"text","index":0,"delta":"The violin"},{"type":"supervision","cause":"drain","action":"resume"},{"type":"signal","by":"ann","name":"go"},{"type":"text","turn":"1","step":"a","part":"text","index":10,"delta":" sings."},{"type":"step.completed","turn":"1","step":"a","text":"The violin sings."}]
                    """#
                ).end(#"{"streamNextOffset":"one","streamClosed":true}"#)
            }
            let command = "'\(Products.path("parley"))' tail writer/one"
            func run(_ line: String) throws -> ChildProcess.Output {
                let process = try ChildProcess("/bin/sh", ["-c", line], environment: ["PARLEY_URL": server.url])
                #expect(try process.waitForExit("tail") == .status(0), "\(process.output)")
                return process.output
            }
            #expect(try run(command + " 2>&1").standard == "The violin\n  resumed after: drain\n> ann signal go\n sings.\n")
            #expect(try run(command).standard == "The violin sings.\n")
        }
    }
}

/// Answers each request for a channel as the test says, by how many came before.
private final class StreamServer: HTTPHandler {
    typealias Answer = @Sendable (_ count: Int, HTTPResponder) -> Void

    private let group = EventLoopGroup(count: 1, name: "streaming")
    private let asked = Monitor<[String]>([])
    private let answer: Answer
    // Set once, before the object is shared.
    nonisolated(unsafe) private var server: HTTPServer!

    init(_ answer: @escaping Answer) throws {
        self.answer = answer
        server = HTTPServer(on: group, handler: Unowned(self))
        try server.start()
    }

    deinit {
        server.stop()
        group.stop()
    }

    var url: String { "http://127.0.0.1:\(server.port)" }
    var offsets: [String] { asked.withLock { $0 } }

    func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
        let count = asked.withLock { asked in
            asked.append(request.queryValue("offset") ?? "")
            return asked.count
        }
        answer(count, responder)
    }

    /// Begins a stream of events with this data.
    static func stream(_ responder: HTTPResponder, _ data: String) -> HTTPStream {
        let stream = responder.stream(headers: [("Content-Type", "text/event-stream")])
        stream.send("data", data)
        return stream
    }

    /// The server keeps its handler; this keeps the object from keeping itself.
    private final class Unowned: HTTPHandler {
        // Guard: the object stops its server before it goes.
        private unowned let owner: StreamServer

        init(_ owner: StreamServer) { self.owner = owner }
        func handle(_ request: HTTPRequest, _ responder: HTTPResponder) { owner.handle(request, responder) }
    }
}

extension HTTPStream {
    fileprivate func send(_ event: String, _ data: String) { write(Bytes("event: \(event)\ndata:\(data)\n\n".utf8)) }

    /// Ends the stream with this control event.
    fileprivate func end(_ control: String) {
        send("control", control)
        finish()
    }
}
