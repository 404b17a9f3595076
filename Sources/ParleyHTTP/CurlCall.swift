internal import CCurl
internal import ParleySystem
internal import Synchronization

/// One call of a `CurlTransport`: an easy handle and where its answer goes.
final class CurlCall: OutgoingCall, @unchecked Sendable {  // Guard: `cancelled` and `paused` are atomic; the rest is used on the loop only.
    private let transport: CurlTransport
    private let cancelled = Atomic(false)
    /// The state that was requested last.
    private let paused = Atomic(false)
    private var pauseIsApplied = false
    private var delegate: (any OutgoingCallDelegate)?
    private(set) var easy: UnsafeMutableRawPointer?
    private var headers: UnsafeMutablePointer<curl_slist>?
    private var failureText: UnsafeMutablePointer<CChar>?
    private var url = ""
    /// The unsent rest of a large body: libcurl takes it piece by piece, and it is released with the last one.
    private(set) var upload = Bytes()
    private var uploadPlace = 0
    private var addresses = AddressPolicy.any
    /// The address that the policy has turned away.
    private var refused: IPAddress?

    /// How often the request was about to be sent.
    private var sendCount = 0

    private var status = 0
    private var fields: [(name: String, value: String)] = []
    private var hasHead = false

    private var idleTimer: LoopTimer?
    private var idleTimeout = Duration.zero
    private var firstByteTimeout = Duration.zero
    private var lastActivity = Duration.zero
    private var uploadedBytes: curl_off_t = 0
    private var bodyBytes: curl_off_t = 0
    /// The body of the answer has begun.
    private var hasBody = false

    init(_ transport: CurlTransport, _ delegate: any OutgoingCallDelegate) {
        self.transport = transport
        self.delegate = delegate
    }

    var isCancelled: Bool { cancelled.load(ordering: .relaxed) }

    func cancel() {
        guard !cancelled.exchange(true, ordering: .relaxed) else { return }
        if transport.loop.isCurrent {
            drop()
        } else {
            transport.loop.execute { self.drop() }
        }
    }

    func pause() {
        paused.store(true, ordering: .relaxed)
        // At once where a piece is being taken: libcurl has more in hand.
        if transport.loop.isCurrent { applyPause() } else { transport.loop.execute { self.applyPause() } }
    }

    func resume() {
        paused.store(false, ordering: .relaxed)
        // Not at once: libcurl may have a piece, and hand it over.
        transport.loop.execute { self.applyPause() }
    }

    private func applyPause() {
        let isPaused = paused.load(ordering: .relaxed)
        guard let easy, !isCancelled, isPaused != pauseIsApplied else { return }
        (pauseIsApplied, lastActivity) = (isPaused, transport.loop.now)
        transport.pause(easy, isPaused)
    }

    private func drop() {
        delegate = nil
        transport.remove(self)
    }

    /// Tells the delegate that the call is over, unless it was cancelled.
    func end(_ error: OutgoingError?) {
        let delegate = isCancelled ? nil : delegate
        self.delegate = nil
        delegate?.ended(error)
    }

    /// Frees what libcurl used; it no longer knows the handle.
    func release() {
        idleTimer?.cancel()
        idleTimer = nil
        curl_easy_cleanup(easy)
        curl_slist_free_all(headers)
        failureText?.deallocate()
        (easy, headers, failureText, upload) = (nil, nil, nil, [])
    }
}

// MARK: The request

