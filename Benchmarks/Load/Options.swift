/// The command line's options: `--name value`.
struct Options {
    private var values: [String: String] = [:]

    init(_ words: ArraySlice<String>) {
        var rest = words
        while let word = rest.popFirst() {
            guard word.hasPrefix("--"), let value = rest.popFirst() else { fail("expected --name value, got '\(word)'") }
            values[String(word.dropFirst(2))] = value
        }
    }

    func text(_ name: String) -> String? { values[name] }

    func number(_ name: String, _ standard: Double) -> Double {
        guard let text = values[name] else { return standard }
        guard let value = Double(text), value > 0 else { fail("--\(name) is '\(text)'; expected a number above 0") }
        return value
    }

    func integer(_ name: String, _ standard: Int) -> Int { Int(number(name, Double(standard))) }

    /// A server's port and process, as `port/pid`.
    func server(_ name: String) -> (port: UInt16, pid: Int32)? {
        guard let text = values[name] else { return nil }
        let parts = text.split(separator: "/")
        guard parts.count == 2, let port = UInt16(parts[0]), let pid = Int32(parts[1]) else {
            fail("--\(name) is '\(text)'; expected <port>/<pid>")
        }
        return (port, pid)
    }

    /// The servers that the command line names, Parley first.
    func wires(contentType: String = "application/json", notifies: Bool = false) -> [any Wire] {
        let wires: [(any Wire)?] = [
            server("parley").map { ParleyWire(port: $0.port, pid: $0.pid, contentType: contentType) },
            server("redis").map { RedisWire(port: $0.port, pid: $0.pid) },
            server("nats").map { NatsWire(port: $0.port, pid: $0.pid) },
            server("postgres").map { PostgresWire(port: $0.port, pid: $0.pid, notifies: notifies) },
        ]
        return wires.compactMap { $0 }
    }
}
