import Glibc
import ParleySystem

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// A blocking connection to a server under test. Every wait has a limit and says what it waited for.
final class TestClient {
    struct Answer {
        var status = 0
        var headers: [String: String] = [:]
        var body = Bytes()
        var text: String { body.text }
        var json: JSON? { try? JSON.parse(body) }
        var code: String? { json?["code"]?.string }
        var next: String { headers["stream-next-offset"] ?? "" }
    }

    private let descriptor: Int32
    private var input = Bytes()
    /// Bytes of a chunked body that have been unwrapped and not yet taken.
    private var unwrapped = Bytes()
    private var endsInReturn = false
    /// Whether the body of the last answer comes in chunks; else it continues to the end of the connection.
    private var isChunked = true
    private let authority: String
    private let headers: [(String, String)]

    /// - Parameters:
    ///   - headers: Fields of every request that has no other of that name.
    ///   - patience: Seconds that a wait may take.
    ///   - receiveBuffer: A small one makes a slow reader.
    init(
        host: String = "127.0.0.1", port: Int, headers: [(String, String)] = [], patience: Int = 10, receiveBuffer: Int32? = nil
    ) throws {
        authority = TestClient.authority(host, port)
        self.headers = headers
        descriptor = socket(AF_INET, SocketType.stream | SocketType.closesOnExec, 0)
        var limit = timeval(tv_sec: patience, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        if var receiveBuffer { setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &receiveBuffer, 4) }
        var hints = addrinfo()
        hints.ai_family = AF_INET
        var found: UnsafeMutablePointer<addrinfo>?
        defer { found.map(freeaddrinfo) }
        guard getaddrinfo(host, String(port), &hints, &found) == 0, let address = found?.pointee,
            Glibc.connect(descriptor, address.ai_addr, address.ai_addrlen) == 0
        else { throw TestFailure("cannot connect to \(host), port \(port): errno \(errno)") }
    }

    static func authority(_ host: String, _ port: Int) -> String { "\(host == "127.0.0.1" ? "localhost" : host):\(port)" }

    deinit { close(descriptor) }

    func request(_ method: String, _ path: String, _ headers: [(String, String)] = [], _ body: Bytes = []) throws -> Answer {
        try send(method, path, headers, body)
        return try answer(toHead: method == "HEAD")
    }

    func send(_ method: String, _ path: String, _ headers: [(String, String)] = [], _ body: Bytes = []) throws {
        var text = "\(method) \(path) HTTP/1.1\r\n"
        if !headers.contains(where: { $0.0 == "Host" }) { text += "Host: \(authority)\r\n" }
        let others = self.headers.filter { other in !headers.contains { $0.0 == other.0 } }
        for (name, value) in others + headers { text += "\(name): \(value)\r\n" }
        if !body.isEmpty || method == "POST" || method == "PUT" { text += "Content-Length: \(body.count)\r\n" }
        try send(Bytes((text + "\r\n").utf8) + body)
    }

