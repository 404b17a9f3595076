internal import ParleySystem

/// A glob over names of streams: `*` stands for one segment, or for any text in one, `**` for any number of segments, none included.
package struct SubscriptionPattern: Sendable, Equatable {
    package let text: String
    /// What every name that matches begins with.
    let literalPrefix: String
    private let segments: [Bytes]

    private static let any = Bytes("**".utf8)
    private static let star = UInt8(ascii: "*")

    /// `nil` unless its segments, separated by `/`, are none empty.
    package init?(_ text: String) {
        let parts = text.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map { Bytes($0) }
        guard !text.isEmpty, parts.allSatisfy({ !$0.isEmpty }) else { return nil }
        self.text = text
        segments = parts
        var prefix: [String] = []
        var rest = ""
        for part in parts {
            if part.contains(SubscriptionPattern.star) {
                if part != SubscriptionPattern.any { rest = "/" + Bytes(part.prefix { $0 != SubscriptionPattern.star }).text }
                break
            }
            prefix.append(part.text)
        }
        let joined = prefix.joined(separator: "/")
        // `a/**` matches `a`, too.
        literalPrefix = joined.isEmpty ? String(rest.dropFirst()) : joined + rest
    }

    package func matches(_ name: String) -> Bool { matches(SubscriptionPattern.segments(of: name)) }

    /// The parts of a name, which are compared with many patterns.
    static func segments(of name: String) -> [Bytes] {
        name.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map { Bytes($0) }
    }

    /// - Parameter names: The segments of a name.
    func matches(_ names: [Bytes]) -> Bool {
        // Which numbers of the name's segments the pattern so far can take: its cost is the product of both lengths, whatever it says.
        var reached = [Bool](repeating: false, count: names.count + 1)
        reached[0] = true
        for segment in segments {
            var next = [Bool](repeating: false, count: names.count + 1)
            if segment == SubscriptionPattern.any {
                var isReached = false
                for index in reached.indices {
                    isReached = isReached || reached[index]
                    next[index] = isReached
                }
            } else {
                for (index, name) in names.enumerated() where reached[index] {
                    next[index + 1] = SubscriptionPattern.matches(segment, name)
                }
            }
            reached = next
        }
        return reached[names.count]
    }

    /// Compares one segment with a pattern of text and stars; a star takes what it must, and more when the rest does not fit.
    private static func matches(_ pattern: Bytes, _ text: Bytes) -> Bool {
        var (at, position) = (0, 0)
        var retry: (at: Int, position: Int)?
        while position < text.count {
            if at < pattern.count, pattern[at] == star {
                retry = (at, position)
                at += 1
            } else if at < pattern.count, pattern[at] == text[position] {
                at += 1
                position += 1
            } else if let last = retry {
                retry = (last.at, last.position + 1)
                (at, position) = (last.at + 1, last.position + 1)
            } else {
                return false
            }
        }
        return pattern[at...].allSatisfy { $0 == star }
    }
}
