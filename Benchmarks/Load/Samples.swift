internal import Glibc

/// Durations of one measurement, in nanoseconds.
struct Samples {
    private var values: [Nanoseconds] = []

    var count: Int { values.count }

    init() { values.reserveCapacity(1 << 20) }

    mutating func add(_ value: Nanoseconds) { values.append(value) }
    mutating func add(_ other: Samples) { values += other.values }

    /// Milliseconds at these ranks, 0 to 1.
    func milliseconds(_ ranks: Double...) -> [Double] {
        guard !values.isEmpty else { return ranks.map { _ in .nan } }
        let sorted = values.sorted()
        return ranks.map { Double(sorted[min(sorted.count - 1, Int(Double(sorted.count) * $0))]) / 1e6 }
    }
}

/// The middle one of several rounds.
func median(_ values: [Double]) -> Double {
    guard !values.isEmpty else { return .nan }
    let sorted = values.sorted()
    return sorted.count % 2 == 1 ? sorted[sorted.count / 2] : (sorted[sorted.count / 2 - 1] + sorted[sorted.count / 2]) / 2
}

/// Prints rows under a heading, in columns.
struct Table {
    private var rows: [[String]]

    init(_ heading: String...) { rows = [heading] }

    mutating func add(_ row: [String]) { rows.append(row) }

    func show() {
        let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max()! }
        for row in rows {
            print(
                zip(row, widths).enumerated().map { index, cell in
                    let padding = String(repeating: " ", count: cell.1 - cell.0.count)
                    return index == 0 ? cell.0 + padding : padding + cell.0
                }.joined(separator: "  "))
        }
        print()
        fflush(nil)
    }
}

extension Double {
    /// The number with so many decimals; with thousands separated when there are none.
    func text(_ decimals: Int = 0) -> String {
        guard isFinite else { return "-" }
        var scale = 1.0
        for _ in 0..<decimals { scale *= 10 }
        let scaled = Int((self * scale).rounded())
        let whole = String(abs(scaled) / Int(scale))
        var grouped = ""
        for (index, digit) in whole.enumerated() {
            if index > 0, (whole.count - index) % 3 == 0 { grouped += "," }
            grouped.append(digit)
        }
        let sign = scaled < 0 ? "-" : ""
        if decimals == 0 { return sign + grouped }
        let fraction = String(abs(scaled) % Int(scale))
        return sign + grouped + "." + String(repeating: "0", count: decimals - fraction.count) + fraction
    }
}
