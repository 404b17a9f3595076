internal import ParleySystem

/// A set of channels by their names: segments as they are, `*` for any one segment, `**` for one or more.
///
/// It is compared with the channel's decoded name, byte by byte: the form of a URL, and which texts Unicode takes for equal, do not matter.
package struct ChannelPattern: Hashable, Sendable {
    package let text: String
    private let segments: [Bytes]

    static let bytesMax = 256
    static let everything = try! ChannelPattern("**")
    private static let one = Bytes("*".utf8)
    private static let many = Bytes("**".utf8)

    /// - Throws: ``SafetyError`` that says which segment is wrong.
    package init(_ text: String) throws(SafetyError) {
        guard (1...ChannelPattern.bytesMax).contains(text.utf8.count) else {
            throw SafetyError("a channel pattern has \(text.utf8.count) bytes; expected 1 to \(ChannelPattern.bytesMax).")
        }
        guard !text.hasPrefix("/") else {
            throw SafetyError(
                "the channel pattern '\(text)' begins with a slash; leave out the slash in front: '\(text.drop { $0 == "/" })'.")
        }
        segments = text.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map { Bytes($0) }
        for segment in segments {
            guard !segment.isEmpty, segment != Bytes(".".utf8), segment != Bytes("..".utf8),
                !segment.contains(where: { $0 < 0x20 || $0 == 0x7f })
            else {
                throw SafetyError(
                    "the channel pattern '\(text)' has a segment that no channel has (empty, '.', '..' or with a control character).")
            }
            guard segment == ChannelPattern.one || segment == ChannelPattern.many || !segment.contains(UInt8(ascii: "*")) else {
                throw SafetyError(
                    "the channel pattern '\(text)' has a '*' next to other characters; expected '*' for one whole segment or '**' for one or more."
                )
            }
        }
        self.text = text
    }

    /// How many segments it has.
    var segmentCount: Int { segments.count }
    /// Whether it matches channels that it does not name.
    package var isWide: Bool { segments.contains(ChannelPattern.one) || segments.contains(ChannelPattern.many) }

    /// Names that it matches, of which a set of patterns matches each only if it matches every channel that this one does.
    ///
    /// Replaces `*` and `**` by segments that no pattern names.
    /// - Parameter segmentsMax: The most segments that one of those patterns has: longer names than that tell nothing new.
    func examples(_ segmentsMax: Int) -> [String] {
        let wide = segments.indices.filter { segments[$0] == ChannelPattern.many }
        // All of the same length, and each alone longer than the others.
        let choices = [Set(wide)] + (wide.count > 1 ? wide.map { [$0] } : [])
        let lengths = wide.isEmpty ? 1...1 : 1...(segmentsMax + 1)
        return choices.flatMap { long in lengths.map { example(long, length: $0) } }
    }

    private func example(_ long: Set<Int>, length: Int) -> String {
        let parts = segments.indices.map { index in
            guard segments[index] == ChannelPattern.one || segments[index] == ChannelPattern.many else {
                return String(decoding: segments[index], as: UTF8.self)
            }
            // No pattern has a control character.
            return Array(repeating: "\u{1}", count: long.contains(index) ? length : 1).joined(separator: "/")
        }
        return parts.joined(separator: "/")
    }

    package static func == (a: ChannelPattern, b: ChannelPattern) -> Bool { a.segments == b.segments }
    package func hash(into hasher: inout Hasher) { hasher.combine(segments) }

    /// - Complexity: O(segments of the pattern times those of the name): one place to go back to is enough, the last `**`.
    package func matches(_ channel: String) -> Bool {
        let names = channel.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
        var (index, place) = (0, 0)
        var retry: (index: Int, place: Int)?
        while place < names.count {
            if index < segments.count, segments[index] == ChannelPattern.many {
                // It takes this segment, and after that as few as will do.
                (index, place) = (index + 1, place + 1)
                retry = (index, place)
            } else if index < segments.count, segments[index] == ChannelPattern.one || segments[index].elementsEqual(names[place]) {
                (index, place) = (index + 1, place + 1)
            } else if let back = retry {
                (index, place) = (back.index, back.place + 1)
                retry = (index, place)
            } else {
                return false
            }
        }
        return index == segments.count
    }
}

/// Channels, and what may be done on them: `agents/assistant/*:read,steer`.
package struct Grant: Hashable, Sendable {
    package var pattern: ChannelPattern
    package var verbs: Verbs

    package init(_ pattern: ChannelPattern, _ verbs: Verbs) { (self.pattern, self.verbs) = (pattern, verbs) }

    /// - Throws: ``SafetyError`` that names what is wrong and what is accepted.
    package init(_ text: String) throws(SafetyError) {
        guard let colon = text.lastIndex(of: ":") else {
            throw SafetyError("'\(text)' names no verbs; expected <pattern>:<verb>,..., e.g. agents/assistant/*:read,steer.")
        }
        var verbs: [Verb] = []
        for name in text[text.index(after: colon)...].split(separator: ",", omittingEmptySubsequences: false) {
            guard let verb = Verb(name: name) else {
                let known = Verb.allCases.map(\.name).joined(separator: ", ")
                throw SafetyError("'\(text)' has the verb '\(name)'; expected some of \(known).")
            }
            verbs.append(verb)
        }
        self.init(try ChannelPattern(String(text[..<colon])), Verbs(verbs))
    }

    package var text: String { "\(pattern.text):\(verbs.names.joined(separator: ","))" }
}

/// A problem with a key, a token or a request for one. It never contains a secret.
package struct SafetyError: Error, Sendable, CustomStringConvertible {
    package var message: String
    package var description: String { message }
    package init(_ message: String) { self.message = message }
}