    func send(_ bytes: Bytes) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { throw TestFailure("cannot send: errno \(errno)") }
            sent += count
        }
    }

    /// Sends nothing any more, and continues to read.
    func finishSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// The body of a stream of events as it comes, up to `mark`.
    func text(through mark: String) throws -> String {
        while true {
            if let end = unwrapped.firstRange(of: Bytes(mark.utf8))?.upperBound {
                defer { unwrapped.removeFirst(end) }
                return Bytes(unwrapped[..<end]).text
            }
            guard let piece = try chunk() else { throw TestFailure("the stream ends before '\(mark)': \(unwrapped.text)") }
            unwrapped += piece
        }
    }

    /// Whether an answer has begun to come, or comes within so many milliseconds.
    func hasInput(within milliseconds: Int32) -> Bool {
        var poll = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return !input.isEmpty || Glibc.poll(&poll, 1, milliseconds) > 0
    }

    /// Reads a whole answer.
    func answer(toHead isHead: Bool = false) throws -> Answer {
        var answer = try head()
        if isHead || answer.status == 204 || answer.status == 304 { return answer }
        if let length = answer.headers["content-length"] {
            answer.body = try take(count: Int(length)!, "a body")
        } else {
            while let piece = try chunk() { answer.body += piece }
        }
        return answer
    }

    /// Reads the head of an answer; its body is read with ``event()``.
    func head() throws -> Answer {
        let lines = try take(through: "\r\n\r\n", "the head of an answer").text.split(separator: "\r\n")
        guard lines[0].hasPrefix("HTTP/1.1 ") else { throw TestFailure("instead of an answer comes '\(lines[0])'") }
        if lines[0].hasPrefix("HTTP/1.1 100") { return try head() }
        var answer = Answer()
        answer.status = Int(lines[0].split(separator: " ")[1])!
        for line in lines.dropFirst() {
            let parts = line.split(separator: ":", maxSplits: 1)
            answer.headers[parts[0].lowercased()] = parts.count > 1 ? String(parts[1].drop { $0 == " " }) : ""
        }
        isChunked = answer.headers["transfer-encoding"]?.lowercased() == "chunked"
        return answer
    }

    /// The rest of a body.
    func rest() throws -> Bytes {
        var rest = unwrapped
        unwrapped = []
        while let piece = try chunk() { rest += piece }
        return rest
    }

    // MARK: Events

    struct Event: Equatable {
        var name = ""
        var data = ""
        var id: String?
        var json: JSON? { try? JSON.parse(data) }
    }

    /// The next event of a stream, comments left out; `nil` when the stream has ended well.
    func event() throws -> Event? {
        while true {
            if let end = unwrapped.firstRange(of: Bytes("\n\n".utf8)) {
                let block = Bytes(unwrapped[..<end.lowerBound])
                unwrapped.removeFirst(end.upperBound)
                if let event = TestClient.event(block) { return event }
                continue
            }
            guard let piece = try chunk() else {
                guard unwrapped.isEmpty else { throw TestFailure("the stream ends inside an event: \(unwrapped.text)") }
                return nil
            }
            unwrap(piece)
        }
    }

    /// CR, LF and both end a line of an event stream.
    private func unwrap(_ piece: Bytes) {
        for byte in piece {
            if byte != 0x0a || !endsInReturn { unwrapped.append(byte == 0x0d ? 0x0a : byte) }
            endsInReturn = byte == 0x0d
        }
    }

    /// All events up to the end of the stream.
    func events() throws -> [Event] {
        var events: [Event] = []
        while let event = try event() { events.append(event) }
        return events
    }

    /// Events until one of them is a `control` for which `isLast` holds.
    func events(until isLast: (JSON) -> Bool) throws -> [Event] {
        var events: [Event] = []
        while let event = try event() {
            events.append(event)
            if event.name == "control", let json = event.json, isLast(json) { return events }
        }
        throw TestFailure("the stream ends after \(events)")
    }

    private static func event(_ block: Bytes) -> Event? {
        var event = Event()
        var lines: [String] = []
        for line in block.split(separator: 0x0a) {
            let text = String(decoding: line, as: UTF8.self)
            if text.hasPrefix(":") { continue }
            let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
            let value = parts.count < 2 ? "" : String(parts[1].first == " " ? parts[1].dropFirst() : parts[1])
            switch parts[0] {
            case "event": event.name = value
            case "data": lines.append(value)
            case "id": event.id = value
            default: break
            }
        }
        event.data = lines.joined(separator: "\n")
        return event.name.isEmpty && lines.isEmpty ? nil : event
    }

    /// Reads until `count` comments have come.
    func comments(_ count: Int) throws -> Int {
        var found = 0
        while found < count {
            guard let piece = try chunk() else { break }
            found += piece.filter { $0 == UInt8(ascii: ":") }.count
        }
        return found
    }

    // MARK: Bytes

    /// The next piece of a body; `nil` at its end.
    private func chunk() throws -> Bytes? {
        guard isChunked else {
            if input.isEmpty { try? receive("the end of the connection") }
            defer { input = [] }
            return input.isEmpty ? nil : input
        }
        let line = try take(through: "\r\n", "a chunk").dropLast(2)
        let size = Int(Bytes(line).text.prefix { $0 != ";" }, radix: 16)!
        let piece = try take(count: size, "a chunk")
        _ = try take(through: "\r\n", "a chunk's end")
        return size == 0 ? nil : piece
    }

    private func take(through mark: String, _ phase: String) throws -> Bytes {
        while true {
            if let end = input.firstRange(of: Bytes(mark.utf8))?.upperBound {
                defer { input.removeFirst(end) }
                return Bytes(input[..<end])
            }
            try receive(phase)
        }
    }

    func take(count: Int, _ phase: String) throws -> Bytes {
        while input.count < count { try receive(phase) }
        defer { input.removeFirst(count) }
        return Bytes(input[..<count])
    }

    private func receive(_ phase: String) throws {
        var buffer = Bytes(repeating: 0, count: 64 << 10)
        let count = recv(descriptor, &buffer, buffer.count, 0)
        guard count > 0 else { throw TestFailure("no more bytes while waiting for \(phase) (\(count == 0 ? "closed" : "errno \(errno)"))") }
        input += buffer[..<count]
    }
}
