internal import CUV
internal import Glibc
internal import ParleySystem

/// One connection of a server: reads requests, hands them to the handler and sends the answers in order.
///
/// There are many that only wait: the order of its properties leaves no gaps.
final class HTTPConnection {
    let listener: HTTPListener
    var loop: EventLoop { listener.loop }
    /// The socket's; libuv owns it.
    private var descriptor: Int32 = -1
    var isFlushScheduled = false
    /// Whether its input waits for its turn among others.
    var isDelayed = false
    var isClosed = false
    /// Whether another connection has its place already.
    var isUncounted = false
    /// Whether it is one of the listener's idle connections.
    var isListedIdle = false
    /// Whether it has had its share of this tick, and reads on in the next one.
    private var hasReadItsShare = false
    var closesAfterFlush = false
    /// Its index in the listener's list.
    var slot = -1

    let handle: UnsafeMutablePointer<uv_tcp_t>
    /// The peer's numeric address, once it has been asked for.
    var knownPeer: String?
    /// The TLS layer between the socket and HTTP, if there is one.
    let tls: TLSSession?
    var output = OutputQueue()
    private var hasUpgraded = false
    /// The peer's last word in the protocol that the connection was upgraded to has come.
    private var upgradedInputEnded = false
    private var isReading = false
    private var isProcessing = false
    private var acceptsRequests = true
    private(set) var peerHasFinished = false
    private(set) var isLingering = false
    private var owesContinue = false
    private var hasServed = false
    private var markedPhase: HTTPRequestParser.Phase = .idle
    /// Bytes that wait inside libuv for the socket to become writable.
    var writing: SocketWrite?
    /// When the socket last took bytes, or got the first of them to take: milliseconds.
    var writeMark: Int64 = 0

    /// There while a request is on its way; between requests a connection keeps none, which is a third of what it takes.
    private var parsing: RequestParsing?
    private var exchanges: [HTTPResponder] = []
    /// Input that waits because too many requests are unanswered.
    private var blockedInput = Bytes()
    /// The receiver of the input once the connection carries another protocol.
    private var upgraded: HTTPStream?
    /// When the current phase began; in a body, when bytes last came: milliseconds.
    private var readMark: Int64 = 0
    private let opened: Int64
    /// Its own part of ``HTTPListener/waitingBytes``.
    private var waitingBytes = 0
    /// When a span of the current body began, milliseconds, and how much of it had come by then.
    private var (bodyMark, bodyMarkCount): (Int64, Int) = (0, 0)
    /// Its neighbours among the listener's idle connections.
    var idlePrevious: HTTPConnection?
    var idleNext: HTTPConnection?

    /// Reading stops, and no further request is begun, while more than this waits to be sent: a peer that does not read has few answers made.
    private static let outputBytesMax = 64 << 10
    /// The same when all connections of the loop hold much.
    static let crowdedOutputBytesMax = 2 << 10
    /// An answer may hold as much stored data as one request may have: at most this many such answers are made for a connection at a time.
    private static let largeCountMax = 4
    /// The number of requests that came together and are served together, whatever others wait for.
    private static let togetherCount = 4
    /// The bytes that the kernel takes ahead of what it can send: enough that it never runs dry. Without a limit it takes up to 4 MB of each peer
    /// that has stopped reading. Bytes in flight that are not acknowledged do not count, so a long line stays full.
    private static let kernelUnsentBytesMax: Int32 = 32 << 10
    /// How long a peer may continue to send after it was told that the server no longer listens.
    private static let lingerMilliseconds: Int64 = 2_000
    /// A refused request with a body up to this size is read to its end, and the connection kept; with a larger one it is closed.
    private static let drainedBytesMax = 64 << 10
    /// A request that comes whole and is smaller is not counted: it is gone before it could add up.
    private static let uncountedBytesMax = 1 << 10

    init(_ listener: HTTPListener, _ handle: UnsafeMutablePointer<uv_tcp_t>, _ tls: TLSSession?) {
        self.listener = listener
        self.tls = tls
        self.handle = handle
        opened = listener.milliseconds
        readMark = opened
    }

