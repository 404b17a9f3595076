internal import Glibc

/// A socket to a server: writes go out at once, what arrives is handed to `onInput`.
final class Connection {
    let descriptor: Int32
    var onInput: (Connection) -> Void = { _ in }
    /// Called when the other side has closed; without it that ends the program.
    var onClose: ((Connection) -> Void)?

    private var buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 8)
    private var start = 0
    private var end = 0
    private var isClosed = false

    init(port: UInt16) {
        descriptor = check(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0), "socket")
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(descriptor, $0, size) }
        }
        check(result, "connect to port \(port)")
        var yes: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &yes, socklen_t(MemoryLayout<Int32>.size))
    }

    /// A connection that was accepted.
    init(accepted descriptor: Int32) { self.descriptor = descriptor }

    deinit { buffer.deallocate() }

    /// The bytes that have arrived and were not yet taken.
    var unread: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: buffer[start..<end]) }

    func take(_ count: Int) {
        start += count
        if start == end { (start, end) = (0, 0) }
    }

    /// Sends everything; a request of this program always fits the socket's buffer, so it blocks only when a server has stopped reading.
    func send(_ bytes: [UInt8]) {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL)) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                // Heard as the end of the input as well.
                if onClose != nil { return }
                fail("a server has closed a connection: \(String(cString: strerror(errno)))")
            }
            sent += count
        }
    }

    /// Reads once and calls `onInput`.
    func receive() {
        guard !isClosed else { return }
        makeRoom()
        let count = recv(descriptor, buffer.baseAddress! + end, buffer.count - end, 0)
        if count < 0, errno == EINTR || errno == EAGAIN { return }
        guard count > 0 else {
            if let onClose { return onClose(self) }
            fail("a server has closed a connection; it had sent: \(String(decoding: unread.prefix(300), as: UTF8.self))")
        }
        end += count
        onInput(self)
    }

    /// Sends a request and waits for its answer: for what comes before a measurement.
    ///
    /// - Parameter length: The bytes of the first whole answer in what it is given; `nil` while it is not whole.
    @discardableResult
    func request(_ bytes: [UInt8], _ length: (UnsafeRawBufferPointer) -> Int?) -> [UInt8] {
        send(bytes)
        return answer(length)
    }

    /// Waits for the answer to what was sent.
    @discardableResult
    func answer(_ length: (UnsafeRawBufferPointer) -> Int?) -> [UInt8] {
        let handler = onInput
        defer { onInput = handler }
        onInput = { _ in }
        while true {
            receive()
            if let length = length(unread) {
                defer { take(length) }
                return Array(unread.prefix(length))
            }
        }
    }

    func close() {
        guard !isClosed else { return }
        isClosed = true
        Glibc.close(descriptor)
    }

    private func makeRoom() {
        if start > 0, buffer.count - end < buffer.count / 4 {
            buffer.copyMemory(from: unread)
            (start, end) = (0, end - start)
        }
        guard buffer.count - end < 4 << 10 else { return }
        let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: buffer.count * 2, alignment: 8)
        larger.copyMemory(from: unread)
        buffer.deallocate()
        buffer = larger
        (start, end) = (0, end - start)
    }
}
