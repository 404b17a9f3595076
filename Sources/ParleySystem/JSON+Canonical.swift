extension JSON {
    /// The value in canonical form (RFC 8785): members sorted by the UTF-16 of their names, numbers as ECMAScript writes them.
    package var canonical: Bytes {
        var output = Bytes()
        writeCanonical(to: &output)
        return output
    }

    private func writeCanonical(to output: inout Bytes) {
        switch self {
        case .number(let value): output.append(JSON.canonical(value))
        case .literal: output.append(JSON.canonical(double ?? 0))
        case .array(let values):
            output.append(UInt8(ascii: "["))
            for (index, value) in values.enumerated() {
                if index > 0 { output.append(UInt8(ascii: ",")) }
                value.writeCanonical(to: &output)
            }
            output.append(UInt8(ascii: "]"))
        case .object(let members):
            output.append(UInt8(ascii: "{"))
            let sorted = JSON.unique(members).sorted { $0.name.utf16.lexicographicallyPrecedes($1.name.utf16) }
            for (index, member) in sorted.enumerated() {
                if index > 0 { output.append(UInt8(ascii: ",")) }
                JSON.write(string: member.name, to: &output)
                output.append(UInt8(ascii: ":"))
                member.value.writeCanonical(to: &output)
            }
            output.append(UInt8(ascii: "}"))
        case .integer(let value) where value.magnitude > 1 << 53: output.append(JSON.canonical(Double(value)))
        case .unsigned(let value): output.append(JSON.canonical(Double(value)))
        default: write(to: &output)
        }
    }

    /// ECMA-262, Number::toString: the shortest digits that read back as the same double, plain between 1e-7 and 1e21.
    private static func canonical(_ value: Double) -> String {
        guard value != 0 else { return "0" }
        let text = "\(value.magnitude)".lowercased()
        let parts = text.split(separator: "e")
        let mantissa = parts[0].split(separator: ".", omittingEmptySubsequences: false)
        let fraction = mantissa.count > 1 && mantissa[1] != "0" ? String(mantissa[1]) : ""
        var digits = String(mantissa[0]) + fraction
        // The place of the point, counted from the first digit.
        var point = mantissa[0].count + (parts.count > 1 ? Int(parts[1])! : 0)
        while digits.hasPrefix("0") {
            digits.removeFirst()
            point -= 1
        }
        while digits.hasSuffix("0") { digits.removeLast() }
        return (value < 0 ? "-" : "") + canonical(digits, point)
    }

    private static func canonical(_ digits: String, _ point: Int) -> String {
        let count = digits.count
        if count <= point && point <= 21 { return digits + String(repeating: "0", count: point - count) }
        if 0 < point && point <= 21 { return "\(digits.prefix(point)).\(digits.dropFirst(point))" }
        if -6 < point && point <= 0 { return "0." + String(repeating: "0", count: -point) + digits }
        let exponent = (point - 1 < 0 ? "-" : "+") + String(abs(point - 1))
        return count == 1 ? "\(digits)e\(exponent)" : "\(digits.prefix(1)).\(digits.dropFirst())e\(exponent)"
    }
}
