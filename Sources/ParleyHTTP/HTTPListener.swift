internal import CUV
internal import Glibc
internal import ParleySystem
internal import Synchronization

/// The part of a server that lives on one loop: its listening socket and the connections accepted there.
final class HTTPListener: @unchecked Sendable {  // Guard: used on `loop` only.
    let loop: EventLoop
    let configuration: HTTPServerConfiguration
    let handler: any HTTPHandler
    /// The buffer that every connection of the loop reads into: an idle one needs none of its own.
    let readBuffer: uv_buf_t
    /// The buffer for decrypted input.
    let plainBuffer: UnsafeMutableRawBufferPointer
    let handshakeMilliseconds: Int64
    let headMilliseconds: Int64
    let bodyMilliseconds: Int64
    let idleMilliseconds: Int64
    /// How long a peer may take nothing, now.
    private(set) var writeMilliseconds: Int64
    private let patienceMilliseconds: Int64
    private(set) var isDraining = false

    private let open: Monitor<Int>
    /// The memory budget of all requests of the server.
    let budget: MemoryBudget
    /// The listeners of the other loops.
    var others: [Other] = []

    struct Other { weak var listener: HTTPListener? }

    /// Connections that have been served and wait for their next request, the longest first.
    private var (idleFirst, idleLast): (HTTPConnection?, HTTPConnection?)
    private let idleCount = Atomic(0)
    private var socket: UnsafeMutablePointer<uv_tcp_t>?
    private var connections: [HTTPConnection] = []
    private var unflushed: [HTTPConnection] = []
    private var sweeper: LoopTimer?
    private var nextLook = 0
    private var spareParsing: RequestParsing?
    private var dateSeconds = -1
    /// Before this it is not said again that connections cannot be accepted.
    private var nextComplaint: Int64 = 0
    private var dateBytes = Bytes()
    /// Connections whose input waits for their turn, in the order in which they came.
    private var delayed = Fifo<HTTPConnection>()
    private var isResumeScheduled = false
    /// Until then input is served as it comes: the loop's precise time; `nil` until some is.
    private var sliceEnd: Int64?
    /// The bytes of the connections that wait to be sent, and of input behind them. May be read from any thread at any time.
    var waitingBytes: Int {
        get { waiting.load(ordering: .relaxed) }
        set { waiting.store(newValue, ordering: .relaxed) }
    }
    private let waiting = Atomic(0)

    /// How long input that has waited is served before the loop's other work comes first again.
    private static let sliceNanoseconds: Int64 = 1_000_000
    /// How often it is said that connections cannot be accepted.
    private static let complaintMilliseconds: Int64 = 1_000
    /// Connections beyond the limit while others are being closed for them.
    private static let graceMax = 64
    /// The most that a record holds.
    private static let plainBytes = 16 << 10

    /// - Parameters:
    ///   - open: Counts the connections of the whole server.
    ///   - budget: Counts what all its requests hold.
    init(
        _ loop: EventLoop, _ configuration: HTTPServerConfiguration, _ handler: any HTTPHandler, open: Monitor<Int>, budget: MemoryBudget
    ) {
        self.budget = budget
        self.loop = loop
        self.configuration = configuration
        self.handler = handler
        self.open = open
        readBuffer = uv_buf_init(.allocate(capacity: configuration.readBytes), UInt32(configuration.readBytes))
        plainBuffer = .allocate(byteCount: configuration.tls == nil ? 0 : HTTPListener.plainBytes, alignment: 1)
        handshakeMilliseconds = configuration.handshakeTimeout.milliseconds
        headMilliseconds = configuration.headTimeout.milliseconds
        bodyMilliseconds = configuration.bodyTimeout.milliseconds
        idleMilliseconds = configuration.idleTimeout.milliseconds
        writeMilliseconds = configuration.writeTimeout.milliseconds
        patienceMilliseconds = configuration.patience.milliseconds
    }

