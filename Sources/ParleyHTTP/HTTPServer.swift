internal import CUV
internal import Glibc
package import ParleySystem

/// An HTTP/1.1 server on a group of loops, each with a listening socket of its own.
///
/// `start()`, `stopAccepting()`, `drain(within:)` and `stop()` wait for the loops, so they are not called on one of them.
package final class HTTPServer: Sendable {
    package let configuration: HTTPServerConfiguration
    private let listeners: [HTTPListener]
    /// How many connections are open.
    private let open = Monitor(0)
    private let bound = Monitor(0)
    private let budget: MemoryBudget

    package init(_ configuration: HTTPServerConfiguration = .init(), on group: EventLoopGroup, handler: any HTTPHandler) {
        self.configuration = configuration
        let open = open
        let budget = MemoryBudget(bytesMax: configuration.requestBytesMax)
        self.budget = budget
        let listeners = group.loops.map { HTTPListener($0, configuration, handler, open: open, budget: budget) }
        for listener in listeners { listener.others = listeners.filter { $0 !== listener }.map { HTTPListener.Other(listener: $0) } }
        self.listeners = listeners
    }

    /// The port that the server listens on; 0 before `start()`.
    package var port: Int { bound.withLock { $0 } }

    package var connectionCount: Int { open.withLock { $0 } }

    /// Bytes that requests hold, from their first byte until they are answered.
    package var requestBytes: Int { budget.usedBytes }

    /// The bytes of answers that wait to be sent, and of input behind them.
    package var waitingBytes: Int { listeners.reduce(0) { $0 + $1.waitingBytes } }

    /// Binds and listens; connections are accepted when this returns.
    /// - Throws: ``HTTPServerError`` that names the address and the system's reason.
    package func start() throws(HTTPServerError) {
        HTTPServer.raiseDescriptorLimit()
        var address = try resolve()
        let isShared = listeners.count > 1
        // SO_REUSEPORT would let a second server share the port unnoticed; a socket without it tells.
        let probe = try bind(&address, isShared: false)
        var descriptors = [probe]
        defer { for descriptor in descriptors { close(descriptor) } }
        if isShared {
            close(descriptors.removeLast())
            for _ in listeners { descriptors.append(try bind(&address, isShared: true)) }
        }
        for listener in listeners {
            let descriptor = descriptors.removeFirst()
            let status = on(listener) { listener.listen(on: descriptor) }
            guard let status, status == 0 else {
                stopAccepting()
                throw failure(-(status ?? UV_ECANCELED.rawValue))
            }
        }
        bound.withLock { $0 = address.port }
    }

    /// Closes the listening sockets; open connections continue.
    package func stopAccepting() {
        for listener in listeners { on(listener) { listener.stopAccepting() } }
    }

    /// Stops accepting, lets open answers finish and closes each connection behind its last one. Connections that are still open at the deadline are
    /// closed as they are.
    /// - Returns: Whether everything finished in time.
    @discardableResult
    package func drain(within deadline: Duration) -> Bool {
        stopAccepting()
        for listener in listeners { on(listener) { listener.drain() } }
        let isDone = open.wait(timeout: deadline) { $0 == 0 ? true : nil } ?? false
        for listener in listeners { on(listener) { listener.closeAll() } }
        _ = open.wait(timeout: .seconds(5)) { $0 == 0 ? true : nil }
        return isDone
    }

    /// Closes everything at once.
    package func stop() { drain(within: .zero) }

    /// Runs `work` on the listener's loop and waits for its result; `nil` if the loop has stopped, and with it all that was there.
    @discardableResult
    private func on<Result: Sendable>(_ listener: HTTPListener, _ work: @escaping @Sendable () -> Result) -> Result? {
        precondition(!listener.loop.isCurrent, "a server's loop cannot wait for itself")
        let result = Monitor<Result?>(nil)
        let isRunning = listener.loop.execute {
            let value = work()
            result.withLock(signalAll: true) { $0 = value }
        }
        return isRunning ? result.wait { $0 } : nil
    }
}

