internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// A number that the program which composes the node adds to `/metrics`.
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

    mutating func add(_ connections: ConnectionCounters) {
        add("parley_connections", .gauge, "Open connections.", Double(connections.open))
        add("parley_request_bytes", .gauge, "Bytes held by requests in flight.", Double(connections.requestBytes))
        add(
            "parley_waiting_bytes", .gauge, "Bytes of answers and of input behind them that wait on connections.",
            Double(connections.waitingBytes))
    }

    /// How live readers keep up.
    mutating func add(_ parking: [ParkingCounters]) {
        func sum(_ value: (ParkingCounters) -> Int) -> Double { Double(parking.reduce(0) { $0 + value($1) }) }
        add("parley_readers_parked", .gauge, "Live readers parked because they exceed their limit of unsent bytes.", sum { $0.parked.now })
        add("parley_readers_parked_total", .counter, "Times a live reader was parked.", sum { $0.parked.total })
        add(
            "parley_readers_settled_total", .counter, "Live readers that switched to the settled view after falling behind.",
            sum { $0.parked.settled })
        add(
            "parley_readers_unsent_bytes", .gauge, "Bytes queued for live readers, sampled once a second.",
            sum { $0.unsentBytes.load(ordering: .relaxed) })
    }

    /// Adds the work of subscriptions since the start, and how much waits.
    mutating func add(_ counters: SubscriptionCounters) {
        func add(_ name: String, _ kind: Measure.Kind, _ help: String, _ value: Int) { self.add(name, kind, help, Double(value)) }
        add("parley_subscriptions", .gauge, "Existing subscriptions.", counters.subscriptions)
        add(
            "parley_subscription_streams_pending", .gauge,
            "Streams that may have entries beyond a cursor, at most \(SubscriptionCounters.pendingMax) for each subscription.",
            counters.pendingStreams)
        add("parley_subscription_wakes_total", .counter, "Wakes issued.", counters.wakes)
        add("parley_subscription_retries_total", .counter, "Wakes issued after a failed one.", counters.retries)
        add("parley_subscription_delivered_total", .counter, "Wakes delivered to a webhook.", counters.delivered)
        add("parley_subscription_failed_attempts_total", .counter, "Failed attempts to deliver a wake.", counters.failed)
        add("parley_subscription_claims_total", .counter, "Wakes claimed by a worker.", counters.claims)
        add("parley_subscription_leases_expired_total", .counter, "Leases that expired.", counters.leasesExpired)
    }

    /// Adds the work of the log's writer.
    mutating func add(_ writer: GroupCommit) {
        let counters = writer.counters
        add("parley_commits_total", .counter, "Commits to the log, each with one sync.", Double(counters.commits))
        add("parley_submissions_total", .counter, "Submissions settled by a commit.", Double(counters.submissions))
        add("parley_commit_bytes_total", .counter, "Bytes written by commits.", Double(counters.bytes))
        add("parley_commit_seconds_total", .counter, "Seconds spent in commits.", Double(counters.commitNanoseconds) / 1e9)
        add("parley_submissions_queued", .gauge, "Submissions waiting for a commit.", Double(writer.queued))
    }
}