extension CurlCall {
    /// Makes the easy handle.
    /// - Returns: The problem with the request, if any; then there is no handle.
    func prepare(_ request: OutgoingRequest) -> OutgoingError? {
        let scheme = request.url.prefix(8).lowercased()
        guard scheme.hasPrefix("http://") || scheme.hasPrefix("https://"), !request.url.utf8.contains(where: { $0 <= 0x20 }) else {
            return OutgoingError(code: "invalid_url", message: "'\(request.url)' is not an http or https URL")
        }
        url = CurlCall.withoutSecrets(request.url)
        let easy = curl_easy_init()!
        self.easy = easy
        set(CURLOPT_URL, request.url)
        set(CURLOPT_PROTOCOLS_STR, "http,https")
        if scheme.hasPrefix("http:") { set(CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1) }
        set(CURLOPT_PATH_AS_IS, 1)  // The path is called as named, and not as `..` in it would resolve.
        set(CURLOPT_NOSIGNAL, 1)
        if let file = transport.authorityFile { set(CURLOPT_CAINFO, file) }
        set(CURLOPT_FOLLOWLOCATION, 0)
        if request.decodesContent { set(CURLOPT_ACCEPT_ENCODING, "") }
        set(CURLOPT_CONNECTTIMEOUT_MS, max(1, Int(request.connectTimeout.milliseconds)))
        let errorBytes = Int(CURL_ERROR_SIZE)
        failureText = .allocate(capacity: errorBytes)
        failureText!.initialize(repeating: 0, count: errorBytes)
        parley_curl_set_pointer(easy, CURLOPT_ERRORBUFFER, failureText)
        setMethod(request)
        setHeaders(request)
        setAddresses(request)
        setSendLimit()
        let context = Unmanaged.passUnretained(self).toOpaque()  // The transport keeps the call until the handle is removed.
        parley_curl_set_callback(easy, CURLOPT_HEADERFUNCTION) { bytes, size, count, context in
            let call = Unmanaged<CurlCall>.fromOpaque(context!).takeUnretainedValue()
            return call.received(line: UnsafeRawBufferPointer(start: bytes, count: size * count)) ? size * count : 0
        }
        parley_curl_set_pointer(easy, CURLOPT_HEADERDATA, context)
        parley_curl_set_callback(easy, CURLOPT_WRITEFUNCTION) { bytes, size, count, context in
            let call = Unmanaged<CurlCall>.fromOpaque(context!).takeUnretainedValue()
            return call.received(body: UnsafeRawBufferPointer(start: bytes, count: size * count)) ? size * count : 0
        }
        parley_curl_set_pointer(easy, CURLOPT_WRITEDATA, context)
        return nil
    }

    private func setMethod(_ request: OutgoingRequest) {
        if !request.body.isEmpty || request.method == "POST" {
            set(CURLOPT_POST, 1)
            parley_curl_set_offset(easy, CURLOPT_POSTFIELDSIZE_LARGE, curl_off_t(request.body.count))
            if request.body.isEmpty {
                set(CURLOPT_COPYPOSTFIELDS, "")
            } else if request.body.count > CurlCall.copiedBytesMax {
                setUpload(request.body)
            } else {
                request.body.withUnsafeBytes { _ = parley_curl_set_pointer(easy, CURLOPT_COPYPOSTFIELDS, $0.baseAddress) }
            }
        } else if request.method == "HEAD" {
            set(CURLOPT_NOBODY, 1)
        } else {
            set(CURLOPT_HTTPGET, 1)
        }
        set(CURLOPT_CUSTOMREQUEST, request.method)
    }

    /// A body up to this size is sent with the head, and libcurl keeps its copy until the answer has ended.
    private static let copiedBytesMax = 64 << 10

    private func setUpload(_ body: Bytes) {
        upload = body
        let context = Unmanaged.passUnretained(self).toOpaque()  // As for the other callbacks.
        parley_curl_set_callback(easy, CURLOPT_READFUNCTION) { buffer, size, count, context in
            Unmanaged<CurlCall>.fromOpaque(context!).takeUnretainedValue().send(
                UnsafeMutableRawBufferPointer(start: buffer, count: size * count))
        }
        parley_curl_set_pointer(easy, CURLOPT_READDATA, context)
        // libcurl starts over when a connection that it reuses turns out closed; then nothing is sent, see `maySend(to:)`.
        parley_curl_set_seek(easy) { context, _, _ in
            Unmanaged<CurlCall>.fromOpaque(context!).takeUnretainedValue().uploadPlace = 0
            return CURL_SEEKFUNC_OK
        }
        parley_curl_set_pointer(easy, CURLOPT_SEEKDATA, context)
    }

    private func send(_ buffer: UnsafeMutableRawBufferPointer) -> Int {
        guard !upload.isEmpty else { return Int(CURL_READFUNC_ABORT) }
        let piece = upload[uploadPlace...].prefix(buffer.count)
        buffer.copyBytes(from: piece)
        uploadPlace += piece.count
        if uploadPlace == upload.count { upload = [] }
        return piece.count
    }

    private func setHeaders(_ request: OutgoingRequest) {
        // libcurl would wait a second for "100 Continue" before a large body, and call every body a form.
        add("Expect:")
        // libcurl would also ask for every coding that it can decode, and a compressed stream comes in gulps.
        if request.decodesContent { add("Accept-Encoding: identity") }
        if !request.headers.contains(where: { $0.name.lowercased() == "content-type" }) { add("Content-Type:") }
        for (name, value) in request.headers {
            let clean = String(String.UnicodeScalarView(value.unicodeScalars.filter { $0.value >= 0x20 || $0.value == 0x09 }))
            add(clean.isEmpty ? "\(name);" : "\(name): \(clean)")
        }
        parley_curl_set_pointer(easy, CURLOPT_HTTPHEADER, headers)
    }