    deinit {
        readBuffer.base.deallocate()
        plainBuffer.deallocate()
    }

    /// Whether so much waits that a connection gets no further before it has taken its own.
    var isCrowded: Bool { waitingBytes > configuration.waitingBytesMax }

    /// The buffer for the next piece of input. When much waits, it is a small one, because most of the input may have to wait as well.
    var inputBuffer: uv_buf_t {
        isCrowded ? uv_buf_init(readBuffer.base, UInt32(min(readBuffer.len, HTTPListener.crowdedReadBytes))) : readBuffer
    }

    private static let crowdedReadBytes = 4 << 10

    /// The loop's time.
    var milliseconds: Int64 { loop.nowMilliseconds }

    /// Accepts connections on a bound socket, which it then owns.
    /// - Returns: 0 or a libuv error.
    func listen(on descriptor: Int32) -> Int32 {
        let socket = UnsafeMutablePointer<uv_tcp_t>.allocate(capacity: 1)
        uv_tcp_init(loop.uv, socket)
        var status = uv_tcp_open(socket, descriptor)
        if status != 0 { Glibc.close(descriptor) }
        socket.pointee.data = Unmanaged.passRetained(self).toOpaque()  // Released by the close callback.
        self.socket = socket
        if status == 0 {
            status = uv_listen(UnsafeMutableRawPointer(socket).assumingMemoryBound(to: uv_stream_t.self), 1_024) { stream, status in
                let listener = Unmanaged<HTTPListener>.fromOpaque(stream!.pointee.data).takeUnretainedValue()
                listener.accept(status)
            }
        }
        if status != 0 {
            stopAccepting()
            return status
        }
        let least = min(
            handshakeMilliseconds, headMilliseconds, bodyMilliseconds, idleMilliseconds, writeMilliseconds,
            configuration.crowdedWriteTimeout.milliseconds)
        let period = Duration.milliseconds(max(10, min(1_000, least / 4)))
        sweeper = loop.schedule(after: period, every: period) { [unowned self] in sweep() }
        loop.atStop { [weak self] in
            self?.stopAccepting()
            self?.closeAll()
        }
        return 0
    }

    func stopAccepting() {
        guard let socket else { return }
        self.socket = nil
        uv_close(UnsafeMutableRawPointer(socket).assumingMemoryBound(to: uv_handle_t.self)) { handle in
            Unmanaged<HTTPListener>.fromOpaque(handle!.pointee.data).release()
            UnsafeMutableRawPointer(handle!).assumingMemoryBound(to: uv_tcp_t.self).deallocate()
        }
    }

    /// From now on connections close once nothing is in flight on them.
    func drain() {
        isDraining = true
        for connection in connections { connection.drain() }
    }

    func closeAll() {
        for connection in connections { connection.close() }
        sweeper?.cancel()
    }

