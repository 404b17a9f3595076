package import ParleySystem

/// A request to an upstream HTTP server.
package struct OutgoingRequest: Sendable {
    package var method: String
    package var url: String
    package var headers: [(name: String, value: String)]
    package var body: Bytes
    /// How long connecting may take.
    package var connectTimeout: Duration = .seconds(10)
    /// How long the upstream may be silent, and the request may make no way, before the call fails with `upstream_timeout`.
    package var idleTimeout: Duration = .seconds(120)
    /// How long the upstream may take, once it has the request, until the body of its answer begins; `nil` is ``idleTimeout``.
    package var firstByteTimeout: Duration?
    /// Whether an answer that comes compressed, though the request did not ask for that, is decoded.
    package var decodesContent = false
    /// The addresses that may be connected to.
    package var addresses = AddressPolicy.any
    /// Whether proxies that the environment names are used; never with ``AddressPolicy/publicOnly``.
    package var usesProxy = true

    package init(method: String = "GET", url: String, headers: [(name: String, value: String)] = [], body: Bytes = []) {
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
    }
}

/// Receives the progress of an outgoing call: at most one head, then any number of pieces, then exactly one end, unless it was cancelled.
///
/// Called on the transport's loop; must not block.
package protocol OutgoingCallDelegate: AnyObject, Sendable {
    func received(status: Int, headers: [(name: String, value: String)])
    /// The bytes are valid during the call only.
    func received(body: UnsafeRawBufferPointer)
    func ended(_ error: OutgoingError?)
}

/// A call in flight.
package protocol OutgoingCall: AnyObject, Sendable {
    /// Closes the connection to the upstream; the delegate hears nothing more once this returns on the loop. Thread-safe, idempotent.
    func cancel()

    /// Takes nothing more from the upstream until ``resume()``; a few pieces may come still, and time does not count meanwhile. Thread-safe.
    func pause()

    /// Thread-safe; the delegate is not called inside this call.
    func resume()
}

extension OutgoingCall {
    package func pause() {}
    package func resume() {}
}

/// Makes HTTP calls. The real one is libcurl on the loops; tests and simulations have their own.
package protocol OutgoingTransport: AnyObject, Sendable {
    /// Starts a call. Thread-safe; the delegate is kept alive until the end.
    func start(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate) -> any OutgoingCall
}

/// Why a call failed below HTTP.
package struct OutgoingError: Error, Sendable, CustomStringConvertible {
    /// `upstream_unreachable`, `upstream_timeout`, `upstream_closed` (ended before its end), `upstream_encoding` (compressed in a way that cannot be
    /// undone, or not what its checksum says), `upstream_trailing_bytes` (more behind the end of what was compressed), `upstream_head_too_large` (longer headers than libcurl takes), `address_refused` (by the request's
    /// ``AddressPolicy``) or `invalid_url`.
    package var code: String
    package var message: String
    /// The system's reason without the URL, whose path may be a secret; may be empty.
    package var reason: String
    package var description: String { "\(code): \(message)" }

    package init(code: String, message: String, reason: String = "") {
        self.code = code
        self.message = message
        self.reason = reason
    }
}
