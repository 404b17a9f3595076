internal import CCurl
package import ParleySystem

/// Outgoing HTTP over libcurl on one loop. Connections are kept and used again.
///
/// libcurl says which sockets and which instant it waits for; the loop watches them and tells it. Cookies, redirects and, unless a request wants them
/// undone, content codings are off: the answer arrives as the upstream sent it. Proxies come from the usual environment variables.
package final class CurlTransport: OutgoingTransport, @unchecked Sendable {  // Guard: everything is used on `loop` only.
    package let loop: EventLoop
    let authorityFile: String?

    private let multi: OpaquePointer
    private var calls: [UnsafeMutableRawPointer: CurlCall] = [:]
    private var watches: [Int32: DescriptorWatch] = [:]
    /// The kept connections on which nothing may come before the next request is sent.
    private var idle: Set<Int32> = []
    private var timer: LoopTimer?
    /// libcurl does not allow handles to be added or removed while it calls us.
    private var isInsideCurl = false
    private var isStopped = false

    /// - Parameter authorityFile: PEM: certificate authorities to trust besides the system's. libcurl looks into this file, then into the system's
    ///   folder of certificates.
    package init(_ loop: EventLoop, authorityFile: String? = nil) {
        self.loop = loop
        self.authorityFile = authorityFile
        _ = CurlTransport.initialized
        multi = OpaquePointer(curl_multi_init()!)
        let context = Unmanaged.passUnretained(self).toOpaque()  // Its callbacks come from calls that we make.
        let handle = handle
        parley_curlm_set_socket_callback(handle) { _, socket, action, context, _ in
            Unmanaged<CurlTransport>.fromOpaque(context!).takeUnretainedValue().watch(socket, action)
            return 0
        }
        parley_curlm_set_pointer(handle, CURLMOPT_SOCKETDATA, context)
        parley_curlm_set_timer_callback(handle) { _, milliseconds, context in
            Unmanaged<CurlTransport>.fromOpaque(context!).takeUnretainedValue().setTimer(milliseconds)
            return 0
        }
        parley_curlm_set_pointer(handle, CURLMOPT_TIMERDATA, context)
        // A connection is one call's at a time. libcurl takes a peer's word for it that it speaks HTTP/2, also in answer to HTTP/1.1, and would
        // send others' requests on connections whose answers are still to come: they would get each other's.
        parley_curlm_set_long(handle, CURLMOPT_PIPELINING, Int(CURLPIPE_NOTHING))
        loop.execute { loop.atStop { self.stop() } }  // Keeps the transport until then, and so the callbacks' context.
    }

    /// Starts a call. Thread-safe; the delegate is called on `loop`, never inside this call.
    package func start(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate) -> any OutgoingCall {
        let call = CurlCall(self, delegate)
        loop.execute { self.begin(call, request) }
        return call
    }

    private static let initialized = curl_global_init(Int(CURL_GLOBAL_DEFAULT))

    private var handle: UnsafeMutableRawPointer { UnsafeMutableRawPointer(multi) }
}

// MARK: Calls

extension CurlTransport {
    private func begin(_ call: CurlCall, _ request: OutgoingRequest) {
        guard !call.isCancelled else { return }
        guard !isStopped else {
            return call.end(OutgoingError(code: "upstream_unreachable", message: "the process is shutting down"))
        }
        if let error = call.prepare(request) { return call.end(error) }
        let easy = call.easy!
        calls[easy] = call
        dropSpoiled()
        curl_multi_add_handle(handle, easy)  // The timer callback brings us to `act` at once.
        call.watchIdleness(request)
    }

    /// Takes a call out of libcurl, at once or at the end of the tick if libcurl is on the stack.
    func remove(_ call: CurlCall) {
        loop.assertOnLoop()
        guard !isInsideCurl else { return loop.atEndOfTick { self.remove(call) } }
        guard let easy = call.easy, calls.removeValue(forKey: easy) != nil else { return }
        inside { curl_multi_remove_handle(handle, easy) }
        call.release()
    }

    /// Stops taking what the upstream sends, or continues.
    func pause(_ easy: UnsafeMutableRawPointer, _ isPaused: Bool) {
        inside { curl_easy_pause(easy, isPaused ? CURLPAUSE_RECV : CURLPAUSE_CONT) }
    }