    func start() {
        handle.pointee.data = Unmanaged.passRetained(self).toOpaque()  // Released by the close callback.
        uv_fileno(UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_handle_t.self), &descriptor)
        var unsent = HTTPConnection.kernelUnsentBytesMax
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NOTSENT_LOWAT, &unsent, socklen_t(MemoryLayout<Int32>.size))
        updateReading()
    }

    /// Closes at once: open answers hear of it, queued bytes are dropped. Idempotent.
    func close() {
        guard !isClosed else { return }
        if let tls, exchanges.isEmpty { sendEnd(tls) }
        isClosed = true
        listener.waitingBytes -= waitingBytes
        listener.remove(self)
        uv_close(UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_handle_t.self)) { handle in
            let connection = Unmanaged<HTTPConnection>.fromOpaque(handle!.pointee.data).takeRetainedValue()
            connection.handle.deallocate()
            connection.listener.handleClosed(connection)
        }
        let open = exchanges
        exchanges = []
        upgraded = nil
        parsing = nil
        output = OutputQueue()
        blockedInput = []
        for exchange in open { exchange.connectionClosed() }
    }
}

// MARK: Reading

extension HTTPConnection {
    private func updateReading() {
        let shouldRead = !isClosed && takesInput && !hasReadItsShare
        guard shouldRead != isReading else { return }
        isReading = shouldRead
        let stream = UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_stream_t.self)
        guard shouldRead else {
            if !isClosed { uv_read_stop(stream) }
            return
        }
        uv_read_start(
            stream,
            { handle, _, buffer in
                let connection = Unmanaged<HTTPConnection>.fromOpaque(handle!.pointee.data).takeUnretainedValue()
                buffer!.pointee = connection.listener.inputBuffer
            },
            { stream, count, buffer in
                let connection = Unmanaged<HTTPConnection>.fromOpaque(stream!.pointee.data).takeUnretainedValue()
                if count > 0 {
                    let bytes = UnsafeRawBufferPointer(start: buffer!.pointee.base, count: count)
                    if let tls = connection.tls { connection.receivedSealed(bytes, tls) } else { connection.received(bytes) }
                    if count == buffer!.pointee.len { connection.letOthersRead() }
                } else if count == Int(UV_EOF.rawValue) {
                    connection.receivedEnd()
                } else if count < 0 {
                    connection.close()
                }
            })
    }

    /// Reads on in the next tick. Left alone, libuv fills the buffer 32 times from one socket before it looks at another: all others would wait
    /// for 2 MB to be parsed, of each peer that sends without a pause.
    private func letOthersRead() {
        guard isReading else { return }
        hasReadItsShare = true
        updateReading()
        loop.atEndOfTick { [self] in
            hasReadItsShare = false
            updateReading()
        }
    }

    /// Whether what comes in is of use now.
    var takesInput: Bool { !peerHasFinished && (isLingering || !hasBlocked && upgraded?.isInputPaused != true) }

    /// Whether requests wait for answers to those before them.
    private var hasBlocked: Bool { !blockedInput.isEmpty || parsing?.isHeld == true }

    /// Whether something waits to be sent.
    var hasUnsent: Bool { !output.isEmpty || writing != nil || tls.map { !$0.wire.isEmpty } ?? false }

    func received(_ input: UnsafeRawBufferPointer) {
        guard !isLingering, acceptsRequests else { return }  // Read and dropped, so that the peer's end is noticed.
        listener.unlistIdle(self)
        var used = hasUpgraded ? 0 : process(input)
        if hasUpgraded { used += handOver(UnsafeRawBufferPointer(rebasing: input[used...])) }
        if used < input.count, acceptsRequests, !isClosed {
            blockedInput = Bytes(UnsafeRawBufferPointer(rebasing: input[used...]))
        }
        if hasBlocked { updateReading() }
        countWaiting()
    }

    /// - Returns: How much the other protocol has taken.
    private func handOver(_ input: UnsafeRawBufferPointer) -> Int { isClosed ? input.count : upgraded?.onInput?(input) ?? input.count }

    /// Hands over what had to wait.
    private func handOverBlocked() {
        guard !isClosed, let upgraded, !upgraded.isInputPaused else { return }
        let input = blockedInput
        blockedInput = []
        let used = input.withUnsafeBytes { handOver($0) }
        if !isClosed { blockedInput = Bytes(input[used...]) }
        updateReading()
        countWaiting()
    }

    /// Bytes of answers that have not been sent.
    private var unsentBytes: Int {
        exchanges.reduce(output.byteCount + (writing?.byteCount ?? 0) + (tls?.wire.byteCount ?? 0)) { $0 + $1.held.byteCount }
    }

    /// Notes how much waits here, for all of the loop together.
    private func countWaiting() {
        guard !isClosed else { return }
        let count = unsentBytes + blockedInput.count + (hasBlocked ? tls?.heldBytes ?? 0 : 0)
        listener.waitingBytes += count - waitingBytes
        waitingBytes = count
    }

    /// Whether so little waits to be sent that another answer may be begun.
    private var hasRoom: Bool {
        unsentBytes <= (listener.isCrowded ? HTTPConnection.crowdedOutputBytesMax : HTTPConnection.outputBytesMax)
    }

    /// A peer that has sent its last request may still read. A handler that must know whether the peer has gone takes this for its going.
    func receivedEnd() {
        listener.unlistIdle(self)
        peerHasFinished = true
        updateReading()
        let mustBeThere = exchanges.contains {
            $0.stream.map { $0.onHalfClose == nil } ?? false || $0.onClose != nil && $0.onHalfClose == nil
        }
        if mustBeThere || isLingering { return close() }
        for exchange in exchanges {
            exchange.onHalfClose?()
            exchange.stream?.onHalfClose?()
        }
        scheduleFlush()
    }

    /// Parses and hands over requests while there is room for more of them.
    /// - Returns: How much of the input was used.
    private func process(_ input: UnsafeRawBufferPointer) -> Int {
        isProcessing = true
        defer { isProcessing = false }
        let parsing = self.parsing ?? listener.takeParsing()
        self.parsing = parsing
        var (index, served) = (0, 0)
        while mayBegin {
            if parsing.isHeld {
                guard mayDispatch(parsing) else { return index }
                dispatch(parsing)
                // The requests that one connection sent at once do not keep the others waiting.
                served += 1
                if served >= HTTPConnection.togetherCount, index < input.count, listener.isSliceOver {
                    listener.resumeInput(of: self, atOnce: false)
                    return index
                }
                continue
            }
            do throws(HTTPParseError) {
                let (used, event) = try parsing.parser.parse(UnsafeRawBufferPointer(rebasing: input[index...]))
                index += used
                if used > 0 { parsing.hasBegun = true }
                switch event {
                case .needsMore:
                    markPhase()
                    if !parsing.hasBegun {
                        self.parsing = nil
                        listener.give(back: parsing)
                    } else if !parsing.isAnswered, !parsing.hold(parsing.parser.heldBytes, of: listener.budget) {
                        rejectOverloaded(parsing)
                    }
                    return index
                case .head: beginBody(parsing, isAtEnd: index == input.count)
                case .request: parsing.isHeld = true
                }
            } catch {
                // An error in the body is found when the head is complete.
                let head = error.status == 413 ? parsing.parser.head : nil
                reject(Problem(status: error.status, code: error.code, detail: error.message), head)
                return input.count
            }
        }
        return index
    }

    /// Whether there is room for another request.
    private var mayBegin: Bool {
        acceptsRequests && !isClosed && !hasUpgraded && exchanges.count < listener.configuration.pipelinedCountMax && hasRoom
            && exchanges.count(where: \.mayBeLarge) < HTTPConnection.largeCountMax
    }

    /// How far the request has come that is on its way.
    private var phase: HTTPRequestParser.Phase { parsing?.parser.phase ?? .idle }

    private func markPhase() {
        let phase = phase
        if phase != markedPhase || phase == .body { readMark = listener.milliseconds }
        if phase == .body, markedPhase != .body { (bodyMark, bodyMarkCount) = (readMark, parsing?.parser.bodyCount ?? 0) }
        markedPhase = phase
    }

    private func beginBody(_ parsing: RequestParsing, isAtEnd: Bool) {
        let head = parsing.parser.head
        guard head.hasBody else { return }
        let request = HTTPRequest(head: head, body: [], loop: loop, isSecure: tls != nil)
        switch listener.handler.admit(request, peer: { peerAddress }) {
        case .accepted(let account, let context, let bodyBytesMax):
            (parsing.account, parsing.admission) = (account, context)
            parsing.parser.bodyBytesMax = bodyBytesMax ?? parsing.parser.bodyBytesMax
        case .ignored: parsing.parser.discardsBody = true
        case .refused(let problem, let headers): return refuse(problem, headers, parsing)
        }
        // A body that is too large gets its 413 instead, and one that is on its way needs no invitation.
        guard head.expectsContinue, head.hasBody, isAtEnd, head.contentLength ?? 0 <= parsing.parser.bodyBytesMax else { return }
        owesContinue = true
        sendContinue()
    }

    private func sendContinue() {
        guard owesContinue, exchanges.isEmpty else { return }
        owesContinue = false
        readMark = listener.milliseconds
        output.build { $0.append(contentsOf: "HTTP/1.1 100 Continue\r\n\r\n".utf8) }
        scheduleFlush()
    }

    /// A read must show earlier writes: a request that only reads waits for the answers to those that do not.
    private func mayDispatch(_ parsing: RequestParsing) -> Bool {
        !HTTPResponder.isSafe(parsing.parser.head.method) || exchanges.allSatisfy { $0.isSafe || $0.isComplete }
    }

    /// Answers a request at once, without its body. A short one is read to its end, so that the next request is found.
    private func refuse(_ problem: Problem, _ headers: [(name: String, value: String)], _ parsing: RequestParsing) {
        let head = parsing.parser.head
        let isShort = !head.expectsContinue && head.contentLength ?? .max <= HTTPConnection.drainedBytesMax
        guard isShort, head.keepsAlive else { return reject(problem, headers) }
        parsing.parser.discardsBody = true
        parsing.isAnswered = true
        let responder = HTTPResponder(self, method: head.method, minorVersion: head.minorVersion, keepsAlive: true)
        exchanges.append(responder)
        responder.respond(problem, headers: headers)
    }

    private func rejectOverloaded(_ parsing: RequestParsing) {
        let problem = Problem(
            status: 503, code: "overloaded",
            detail: "the requests that are being read hold as much of the server's memory as they may. Send it again later.",
            headers: [("Retry-After", "1")])
        reject(problem, listener.handler.refused(problem, parsing.parser.phase == .body ? parsing.parser.head : nil))
    }

    private func dispatch(_ parsing: RequestParsing) {
        let count = parsing.parser.heldBytes
        let isCounted = !parsing.isAnswered && (parsing.reservation != nil || count > HTTPConnection.uncountedBytesMax)
        if isCounted, !parsing.hold(count, of: listener.budget) { return rejectOverloaded(parsing) }
        handOver(parsing)
    }

    private func handOver(_ parsing: RequestParsing) {
        let (head, body) = parsing.parser.takeRequest()
        (markedPhase, readMark, owesContinue, hasServed) = (.idle, listener.milliseconds, false, true)
        let taken = parsing.take()
        if taken.isAnswered { return scheduleFlush() }  // The connection is idle from here on.
        let request = HTTPRequest(head: head, body: body, loop: loop, isSecure: tls != nil, admission: taken.admission)
        let responder = HTTPResponder(
            self, method: request.method, minorVersion: head.minorVersion, keepsAlive: head.keepsAlive)
        // Without a body, as of a reader that stays, nothing is kept of a request that would add up.
        responder.reservation = body.isEmpty ? nil : taken.reservation
        responder.mayBeLarge = request.method == "GET"
        if !head.keepsAlive { acceptsRequests = false }
        exchanges.append(responder)
        listener.handler.handle(request, responder)
    }

    /// Answers behind the answers still open, and then closes: the start of the next request is unknown.
    private func reject(_ problem: Problem, _ head: HTTPRequestHead? = nil) {
        reject(problem, listener.handler.refused(problem, head))
    }

    private func reject(_ problem: Problem, _ headers: [(name: String, value: String)]) {
        acceptsRequests = false
        blockedInput = []
        parsing?.reservation = nil
        parsing?.parser.dropBody()
        let responder = HTTPResponder(self, method: "", minorVersion: 1, keepsAlive: false)
        exchanges.append(responder)
        responder.respond(problem, headers: headers)
    }
}

