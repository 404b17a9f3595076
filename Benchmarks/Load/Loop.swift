internal import CEpoll
internal import Glibc

/// One thread, one epoll: drives every server in the same way.
final class Loop {
    private let descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    private var connections: [Int32: Connection] = [:]
    private var acceptors: [Int32: (Connection) -> Void] = [:]
    private var events = [epoll_event](repeating: epoll_event(), count: 256)

    func add(_ connection: Connection) {
        connections[connection.descriptor] = connection
        watch(connection.descriptor)
    }

    /// Listens on a free port of the loopback interface, and hands over each connection that comes.
    func listen(_ accepted: @escaping (Connection) -> Void) -> UInt16 {
        let listener = check(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0), "socket")
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let result = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                check(bind(listener, address, size), "bind")
                return getsockname(listener, address, &size)
            }
        }
        check(result, "getsockname")
        check(Glibc.listen(listener, 1_024), "listen")
        acceptors[listener] = accepted
        watch(listener)
        return UInt16(bigEndian: address.sin_port)
    }

    private func watch(_ descriptor: Int32) {
        var event = epoll_event()
        event.events = EPOLLIN.rawValue
        event.data.fd = descriptor
        check(epoll_ctl(self.descriptor, EPOLL_CTL_ADD, descriptor, &event), "epoll_ctl")
    }

    func remove(_ connection: Connection) {
        connections[connection.descriptor] = nil
        connection.close()
    }

    /// Closes the loop itself; connections stay as they are.
    func end() { close(descriptor) }

    func removeAll() {
        for connection in connections.values { connection.close() }
        connections = [:]
    }

    /// Handles what arrives, until `tick` gives `nil`.
    ///
    /// - Parameter tick: Called at every turn of the loop; returns the latest time for the next call.
    func run(_ tick: (_ now: Nanoseconds) -> Nanoseconds?) {
        while true {
            let now = Clock.now
            guard let next = tick(now) else { return }
            let wait = next > now ? next - now : 0
            var timeout = timespec(tv_sec: Int(wait / 1_000_000_000), tv_nsec: Int(wait % 1_000_000_000))
            let count = epoll_pwait2(descriptor, &events, Int32(events.count), &timeout, nil)
            guard count > 0 else { continue }
            for event in events[..<Int(count)] {
                if let accepted = acceptors[event.data.fd] {
                    let connection = Connection(accepted: check(accept(event.data.fd, nil, nil), "accept"))
                    add(connection)
                    accepted(connection)
                } else {
                    connections[event.data.fd]?.receive()
                }
            }
        }
    }
}

/// Ends the program with the system's reason when a call has failed.
@discardableResult
func check(_ result: Int32, _ call: String) -> Int32 {
    guard result >= 0 else { fail("\(call): \(String(cString: strerror(errno)))") }
    return result
}

func fail(_ message: String) -> Never {
    let line = Array("parley-load: \(message)\n".utf8)
    _ = write(STDERR_FILENO, line, line.count)
    exit(1)
}