    /// Sets the callbacks for sockets and addresses.
    private func setAddresses(_ request: OutgoingRequest) {
        addresses = request.addresses
        parley_curl_set_closesocket(easy) { transport, socket in
            Unmanaged<CurlTransport>.fromOpaque(transport!).takeUnretainedValue().close(socket)
        }
        // A connection outlives the call, and the transport every connection.
        parley_curl_set_pointer(easy, CURLOPT_CLOSESOCKETDATA, Unmanaged.passUnretained(transport).toOpaque())
        if isGuarded || !request.usesProxy || (try? OutgoingURL(request.url))?.isLoopback == true { set(CURLOPT_PROXY, "") }
        let context = Unmanaged.passUnretained(self).toOpaque()  // As for the other callbacks.
        // Refused addresses are caught before anything is sent to them, not even a SYN. The sockets of allowed ones are made here too, because
        // libcurl would leave them to every process that is started meanwhile: the peer would not hear that the connection was closed.
        parley_curl_set_opensocket(easy) { context, _, address in
            let call = Unmanaged<CurlCall>.fromOpaque(context!).takeUnretainedValue()
            var bytes = Bytes(repeating: 0, count: 16)
            let count = Int(parley_curl_address(address, &bytes))
            return !call.isGuarded || call.mayConnect(IPAddress(bytes: bytes[..<count])) ? parley_curl_open(address) : CURL_SOCKET_BAD
        }
        parley_curl_set_pointer(easy, CURLOPT_OPENSOCKETDATA, context)
    }

    private var isGuarded: Bool { if case .any = addresses { false } else { true } }

    /// Before the request is sent, on a new connection or on one that another call has opened.
    private func setSendLimit() {
        parley_curl_set_prereq(easy) { context, address, _, _, _ in
            let call = Unmanaged<CurlCall>.fromOpaque(context!).takeUnretainedValue()
            return call.maySend(to: IPAddress(String(cString: address!))) ? CURL_PREREQFUNC_OK : CURL_PREREQFUNC_ABORT
        }
        parley_curl_set_pointer(easy, CURLOPT_PREREQDATA, Unmanaged.passUnretained(self).toOpaque())  // As for the other callbacks.
    }

    /// Whether the request may be sent. libcurl would send it again when a connection that it uses again closes without an answer; but the peer may have
    /// read the request, and charged for it. A connection that was closed before is found out before anything is sent.
    private func maySend(to address: IPAddress?) -> Bool {
        sendCount += 1
        return sendCount == 1 && (!isGuarded || mayConnect(address))
    }

    private func mayConnect(_ address: IPAddress?) -> Bool {
        guard let address else { return false }
        if addresses.permits(address) { return true }
        refused = address
        return false
    }

    private func add(_ line: String) { headers = curl_slist_append(headers, line) }
    private func set(_ option: CURLoption, _ value: Int) { parley_curl_set_long(easy, option, value) }
    private func set(_ option: CURLoption, _ value: String) { value.withCString { _ = parley_curl_set_pointer(easy, option, $0) } }

    /// The URL as messages may show it: without user information and query.
    private static func withoutSecrets(_ url: String) -> String {
        let path = url.prefix { $0 != "?" && $0 != "#" }
        guard let schemeEnd = path.firstRange(of: "://")?.upperBound else { return String(path) }
        let authorityEnd = path[schemeEnd...].firstIndex(of: "/") ?? path.endIndex
        guard let at = path[schemeEnd..<authorityEnd].lastIndex(of: "@") else { return String(path) }
        return String(path[..<schemeEnd] + path[path.index(after: at)...])
    }
}

// MARK: The answer

extension CurlCall {
    /// Takes a line of a head: the answer's own, that of a `1xx` before it or a trailer behind it.
    private func received(line: UnsafeRawBufferPointer) -> Bool {
        guard !isCancelled else { return false }
        // A head that trickles in is not yet an answer, and does not extend the time within which that has to begin.
        if hasBody { lastActivity = transport.loop.now }
        guard !hasHead else { return true }
        let text = String(decoding: line, as: UTF8.self).filter { !$0.isNewline }
        if text.hasPrefix("HTTP/") {
            fields = []
            status = text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
        } else if let colon = text.firstIndex(of: ":") {
            let value = text[text.index(after: colon)...].drop { $0 == " " || $0 == "\t" }
            fields.append((String(text[..<colon]), String(value)))
        } else if text.isEmpty, status >= 200 {
            hasHead = true
            delegate?.received(status: status, headers: fields)
            fields = []
        }
        return !isCancelled
    }

    private func received(body: UnsafeRawBufferPointer) -> Bool {
        guard !isCancelled else { return false }
        (lastActivity, hasBody) = (transport.loop.now, true)
        delegate?.received(body: body)
        return !isCancelled
    }

