/// Values are equal when every reader takes them for the same: numbers by what they come to (`1`, `1.0` and `10e-1` are one), texts and names by
/// their bytes, objects with their members in order.
extension JSON: Equatable {
    public static func == (a: JSON, b: JSON) -> Bool {
        switch (a, b) {
        case (.null, .null): true
        case (.bool(let a), .bool(let b)): a == b
        case (.integer(let a), .integer(let b)): a == b
        case (.unsigned(let a), .unsigned(let b)): a == b
        case (.number(let a), .number(let b)): a == b
        case (.string(let a), .string(let b)): a.hasSameBytes(as: b)
        case (.array(let a), .array(let b)): a == b
        case (.object(let a), .object(let b)): a == b
        default: a.isNumber && b.isNumber && a.decimal == b.decimal
        }
    }

    package var isNumber: Bool {
        switch self {
        case .integer, .unsigned, .number, .literal: true
        case .null, .bool, .string, .array, .object: false
        }
    }

    /// The number as it is written.
    private var decimal: JSONDecimal { JSONDecimal(text) }

    /// Whether a double, written again in its shortest form, says the same number: otherwise readers whose numbers are doubles (any browser, RFC
    /// 8785) take it for another one.
    package var isExactAsDouble: Bool {
        switch self {
        case .integer(let value) where value.magnitude <= 1 << 53: return true
        case .number(let value): return value.isFinite
        case .integer, .unsigned, .literal:
            guard let value = Double(text), value.isFinite else { return false }
            return decimal == JSONDecimal("\(value)")
        default: return true
        }
    }
}

extension JSON.Member: Equatable {
    public static func == (a: JSON.Member, b: JSON.Member) -> Bool { a.name.hasSameBytes(as: b.name) && a.value == b.value }
}

extension JSON {
    /// Up to this many members all are compared, which is faster than a table.
    private static let fewMembers = 16

    /// The members by which an object is read: the last of each name, at the place of the first.
    package static func unique(_ members: [Member]) -> [Member] {
        guard hasRepeatedName(members) else { return members }
        var names = MemberNames()
        var kept: [Member] = []
        for member in members {
            if let place = names.place(of: member.name, in: kept) { kept[place].value = member.value } else { kept.append(member) }
        }
        return kept
    }

    private static func hasRepeatedName(_ members: [Member]) -> Bool {
        guard members.count <= fewMembers else { return Set(members.map { TextKey($0.name) }).count < members.count }
        return members.indices.contains { index in members[..<index].contains { $0.name.hasSameBytes(as: members[index].name) } }
    }

    /// The places of an object's members, by name.
    struct MemberNames {
        private var places: [TextKey: Int]?

        /// The place of a member in `members`, all of which have been asked for before; `nil` when the name is new and will be last.
        mutating func place(of name: String, in members: [Member]) -> Int? {
            if members.count < fewMembers { return members.firstIndex { $0.name.hasSameBytes(as: name) } }
            if places == nil {
                places = Dictionary(members.enumerated().map { (TextKey($1.name), $0) }, uniquingKeysWith: { $1 })
            }
            if let place = places![TextKey(name)] { return place }
            places![TextKey(name)] = members.count
            return nil
        }
    }
}

/// A number's text taken apart: its value, whatever its notation.
struct JSONDecimal: Equatable {
    private let isNegative: Bool
    /// Without zeros at either end; empty for zero.
    private let digits: [UInt8]
    /// The power of ten of the last digit.
    private let exponent: Int

    /// - Parameter text: A number as JSON has it.
    init(_ text: String) {
        let utf8 = Array(text.utf8)
        let end = utf8.firstIndex { $0 | 0x20 == UInt8(ascii: "e") } ?? utf8.count
        var digits: [UInt8] = []
        var exponent = end < utf8.count ? JSONDecimal.exponent(utf8[(end + 1)...]) : 0
        var isFraction = false
        for byte in utf8[..<end] where byte != UInt8(ascii: "-") {
            if byte == UInt8(ascii: ".") {
                isFraction = true
                continue
            }
            if isFraction { exponent -= 1 }
            if !digits.isEmpty || byte != UInt8(ascii: "0") { digits.append(byte) }
        }
        while digits.last == UInt8(ascii: "0") {
            digits.removeLast()
            exponent += 1
        }
        self.digits = digits
        self.exponent = digits.isEmpty ? 0 : exponent
        isNegative = utf8.first == UInt8(ascii: "-") && !digits.isEmpty
    }

    /// Far more than any digits can make up for.
    private static let exponentMax = 1 << 40

    private static func exponent(_ utf8: ArraySlice<UInt8>) -> Int {
        let text = String(decoding: utf8, as: UTF8.self)
        guard let value = Int(text) else { return text.hasPrefix("-") ? -exponentMax : exponentMax }
        return min(max(value, -exponentMax), exponentMax)
    }

    /// `nil` when it is no integer of 64 bits.
    var integer: Int64? {
        guard exponent >= 0, digits.count + exponent <= 19 else { return nil }
        if digits.isEmpty { return 0 }
        return Int64((isNegative ? "-" : "") + String(decoding: digits, as: UTF8.self) + String(repeating: "0", count: exponent))
    }
}