    private func accept(_ status: Int32) {
        guard status == 0, let socket else { return cannotAccept(status) }
        let handle = UnsafeMutablePointer<uv_tcp_t>.allocate(capacity: 1)
        uv_tcp_init(loop.uv, handle)
        let stream = UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_stream_t.self)
        guard uv_accept(UnsafeMutableRawPointer(socket).assumingMemoryBound(to: uv_stream_t.self), stream) == 0 else {
            return discard(handle)
        }
        var tls: TLSSession?
        if let identity = configuration.tls {
            tls = identity.session()
            guard tls != nil else { return discard(handle) }
        }
        guard admit() || makeRoom() && admit() || makeRoomElsewhere() && admit(grace: HTTPListener.graceMax) else {
            refuse(stream)
            return discard(handle)
        }
        let connection = HTTPConnection(self, handle, tls)
        connection.slot = connections.count
        connections.append(connection)
        connection.start()
    }

    /// libuv tries again at once, and does nothing else until it has accepted all that wait; without a descriptor that would be for ever, with every
    /// connection of the loop standing still. So one connection is given up for those that wait: that of a peer that has asked for nothing yet, if
    /// there is one.
    private func cannotAccept(_ status: Int32) {
        if milliseconds >= nextComplaint {
            nextComplaint = milliseconds + HTTPListener.complaintMilliseconds
            Diagnostics.log(.warning, "cannot accept connections", ["reason": String(cString: uv_strerror(status))])
        }
        guard status == UV_EMFILE.rawValue || status == UV_ENFILE.rawValue else { return }
        let newest = connections.suffix(64)
        (newest.last { $0.hasAskedNothing(for: -1) } ?? newest.last)?.close()
    }

    /// - Parameter grace: How many more than there may be are let in, because others are about to go.
    private func admit(grace: Int = 0) -> Bool {
        open.withLock { count in
            guard count < configuration.connectionCountMax + grace else { return false }
            count += 1
            return true
        }
    }

    /// Closes a connection for a new one: one that has not requested anything yet, so that a client that only opens connections does not keep others
    /// out; else the one that has waited longest for its next request.
    private func makeRoom() -> Bool { closeSilent() || closeLongestIdle() }

    /// The same on another loop, which takes a moment.
    private func makeRoomElsewhere() -> Bool {
        let listeners = others.lazy.compactMap(\.listener)
        guard let other = listeners.first(where: { $0.idleCount.load(ordering: .relaxed) > 0 }) else { return false }
        return other.loop.execute { _ = other.closeLongestIdle() }
    }

    private func closeLongestIdle() -> Bool {
        guard let connection = idleFirst, connection.isIdle(for: patienceMilliseconds) else { return false }
        giveUp(connection)
        return true
    }

    /// Closes a connection whose place is free from now on.
    private func giveUp(_ connection: HTTPConnection) {
        connection.close()
        open.withLock { $0 -= 1 }
        connection.isUncounted = true
    }

    /// A few are looked at, going round: enough to find one where most are of that kind, and little work where none is.
    private func closeSilent() -> Bool {
        for _ in 0..<min(16, connections.count) {
            nextLook = (nextLook + 1) % connections.count
            let connection = connections[nextLook]
            guard connection.hasAskedNothing(for: patienceMilliseconds) else { continue }
            giveUp(connection)
            return true
        }
        return false
    }

    private func discard(_ handle: UnsafeMutablePointer<uv_tcp_t>) {
        uv_close(UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_handle_t.self)) { handle in
            UnsafeMutableRawPointer(handle!).assumingMemoryBound(to: uv_tcp_t.self).deallocate()
        }
    }

    /// Refuses with as much as the socket takes at once; there is no connection to wait on.
    private func refuse(_ stream: UnsafeMutablePointer<uv_stream_t>) {
        let problem = Problem(
            status: 503, code: "too_many_connections",
            detail: "the server has \(configuration.connectionCountMax) connections; try again later or raise the limit")
        let headers = handler.refused(problem, nil)
        // Without a handshake there is nothing that a peer would understand.
        guard configuration.tls == nil else { return }
        let body = problem.body
        var answer = Bytes()
        HTTPResponseHead.write(503, [("Content-Type", Problem.contentType)] + headers, .whole(body.count), .close, dateField, to: &answer)
        answer += body
        answer.withUnsafeMutableBytes { bytes in
            var buffer = uv_buf_init(bytes.baseAddress!.assumingMemoryBound(to: CChar.self), UInt32(bytes.count))
            _ = uv_try_write(stream, &buffer, 1)
        }
    }
}

// MARK: For the connections

extension HTTPListener {
    func remove(_ connection: HTTPConnection) {
        unlistIdle(connection)
        let last = connections.removeLast()
        guard last !== connection else { return }
        connections[connection.slot] = last
        last.slot = connection.slot
    }

