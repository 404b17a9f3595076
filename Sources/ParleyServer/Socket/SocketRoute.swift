internal import ParleyHTTP
internal import ParleySystem

/// The WebSocket at `/v1/socket`: many channels and trees on one connection, both ways.
struct SocketRoute: Sendable {
    let context: ServerContext

    static let path = "/v1/socket"
    /// The subprotocol that a client may ask for, so that a proxy or a browser can tell which one is spoken.
    static let subprotocol = "parley.v1"

    func handle(_ exchange: Exchange) throws(Problem) {
        guard !context.isDraining else { throw .overloaded("the server is stopping") }
        let socket = try WebSocket.accept(
            exchange.request, exchange.responder, protocols: [SocketRoute.subprotocol],
            messageBytesMax: context.configuration.socketMessageBytesMax, account: context.account(of: exchange))
        SocketSession(socket, exchange, context).begin()
    }
}