// MARK: Sockets

extension HTTPServer {
    private struct Address {
        var storage = sockaddr_storage()
        var length = socklen_t(0)

        var port: Int {
            get {
                // The port lies at the same place for both families.
                withUnsafeBytes(of: storage) { Int($0.readBigEndian(at: 2, as: UInt16.self)) }
            }
            set {
                withUnsafeMutableBytes(of: &storage) { $0.storeBytes(of: UInt16(newValue).bigEndian, toByteOffset: 2, as: UInt16.self) }
            }
        }
    }

    private func resolve() throws(HTTPServerError) -> Address {
        guard (0...65_535).contains(configuration.port) else {
            throw HTTPServerError(
                code: "invalid_address", message: "port is \(configuration.port); expected 0 to 65535",
                remedy: "Choose one with --listen <host>:<port>.")
        }
        var hints = addrinfo()
        hints.ai_socktype = SocketType.stream
        hints.ai_flags = AI_PASSIVE
        var found: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(configuration.host, nil, &hints, &found)
        guard status == 0, let first = found else {
            let reason = String(cString: gai_strerror(status))
            throw HTTPServerError(
                code: "invalid_address", message: "host '\(configuration.host)' is no address to listen on: \(reason)",
                remedy: "Choose an address of this machine with --listen <host>:<port>.")
        }
        defer { freeaddrinfo(found) }
        var address = Address()
        address.length = first.pointee.ai_addrlen
        withUnsafeMutableBytes(of: &address.storage) {
            $0.baseAddress!.copyMemory(from: first.pointee.ai_addr, byteCount: Int(first.pointee.ai_addrlen))
        }
        address.port = configuration.port
        return address
    }

    /// Binds a socket and stores the port that it got in `address`.
    private func bind(_ address: inout Address, isShared: Bool) throws(HTTPServerError) -> Int32 {
        let type = SocketType.stream | SocketType.closesOnExec | SocketType.doesNotBlock
        let descriptor = socket(Int32(address.storage.ss_family), type, 0)
        guard descriptor >= 0 else { throw failure(errno) }
        set(descriptor, SOL_SOCKET, SO_REUSEADDR, 1)
        if isShared { set(descriptor, SOL_SOCKET, SO_REUSEPORT, 1) }
        // Accepted sockets inherit both.
        set(descriptor, SOL_SOCKET, SO_SNDBUF, Int32(configuration.sendBufferBytes))
        set(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
        if Int32(address.storage.ss_family) == AF_INET6 { set(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, 0) }
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutablePointer(to: &address) { address in
            let raw = UnsafeMutableRawPointer(address).assumingMemoryBound(to: sockaddr.self)
            return Glibc.bind(descriptor, raw, address.pointee.length) == 0 ? getsockname(descriptor, raw, &length) : -1
        }
        guard status == 0 else {
            let error = errno
            close(descriptor)
            throw failure(error)
        }
        return descriptor
    }

    private func set(_ descriptor: Int32, _ level: Int32, _ option: Int32, _ value: Int32) {
        var value = value
        setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }

    private func failure(_ error: Int32) -> HTTPServerError {
        let reason = "\(String(cString: strerror(error))) (\(String(cString: uv_err_name(-error))))"
        let host = configuration.host.contains(":") ? "[\(configuration.host)]" : configuration.host
        let remedy =
            switch error {
            case EADDRINUSE: "Stop the process that has the port, or choose another with --listen \(host):<port>; port 0 is any free one."
            case EACCES: "Choose a port above 1023 with --listen \(host):<port>."
            default: "Choose an address of this machine with --listen <host>:<port>."
            }
        return HTTPServerError(code: "cannot_listen", message: "cannot listen on \(host):\(configuration.port): \(reason)", remedy: remedy)
    }

    /// Every connection is a descriptor, and the usual soft limit of 1,024 is soon reached.
    private static func raiseDescriptorLimit() {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < limit.rlim_max else { return }
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }
}
