package import ParleyHTTP
package import ParleySystem

/// A proxy between a node and a real model server: passes every call on as it is, and keeps the requests.
package final class RecordingProxy: HTTPHandler {
    private let upstream: String
    private let bodies = Monitor<[JSON]>([])
    private let group = EventLoopGroup(count: 1, name: "proxy")
    // Set once, before the object is shared.
    nonisolated(unsafe) private var server: HTTPServer!

    /// - Parameter upstream: The address that calls go to, without the path `/v1`.
    package init(to upstream: String) throws {
        self.upstream = upstream
        server = HTTPServer(on: group, handler: Unowned(self))
        try server.start()
    }

    deinit {
        server.stop()
        group.stop()
    }

    /// For `OPENAI_BASE_URL`.
    package var baseURL: String { "http://127.0.0.1:\(server.port)/v1" }

    /// The bodies of the requests in the order in which they came.
    package var requests: [JSON] { bodies.withLock { $0 } }

    package func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
        if let body = try? JSON.parse(request.body) { bodies.withLock(signalAll: true) { $0.append(body) } }
        let headers = ["Content-Type", "Accept"].compactMap { name in request.header(name).map { (name: name, value: $0) } }
        let outgoing = OutgoingRequest(method: request.method, url: upstream + request.path, headers: headers, body: request.body)
        let exchange = Exchange(responder)
        let call = EndToEndHTTP.transport.start(outgoing, exchange)
        responder.onClose = { call.cancel() }
        exchange.callerGone = { call.cancel() }
    }

    /// The server keeps its handler; this keeps the proxy from keeping itself.
    private final class Unowned: HTTPHandler {
        // Guard: the proxy stops its server before it goes.
        private unowned let proxy: RecordingProxy

        init(_ proxy: RecordingProxy) { self.proxy = proxy }
        func handle(_ request: HTTPRequest, _ responder: HTTPResponder) { proxy.handle(request, responder) }
    }

    /// One call on its way back. The transport's thread hands over to the connection's loop.
    private final class Exchange: OutgoingCallDelegate, @unchecked Sendable {  // Guard: mutable state is used on the responder's loop only.
        private let responder: HTTPResponder
        private var stream: HTTPStream?
        var callerGone: (() -> Void)?

        init(_ responder: HTTPResponder) { self.responder = responder }

        func received(status: Int, headers: [(name: String, value: String)]) {
            let type = headers.first { $0.name.lowercased() == "content-type" }?.value ?? "application/json"
            responder.loop.execute { [self] in
                stream = responder.stream(status: status, headers: [("Content-Type", type)])
                stream?.onClose = callerGone
            }
        }

        func received(body: UnsafeRawBufferPointer) {
            let bytes = Bytes(body)
            responder.loop.execute { [self] in stream?.write(bytes) }
        }

        func ended(_ error: OutgoingError?) {
            responder.loop.execute { [self] in
                if error == nil { stream?.finish() } else { stream?.abort() }
                stream = nil
                callerGone = nil
            }
        }
    }
}