    /// The meaning of libcurl's result to the caller.
    func error(for result: CURLcode) -> OutgoingError? {
        guard result != CURLE_OK else { return nil }
        var reason = failureText.map { String(cString: $0) } ?? ""
        if reason.isEmpty { reason = String(cString: curl_easy_strerror(result)) }
        if let refused, result == CURLE_COULDNT_CONNECT || result == CURLE_ABORTED_BY_CALLBACK {
            reason = "\(refused) is not an address of the public Internet"
            return OutgoingError(code: "address_refused", message: "\(url): \(reason)", reason: reason)
        }
        if sendCount > 1, result == CURLE_ABORTED_BY_CALLBACK {
            reason = "the connection was closed without an answer"
            return OutgoingError(code: "upstream_closed", message: "\(url): \(reason)", reason: reason)
        }
        let message = "\(url): \(reason)"
        switch result {
        // The URL's scheme was checked before: it is the answer that is not HTTP.
        case CURLE_UNSUPPORTED_PROTOCOL: return OutgoingError(code: "upstream_not_http", message: message, reason: reason)
        case CURLE_URL_MALFORMAT: return OutgoingError(code: "invalid_url", message: message, reason: reason)
        // The checksum was right.
        case CURLE_WRITE_ERROR where hasBody: return OutgoingError(code: "upstream_trailing_bytes", message: message, reason: reason)
        // Our own callback refuses nothing that is still wanted: bytes that could not be written could not be decoded.
        case CURLE_BAD_CONTENT_ENCODING, CURLE_WRITE_ERROR:
            return OutgoingError(code: "upstream_encoding", message: message, reason: reason)
        // A header line, or the whole head, is longer than libcurl takes; versions before 8.6 call that a lack of memory.
        case _ where !hasHead && (result == CURLE_OUT_OF_MEMORY || result.rawValue == 100 || reason.contains("Too large response headers")):
            return OutgoingError(code: "upstream_head_too_large", message: message, reason: reason)
        case CURLE_PARTIAL_FILE, CURLE_GOT_NOTHING, CURLE_RECV_ERROR, CURLE_SEND_ERROR, CURLE_HTTP2, CURLE_HTTP2_STREAM,
            CURLE_WEIRD_SERVER_REPLY:
            return OutgoingError(code: "upstream_closed", message: message, reason: reason)
        default:
            // Resolving, connecting (in time) and TLS: the request was not sent.
            return OutgoingError(code: hasHead ? "upstream_closed" : "upstream_unreachable", message: message, reason: reason)
        }
    }
}

// MARK: Silence

extension CurlCall {
    /// Ends the call once nothing moves any more: the request is not taken, the answer does not begin, or it does not continue. Time spent connecting is
    /// bounded elsewhere.
    func watchIdleness(_ request: OutgoingRequest) {
        (idleTimeout, firstByteTimeout) = (request.idleTimeout, request.firstByteTimeout ?? request.idleTimeout)
        (bodyBytes, lastActivity) = (curl_off_t(request.body.count), transport.loop.now)
        idleTimer = transport.loop.schedule(after: lookPause) { [weak self] in self?.checkIdleness() }
    }

    /// Until the answer begins it is looked at often, because nothing tells when the request is through.
    private var lookPause: Duration { min(.seconds(1), min(idleTimeout, firstByteTimeout) / 8) }

    private func checkIdleness() {
        guard let easy, !isCancelled else { return }
        guard !pauseIsApplied else {
            idleTimer?.reschedule(after: idleTimeout)
            return
        }
        let now = transport.loop.now
        if !hasBody { noteUpload(easy, now) }
        let limit = hasBody || uploadedBytes < bodyBytes ? idleTimeout : firstByteTimeout
        let silence = now - lastActivity
        guard silence >= limit else {
            // The timer is not reset for every byte; when it fires, it looks how long the silence really is.
            idleTimer?.reschedule(after: hasBody ? limit - silence : min(lookPause, limit - silence))
            return
        }
        transport.remove(self)
        end(OutgoingError(code: "upstream_timeout", message: "\(url): no byte for \(limit)"))
    }

    private func noteUpload(_ easy: UnsafeMutableRawPointer, _ now: Duration) {
        var connecting: curl_off_t = 0
        var uploaded: curl_off_t = 0
        parley_curl_get_offset(easy, CURLINFO_PRETRANSFER_TIME_T, &connecting)
        parley_curl_get_offset(easy, CURLINFO_SIZE_UPLOAD_T, &uploaded)
        if connecting == 0 || uploaded != uploadedBytes { lastActivity = now }
        uploadedBytes = uploaded
    }
}
