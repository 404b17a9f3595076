/// Makes what a benchmark needs before it measures: sends many requests over some connections and waits for all answers.
enum Requests {
    /// - Parameters:
    ///   - inFlight: How many requests each connection has sent without an answer.
    ///   - make: The request with that index, as bytes.
    static func send(_ count: Int, to port: UInt16, connections: Int = 64, inFlight: Int = 1, _ make: @escaping (Int) -> [UInt8]) {
        let loop = Loop()
        var (next, left) = (0, count)
        func fill(_ connection: Connection, _ room: Int) {
            var output: [UInt8] = []
            for _ in 0..<room where next < count {
                output += make(next)
                next += 1
            }
            if !output.isEmpty { connection.send(output) }
        }
        for _ in 0..<min(connections, count) {
            let connection = Connection(port: port)
            connection.onInput = { connection in
                var answered = 0
                while let length = HTTPAnswer.length(connection.unread) {
                    connection.take(length)
                    answered += 1
                }
                left -= answered
                fill(connection, answered)
            }
            loop.add(connection)
            fill(connection, inFlight)
        }
        loop.run { now in left > 0 ? now + 1_000_000_000 : nil }
        loop.removeAll()
        loop.end()
    }

    /// Creates a plain stream, or appends to it.
    static func stream(_ method: String, _ path: String, _ body: [UInt8] = [], _ contentType: String = "application/json") -> [UInt8] {
        Array("\(method) \(path) HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: \(contentType)\r\nContent-Length: \(body.count)\r\n\r\n".utf8)
            + body
    }

    /// Sends a request whose answer never ends, and takes the head of that answer.
    static func open(_ path: String, on connection: Connection) {
        let answer = connection.request(Array("GET \(path) HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".utf8), HTTPAnswer.headLength)
        guard answer.starts(with: "HTTP/1.1 200".utf8) else { fail("\(path) is answered: \(String(decoding: answer, as: UTF8.self))") }
    }
}