// MARK: Answers

extension HTTPConnection {
    /// Whether an answer that is written now is the connection's last.
    func closesAfter(_ responder: HTTPResponder) -> Bool { listener.isDraining && exchanges.last === responder }

    /// From here on input belongs to another protocol.
    func upgrade(to stream: HTTPStream) { (upgraded, hasUpgraded) = (stream, true) }

    func inputPauseChanged() {
        updateReading()
        guard upgraded?.isInputPaused == false else { return }
        // Not from here: the consumer of input also calls this while it is given some.
        listener.resumeInput(of: self, atOnce: false)
    }

    /// Resumes with input that has waited.
    func resumeInput() {
        guard !isClosed else { return }
        if hasUpgraded { handOverBlocked() } else { resume() }
        if let tls { unsealRest(tls) }
        countWaiting()
    }

    /// Whether input has been served for long enough in this round; a consumer that stops for that continues with ``resumeInputLater()``.
    var isSliceOver: Bool { listener.isSliceOver }

    func resumeInputLater() { listener.resumeInput(of: self, atOnce: false) }

    func inputEnded() { upgradedInputEnded = true }

    /// Lets `write` append to the answer: to the socket's queue when its turn has come, else aside.
    func output(of responder: HTTPResponder, _ write: (inout OutputQueue) -> Void) {
        guard exchanges.first === responder else {
            write(&responder.held)
            return countWaiting()
        }
        if !hasUnsent { writeMark = listener.milliseconds }
        write(&output)
        countWaiting()
        scheduleFlush()
    }

