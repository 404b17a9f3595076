internal import CEpoll
internal import Glibc

/// One thread, one epoll: drives every server in the same way.
final class Loop {
    private let descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    private var connections: [Int32: Connection] = [:]
    private var events = [epoll_event](repeating: epoll_event(), count: 256)

    func add(_ connection: Connection) {
        connections[connection.descriptor] = connection
        var event = epoll_event()
        event.events = EPOLLIN.rawValue
        event.data.fd = connection.descriptor
        check(epoll_ctl(descriptor, EPOLL_CTL_ADD, connection.descriptor, &event), "epoll_ctl")
    }

    func remove(_ connection: Connection) {
        connections[connection.descriptor] = nil
        connection.close()
    }

    func removeAll() {
        for connection in connections.values { connection.close() }
        connections = [:]
    }

    /// Handles what arrives, until `tick` gives `nil`.
    ///
    /// - Parameter tick: Called at every turn of the loop; gives the time when it wants to be called again at the latest.
    func run(_ tick: (_ now: Nanoseconds) -> Nanoseconds?) {
        while true {
            let now = Clock.now
            guard let next = tick(now) else { return }
            let wait = next > now ? next - now : 0
            var timeout = timespec(tv_sec: Int(wait / 1_000_000_000), tv_nsec: Int(wait % 1_000_000_000))
            let count = epoll_pwait2(descriptor, &events, Int32(events.count), &timeout, nil)
            guard count > 0 else { continue }
            for event in events[..<Int(count)] { connections[event.data.fd]?.receive() }
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
