package import ParleyHTTP

/// The way out to receivers that are played by a closure: nothing leaves the process.
package final class ScriptedTransport: OutgoingTransport {
    package typealias Start = @Sendable (OutgoingRequest, any OutgoingCallDelegate) -> any OutgoingCall

    private let begin: Start

    /// - Parameter start: Called for each request, on the caller's thread; tells the delegate what becomes of it.
    package init(_ start: @escaping Start) { begin = start }

    package func start(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate) -> any OutgoingCall { begin(request, delegate) }
}