    /// Sends bytes of the answer whose turn it is without queueing them, as long as nothing waits and the socket takes them.
    /// - Returns: Whether it has taken all of them.
    func send(_ piece: BodyPiece, of responder: HTTPResponder) -> Bool {
        let bytes = piece.bytes
        guard exchanges.first === responder, !hasUnsent, tls == nil, !isClosed else {
            output(of: responder) { $0.append(bytes, piece.room) }
            return false
        }
        let flags = SocketFlag.doesNotBlock | SocketFlag.raisesNoSignal
        let count = max(0, bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, flags) })
        writeMark = listener.milliseconds
        guard count < bytes.count else { return true }
        // An error is found once more by the flush, which closes: not from here, where many are being sent to.
        output.append(bytes, behind: count, piece.room)
        countWaiting()
        scheduleFlush()
        return false
    }

    func bufferedBytes(of responder: HTTPResponder) -> Int {
        exchanges.first === responder ? output.byteCount + (writing?.byteCount ?? 0) + (tls?.wire.byteCount ?? 0) : responder.held.byteCount
    }

    /// An answer is complete; if it was its turn, those behind it move up.
    func completed(_ responder: HTTPResponder) {
        guard exchanges.first === responder else {
            // One of the waiting requests may have waited for this.
            if parsing?.isHeld == true { scheduleFlush() }
            return
        }
        while let first = exchanges.first, first.isComplete {
            exchanges.removeFirst()
            first.detach()
            if first.closesConnection {
                return endAfterFlush()
            }
            if let next = exchanges.first {
                output.append(next.held)
                next.held = OutputQueue()
            }
        }
        if exchanges.isEmpty {
            readMark = listener.milliseconds
            sendContinue()
        }
        scheduleFlush()
    }

    /// The answer just completed said that it is the last one; requests behind it get none.
    private func endAfterFlush() {
        acceptsRequests = false
        closesAfterFlush = true
        upgraded = nil
        let unanswered = exchanges
        exchanges = []
        for exchange in unanswered { exchange.connectionClosed() }
        scheduleFlush()
    }

    /// Continues after a flush: tells the writer, takes more requests or ends the connection.
    func flushed() {
        defer { countWaiting() }
        exchanges.first?.stream?.drained()
        guard !isClosed else { return }
        if closesAfterFlush {
            if !hasUnsent { end() }
            return
        }
        if hasBlocked, mayBegin, !isProcessing { listener.resumeInput(of: self, atOnce: true) }
        let isIdle = exchanges.isEmpty && !hasUnsent && !isClosed && !isDelayed
        guard isIdle else { return }
        if peerHasFinished || (listener.isDraining && phase == .idle) { return close() }
        if hasServed, phase == .idle, !hasBlocked, !isLingering { listener.listIdle(self) }
    }

    /// Takes requests that had to wait.
    private func resume() {
        guard !isProcessing, hasBlocked, mayBegin else { return }
        let input = blockedInput
        let used = input.withUnsafeBytes { process($0) }
        guard !isClosed else { return }
        blockedInput = acceptsRequests ? Bytes(input[used...]) : []
        if hasUpgraded { handOverBlocked() }
        updateReading()
    }

    /// Ends a connection whose last answer was sent.
    private func end() {
        // Closing with unread input would make the kernel throw away what the peer has not read yet.
        let isClean = phase == .idle && blockedInput.isEmpty && hasServed && (!hasUpgraded || upgradedInputEnded)
        if isClean || peerHasFinished { return close() }
        guard !isLingering else { return }
        if let tls { sendEnd(tls) }
        isLingering = true
        readMark = listener.milliseconds
        shutdown(descriptor, SocketDirection.sending)
        updateReading()
    }

    /// Closes what is idle; the rest closes after its answers.
    func drain() {
        if exchanges.isEmpty, !hasUnsent, !hasBlocked, phase == .idle { close() }
    }

    /// Whether it has waited that long for its next request.
    func isIdle(for milliseconds: Int64) -> Bool { listener.milliseconds - readMark >= milliseconds }

    /// Whether it has been open that long without one whole request, or a head has been arriving for that long.
    func hasAskedNothing(for milliseconds: Int64) -> Bool {
        guard exchanges.isEmpty, !hasUnsent, phase == .head || phase == .idle && !hasServed else { return false }
        return listener.milliseconds - (hasServed ? readMark : opened) > milliseconds
    }

    /// Gives up what took too long. Called about once a second.
    func sweep(_ now: Int64) {
        if isLingering {
            if now - readMark > HTTPConnection.lingerMilliseconds { close() }
            return
        }
        let hasOutput = hasUnsent
        if let tls, !tls.isEstablished, now - readMark > listener.handshakeMilliseconds { return close() }
        if hasOutput, now - writeMark > listener.writeMilliseconds { return close() }
        guard acceptsRequests, isReading, !owesContinue else { return }
        switch phase {
        case .idle:
            let limit = hasServed ? listener.idleMilliseconds : listener.headMilliseconds
            if exchanges.isEmpty, !hasOutput, now - readMark > limit { close() }
        case .head:
            if now - readMark > listener.headMilliseconds {
                reject(Problem(status: 408, code: "request_timeout", detail: "the request's head did not arrive in time"))
            }
        case .body: sweepBody(now)
        }
    }

    private func sweepBody(_ now: Int64) {
        guard let parsing else { return }
        let (span, count) = (now - bodyMark, parsing.parser.bodyCount)
        if now - readMark > listener.bodyMilliseconds {
            // A refused request has its answer; there is none for the rest of it.
            if parsing.isAnswered { return close() }
            reject(Problem(status: 408, code: "request_timeout", detail: "the request's body stopped arriving"))
        } else if span > listener.bodyMilliseconds {
            // A byte now and then would hold a connection for ever, also behind much that came fast.
            if count - bodyMarkCount >= span { return (bodyMark, bodyMarkCount) = (now, count) }
            if parsing.isAnswered { return close() }
            reject(Problem(status: 408, code: "request_timeout", detail: "the request's body arrives too slowly"))
        }
    }
}

/// A parser, and what is known of the request that it is taking.
final class RequestParsing {
    var parser: HTTPRequestParser
    /// Whether it has taken anything of the next request.
    var hasBegun = false
    /// Whether it has a whole request, which waits.
    var isHeld = false
    /// The account whose share of the memory the request counts against; requests of an unknown account share one.
    var account = ""
    var admission: (any Sendable)?
    /// Whether the request was refused already, and what comes of it is dropped.
    var isAnswered = false
    var reservation: MemoryReservation?

    init(_ limits: HTTPParserLimits) { parser = HTTPRequestParser(limits: limits) }

    /// Counts what the request takes.
    /// - Returns: false when there is no room for it.
    func hold(_ count: Int, of budget: MemoryBudget) -> Bool {
        if reservation == nil || reservation!.account != account { reservation = MemoryReservation(budget, account: account) }
        return reservation!.resize(to: count)
    }

    /// Takes the state of a complete request; the next one begins with nothing.
    func take() -> (admission: (any Sendable)?, isAnswered: Bool, reservation: MemoryReservation?) {
        defer { (hasBegun, isHeld, account, admission, isAnswered, reservation) = (false, false, "", nil, false, nil) }
        return (admission, isAnswered, reservation)
    }
}
