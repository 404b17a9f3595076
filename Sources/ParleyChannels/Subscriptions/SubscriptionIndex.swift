internal import ParleySystem

/// The patterns of subscriptions, found by what names begin with.
///
/// Cost of a look-up: a hash for each length that a pattern's literal prefix has, and a comparison for each different pattern whose prefix the name
/// begins with, however many subscriptions there are.
struct SubscriptionIndex {
    /// Patterns by their literal prefix, and by their text.
    private var patterns: [TextKey: [TextKey: Entry]] = [:]
    /// How many literal prefixes have so many bytes.
    private var lengths: [Int: Int] = [:]

    /// A pattern, and the subscriptions that have it with their wake streams.
    private struct Entry {
        let pattern: SubscriptionPattern
        var wakeStreams: [TextKey: String?] = [:]
    }

    var isEmpty: Bool { patterns.isEmpty }

    mutating func insert(_ id: String, _ configuration: SubscriptionConfiguration) {
        guard let pattern = configuration.pattern else { return }
        let prefix = TextKey(pattern.literalPrefix)
        if patterns[prefix] == nil { lengths[prefix.text.utf8.count, default: 0] += 1 }
        patterns[prefix, default: [:]][pattern.text, default: Entry(pattern: pattern)].wakeStreams[id] = .some(configuration.wakeStream)
    }

    mutating func remove(_ id: String, _ configuration: SubscriptionConfiguration) {
        guard let pattern = configuration.pattern else { return }
        let (prefix, text) = (TextKey(pattern.literalPrefix), TextKey(pattern.text))
        guard patterns[prefix]?[text]?.wakeStreams.removeValue(forKey: TextKey(id)) != nil else { return }
        if patterns[prefix]![text]!.wakeStreams.isEmpty { patterns[prefix]![text] = nil }
        guard patterns[prefix]!.isEmpty else { return }
        patterns[prefix] = nil
        let length = prefix.text.utf8.count
        lengths[length]! -= 1
        if lengths[length] == 0 { lengths[length] = nil }
    }

    /// The subscriptions that a stream of that name belongs to by its name.
    func matching(_ name: String) -> Set<TextKey> {
        var ids: Set<TextKey> = []
        let (bytes, segments) = (Bytes(name.utf8), SubscriptionPattern.segments(of: name))
        for length in lengths.keys where length <= bytes.count {
            for entry in (patterns[TextKey(Bytes(bytes[..<length]).text)] ?? [:]).values where entry.pattern.matches(segments) {
                for (id, wakeStream) in entry.wakeStreams where wakeStream?.hasSameBytes(as: name) != true { ids.insert(id) }
            }
        }
        return ids
    }
}
