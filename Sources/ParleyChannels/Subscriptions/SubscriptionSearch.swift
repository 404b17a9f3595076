internal import ParleyLog
internal import ParleySystem

/// Looks for the streams that a new subscription's pattern matches, off the writer's thread: there may be a million names to go through.
///
/// The writer begins it. From then on it notes which streams are made that match (``Subscriptions/created(_:in:)``), and those that were made
/// before are in the log once that commit is durable; together none is missed.
final class SubscriptionSearch: SubscriptionWork, @unchecked Sendable {  // Guard: touched by the writer's thread, then by one lane.
    private let subscriptions: Subscriptions
    private let id: String
    private let configuration: SubscriptionConfiguration
    private let root: String
    private let number: UInt64
    private var names: [String] = []
    private var answer: CommandSubmission.Answer = { _ in }

    /// Writer's thread.
    init(_ subscriptions: Subscriptions, _ id: String, _ configuration: SubscriptionConfiguration, root: String) {
        (self.subscriptions, self.id, self.configuration, self.root) = (subscriptions, id, configuration, root)
        number = subscriptions.beginSearch(configuration)
    }

    /// Has the subscription made with what it finds; `answer` is that command's. Writer's thread, once.
    func start(_ answer: @escaping CommandSubmission.Answer) {
        self.answer = answer
        go(subscriptions.channels.openPartitions.numbers[...])
    }

    /// It is not wanted any more. Writer's thread, instead of ``start(_:)``.
    func abandon() { _ = subscriptions.endSearch(number) }

    /// Goes through one partition after another, and lets other work in between.
    private func go(_ partitions: ArraySlice<UInt16>) {
        guard let partition = partitions.first else { return finish(.success(names)) }
        subscriptions.channels.world.perform(lane: UInt64(Placement.partition(of: id))) { [self] in
            do throws(LogError) {
                try search(partition)
            } catch {
                return finish(.failure(ChannelError(error)))
            }
            guard names.count <= Subscriptions.linksMax else { return finish(.failure(SubscriptionSearch.tooMany(configuration.pattern!))) }
            go(partitions.dropFirst())
        }
    }

    private func search(_ partition: UInt16) throws(LogError) {
        var lower = Bytes()
        lower.append(bigEndian: partition)
        let partitionBytes = lower.count
        lower.append(configuration.pattern!.literalPrefix)
        let first = names.count
        try subscriptions.channels.log.scan(.names, from: lower, to: SubscriptionSearch.end(of: lower), reversed: false) { key, value in
            guard NameRow(Bytes(value))?.isTombstone == false else { return true }
            let name = Bytes(key[partitionBytes...]).text
            if configuration.matches(name) { names.append(name) }
            return names.count <= Subscriptions.linksMax
        }
        // In memory, the writer has them at hand.
        for name in names[first...] { _ = try subscriptions.channels.find(name) }
    }

    private func finish(_ found: Result<[String], ChannelError>) {
        let search = SubscriptionRequest.Search(number: number, found: found)
        let command = SubscriptionCommand(id: id, request: .put(configuration, root: root, search))
        subscriptions.channels.submit(.subscription(command), answer)
    }

    static func tooMany(_ pattern: SubscriptionPattern) -> ChannelError {
        ChannelError(
            "INVALID_REQUEST", "more than \(Subscriptions.linksMax) streams match '\(pattern.text)'. Choose a narrower pattern.")
    }

    /// Behind every key that begins so.
    private static func end(of prefix: Bytes) -> Bytes {
        var end = prefix
        while end.last == 0xFF { end.removeLast() }
        end[end.count - 1] += 1
        return end
    }
}

extension Subscriptions {
    /// Which streams are made while somebody looks for those that were there.
    struct Searches {
        private var underWay: [UInt64: (configuration: SubscriptionConfiguration, made: [String])] = [:]
        private var last: UInt64 = 0

        mutating func begin(_ configuration: SubscriptionConfiguration) -> UInt64 {
            last += 1
            underWay[last] = (configuration, [])
            return last
        }

        mutating func made(_ name: String) {
            guard !underWay.isEmpty else { return }
            // Beyond the bound the subscription is refused anyway.
            for (number, search) in underWay where search.made.count <= Subscriptions.linksMax && search.configuration.matches(name) {
                underWay[number]!.made.append(name)
            }
        }

        mutating func end(_ number: UInt64) -> [String] { underWay.removeValue(forKey: number)?.made ?? [] }
    }
}
