internal import ParleyLog
internal import ParleySystem

/// A number that whoever composes the node adds to `/metrics`.
package struct Measure: Sendable {
    package enum Kind: String, Sendable { case counter, gauge }

    package var name: String
    package var kind: Kind
    package var help: String
    package var value: Double

    package init(_ name: String, _ kind: Kind, _ help: String, _ value: Double) {
        (self.name, self.kind, self.help, self.value) = (name, kind, help, value)
    }
}

/// Writes numbers in the text format of Prometheus, version 0.0.4.
struct Metrics {
    private(set) var text = Bytes()

    mutating func add(_ measure: Measure) { add(measure.name, measure.kind, measure.help, measure.value) }

    mutating func add(_ name: String, _ kind: Measure.Kind, _ help: String, _ value: Double) {
        let number = value == value.rounded() && abs(value) < 1e15 ? String(Int64(value)) : String(value)
        text.append("# HELP \(name) \(help)\n# TYPE \(name) \(kind.rawValue)\n\(name) \(number)\n")
    }

    mutating func add(_ name: String, _ kind: Measure.Kind, _ help: String, _ values: [(code: String, count: Int)]) {
        text.append("# HELP \(name) \(help)\n# TYPE \(name) \(kind.rawValue)\n")
        for (code, count) in values { text.append("\(name){code=\"\(code)\"} \(count)\n") }
    }

    /// What the writer of the log has done.
    mutating func add(_ writer: GroupCommit) {
        let counters = writer.counters
        add("parley_commits_total", .counter, "Commits, each one sync.", Double(counters.commits))
        add("parley_submissions_total", .counter, "Submissions settled by commits.", Double(counters.submissions))
        add("parley_commit_bytes_total", .counter, "Bytes committed.", Double(counters.bytes))
        add("parley_commit_seconds_total", .counter, "Seconds spent committing.", Double(counters.commitNanoseconds) / 1e9)
        add("parley_submissions_queued", .gauge, "Submissions not yet settled.", Double(writer.queued))
    }
}