    /// Notes a connection that waits for its next request from now on.
    func listIdle(_ connection: HTTPConnection) {
        guard !connection.isListedIdle else { return }
        connection.isListedIdle = true
        connection.idlePrevious = idleLast
        if let idleLast { idleLast.idleNext = connection } else { idleFirst = connection }
        idleLast = connection
        idleCount.add(1, ordering: .relaxed)
    }

    /// Takes it out again. Idempotent.
    func unlistIdle(_ connection: HTTPConnection) {
        guard connection.isListedIdle else { return }
        let (previous, next) = (connection.idlePrevious, connection.idleNext)
        if let previous { previous.idleNext = next } else { idleFirst = next }
        if let next { next.idlePrevious = previous } else { idleLast = previous }
        (connection.idlePrevious, connection.idleNext, connection.isListedIdle) = (nil, nil, false)
        idleCount.subtract(1, ordering: .relaxed)
    }

    /// A connection's handle is gone.
    func handleClosed(_ connection: HTTPConnection) {
        guard !connection.isUncounted else { return }
        open.withLock(signalAll: true) { $0 -= 1 }
    }

    /// A parser for a connection whose next request begins to arrive.
    func takeParsing() -> RequestParsing { spareParsing.take() ?? RequestParsing(configuration.limits) }

    func give(back parsing: RequestParsing) { spareParsing = parsing }

    /// Flushes the connection once at the end of the tick, together with all others that have something to send.
    func scheduleFlush(_ connection: HTTPConnection) {
        if unflushed.isEmpty { loop.atEndOfTick { self.flush() } }
        unflushed.append(connection)
    }

    /// The line of the `Date` field, made once a second.
    var dateField: Bytes {
        let now = time(nil)
        if now != dateSeconds {
            dateSeconds = now
            dateBytes = HTTPResponseHead.dateField(seconds: now)
        }
        return dateBytes
    }

    /// Whether input has been served for so long that the loop's other work must come first.
    var isSliceOver: Bool {
        if sliceEnd == nil { beginSlice() }
        return loop.preciseNanoseconds >= sliceEnd!
    }

    /// Lets a connection resume with input that waits: at once when `atOnce` is set and the round is not over, else in its turn.
    func resumeInput(of connection: HTTPConnection, atOnce: Bool) {
        guard !atOnce || isSliceOver else { return connection.resumeInput() }
        guard !connection.isDelayed else { return }
        connection.isDelayed = true
        delayed.append(connection)
        guard !isResumeScheduled else { return }
        isResumeScheduled = true
        loop.atEndOfTick { self.resumeDelayed() }
    }

    private func resumeDelayed() {
        beginSlice()
        while let connection = delayed.popFirst() {
            connection.isDelayed = false
            connection.resumeInput()
            connection.scheduleFlush()
            if isSliceOver { break }
        }
        isResumeScheduled = !delayed.isEmpty
        if isResumeScheduled { loop.atEndOfTick { self.resumeDelayed() } }
    }

    private func beginSlice() { sliceEnd = loop.preciseNanoseconds + HTTPListener.sliceNanoseconds }

    private func flush() {
        beginSlice()
        let connections = unflushed
        unflushed = []
        for connection in connections { connection.flush() }
        sliceEnd = nil
    }

    private func sweep() {
        let now = milliseconds
        let patience =
            handler.isShortOfMemory ? min(configuration.writeTimeout, configuration.crowdedWriteTimeout) : configuration.writeTimeout
        writeMilliseconds = patience.milliseconds
        for connection in connections { connection.sweep(now) }
    }
}

extension Duration {
    /// Whole milliseconds, rounded down.
    package var milliseconds: Int64 {
        let (seconds, attoseconds) = components
        let (whole, isTooLong) = seconds.multipliedReportingOverflow(by: 1_000)
        guard !isTooLong else { return seconds < 0 ? .min : .max }
        return whole.addingReportingOverflow(attoseconds / 1_000_000_000_000_000).partialValue
    }
}
