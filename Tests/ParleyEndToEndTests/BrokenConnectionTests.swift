import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `A connection that breaks between two events` {
    /// The offset to continue from comes behind the data. Cut in between, the same data comes again.
    @Test func `tail prints each entry once`() async throws {
        try await OwnThread.run {
            let server = try CuttingServer()
            let output = try parley("tail", "orders/42/events", "--json", environment: ["PARLEY_URL": server.url])
            #expect(output.exit == .status(0), "\(output.error)")
            #expect(output.standard == "{\"number\":1}\n{\"number\":2}\n")
            #expect(server.offsets == ["-1", "one", "one"])
        }
    }
}

/// Streams two entries over three connections: the second breaks off between the data of the second entry and its control event.
private final class CuttingServer: HTTPHandler {
    private let group = EventLoopGroup(count: 1, name: "cutting")
    private let asked = Monitor<[String]>([])
    // Set once, before anybody has the object.
    nonisolated(unsafe) private var server: HTTPServer!

    init() throws {
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
        let stream = responder.stream(headers: [("Content-Type", "text/event-stream")])
        func send(_ event: String, _ data: String) { stream.write(Bytes("event: \(event)\ndata:\(data)\n\n".utf8)) }
        send("data", count == 1 ? #"[{"number":1}]"# : #"[{"number":2}]"#)
        switch count {
        case 1: send("control", #"{"streamNextOffset":"one"}"#)
        case 2:
            // Once what was written has left.
            stream.loop.schedule(after: .milliseconds(50)) { stream.abort() }
            return
        default: send("control", #"{"streamNextOffset":"two","streamClosed":true}"#)
        }
        stream.finish()
    }

    /// The server keeps its handler; this keeps the object from keeping itself.
    private final class Unowned: HTTPHandler {
        // Guard: the object stops its server before it goes.
        private unowned let owner: CuttingServer

        init(_ owner: CuttingServer) { self.owner = owner }
        func handle(_ request: HTTPRequest, _ responder: HTTPResponder) { owner.handle(request, responder) }
    }
}