    /// Lets libcurl act on a socket, or on the time, and ends the calls that are done.
    private func act(_ socket: curl_socket_t, _ events: Int32) {
        guard !isStopped else { return }
        var running: Int32 = 0
        inside { curl_multi_socket_action(handle, socket, events, &running) }
        var rest: Int32 = 0
        var done: [(CurlCall, CURLcode)] = []
        while let message = curl_multi_info_read(handle, &rest) {
            guard message.pointee.msg == CURLMSG_DONE, let call = calls[message.pointee.easy_handle] else { continue }
            done.append((call, message.pointee.data.result))
        }
        for (call, result) in done {
            let error = call.error(for: result)
            noteIdle(easy: call.easy)
            remove(call)
            call.end(error)
        }
    }

    private func inside<Result>(_ work: () -> Result) {
        let wasInside = isInsideCurl
        isInsideCurl = true
        _ = work()
        isInsideCurl = wasInside
    }

    private func stop() {
        guard !isStopped else { return }
        isStopped = true
        for call in calls.values {
            remove(call)
            call.end(OutgoingError(code: "upstream_closed", message: "the process is shutting down"))
        }
        timer?.cancel()
        curl_multi_cleanup(handle)
        for watch in watches.values { watch.cancel() }
        watches = [:]
    }
}

// MARK: Connections that are kept

extension CurlTransport {
    /// Notes the connection of an ended call, if it may be reused. HTTP/2 frames may come at any time, and belong to no particular answer.
    private func noteIdle(easy: UnsafeMutableRawPointer?) {
        guard let easy else { return }
        var version = 0
        parley_curl_get_long(easy, CURLINFO_HTTP_VERSION, &version)
        let socket = parley_curl_kept_socket(easy)
        // The socket is waited on for the answer to the next request, which may have taken the connection before this one's end was read.
        guard watches[socket] == nil else { return }
        if socket != CURL_SOCKET_BAD, version <= CURL_HTTP_VERSION_1_1 { idle.insert(socket) }
    }

    /// Ends the connections on which something unrequested has come: it would be taken for the answer to the next request. Before version 8.1,
    /// libcurl only checks for their end.
    private func dropSpoiled() {
        for socket in idle where KeptSocket.hasInput(socket) {
            idle.remove(socket)
            KeptSocket.spoil(socket)
        }
    }

    /// Closes a socket for libcurl, whose number may be another's from now on.
    func close(_ socket: curl_socket_t) -> Int32 {
        idle.remove(socket)
        return KeptSocket.close(socket)
    }
}

// MARK: Waiting for libcurl

extension CurlTransport {
    private func watch(_ socket: curl_socket_t, _ action: Int32) {
        if action != CURL_POLL_REMOVE { idle.remove(socket) }
        if action == CURL_POLL_REMOVE {
            watches.removeValue(forKey: socket)?.cancel()
            return
        }
        if watches[socket] == nil {
            watches[socket] = DescriptorWatch(loop, descriptor: socket) { [unowned self] readiness in
                var events: Int32 = 0
                if readiness.contains(.readable) { events |= CURL_CSELECT_IN }
                if readiness.contains(.writable) { events |= CURL_CSELECT_OUT }
                if readiness.contains(.failed) { events |= CURL_CSELECT_ERR }
                act(socket, events)
            }
        }
        var readiness: DescriptorWatch.Readiness = []
        if action != CURL_POLL_OUT { readiness.insert(.readable) }
        if action != CURL_POLL_IN { readiness.insert(.writable) }
        watches[socket]?.wait(for: readiness)
    }

    /// Called by libcurl, which must not be called back from here: so even 0 is a timer.
    private func setTimer(_ milliseconds: Int) {
        guard milliseconds >= 0 else {
            timer?.cancel()
            return
        }
        let delay = Duration.milliseconds(milliseconds)
        if let timer {
            timer.reschedule(after: delay)
        } else {
            timer = loop.schedule(after: delay) { [unowned self] in act(CURL_SOCKET_TIMEOUT, 0) }
        }
    }
}
