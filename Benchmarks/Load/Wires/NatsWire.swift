/// NATS JetStream: a publication each, acknowledged by the stream that holds all subjects.
final class NatsWire: Wire {
    let name = "NATS JetStream"
    let pid: Int32
    private let port: UInt16
    private var generation = 0

    init(port: UInt16, pid: Int32) { (self.port, self.pid) = (port, pid) }

    func prepare(channels count: Int) {
        generation += 1
        let connection = connect()
        defer { connection.close() }
        let stream = #"{"name":"load\#(generation)","subjects":["load.\#(generation).>"],"storage":"file","num_replicas":1}"#
        let subject = "$JS.API.STREAM.CREATE.load\(generation)"
        connection.request(Array("PUB \(subject) \(inbox(of: connection)) \(stream.utf8.count)\r\n\(stream)\r\n".utf8), answerLength)
    }

    func connect() -> Connection {
        let connection = Connection(port: port)
        let hello = #"CONNECT {"verbose":false,"pedantic":false,"lang":"load","version":"1","headers":true}"#
        connection.request(Array("\(hello)\r\nSUB \(inbox(of: connection)) 1\r\nPING\r\n".utf8)) { bytes in
            HTTPAnswer.find("PONG\r\n", bytes).map { $0 + 6 }
        }
        return connection
    }

    func append(_ payload: [UInt8], to channel: Int, on connection: Connection, _ output: inout [UInt8]) {
        output.append(contentsOf: "PUB load.\(generation).\(channel) \(inbox(of: connection)) \(payload.count)\r\n".utf8)
        output.append(contentsOf: payload)
        output.append(13)
        output.append(10)
    }

    func append(_ payload: [UInt8], to channel: Int, _ output: inout [UInt8]) { fail("NATS must be told where an answer goes") }

    /// `MSG <subject> <sid> <bytes>` and the acknowledgement: it is durable when the server was told to sync always.
    func answerLength(_ bytes: UnsafeRawBufferPointer) -> Int? {
        guard let lineEnd = HTTPAnswer.find("\r\n", bytes) else { return nil }
        let line = String(decoding: bytes[..<lineEnd], as: UTF8.self)
        if line == "PING" { return lineEnd + 2 }
        guard line.hasPrefix("MSG "), let count = line.split(separator: " ").last.flatMap({ Int($0) }) else {
            fail("NATS answered: \(line)")
        }
        let length = lineEnd + 2 + count + 2
        guard bytes.count >= length else { return nil }
        let answer = UnsafeRawBufferPointer(rebasing: bytes[(lineEnd + 2)..<length])
        if HTTPAnswer.find("\"error\"", answer) != nil { fail("NATS answered: \(String(decoding: answer, as: UTF8.self))") }
        return length
    }

    func follow(_ channel: Int, _ found: @escaping (Nanoseconds) -> Void) -> Connection {
        fail("NATS is asked for appends only: what follows a subject is told of messages before they are durable")
    }

    private func inbox(of connection: Connection) -> String { "_INBOX.\(connection.descriptor)" }
}
