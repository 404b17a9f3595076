internal import ParleyLog
internal import ParleySystem

/// Makes a subscription: looks for the streams that its pattern matches, off the writer's thread, and has the writer link them a page at a time.
///
/// There may be a million names to go through and a hundred thousand links. The row of the subscription comes with the last page: links without one
/// are what a crash has left, and go at the next start. From its beginning the subscription is told of streams that are made and removed, by the same
/// messages as later (``Subscriptions/toTell(of:from:in:)``), so together none is missed. There is one making of an id at a time.
package final class SubscriptionMaking: SubscriptionWork, @unchecked Sendable {  // Guard: touched by the writer's thread, then by one lane.
    /// Streams that are linked in one commit.
    package struct Page: Sendable {
        /// The making's.
        let number: UInt64
        let links: [Link]
        /// Whether there is no other page.
        var isWhole = false
    }

    /// A stream to link, and why.
    struct Link: Sendable {
        let stream: String
        let isExplicit: Bool
    }

    private let subscriptions: Subscriptions
    private let id: String
    private let configuration: SubscriptionConfiguration
    private let root: String
    private let number: UInt64
    private var names: [String] = []
    private var links: ArraySlice<Link> = []
    private var answer: CommandSubmission.Answer = { _ in }

    /// Writer's thread.
    init(_ subscriptions: Subscriptions, _ id: String, _ configuration: SubscriptionConfiguration, root: String) {
        (self.subscriptions, self.id, self.configuration, self.root) = (subscriptions, id, configuration, root)
        number = subscriptions.beginMaking(id, configuration)
    }

    /// `answer` is that of the command that makes the subscription.
    func start(_ answer: @escaping CommandSubmission.Answer) {
        self.answer = answer
        search(configuration.pattern == nil ? [] : subscriptions.channels.openPartitions.numbers[...])
    }

    func abandon() { subscriptions.endMaking(id, number) }

    private func perform(_ work: @escaping @Sendable () -> Void) {
        subscriptions.channels.world.perform(lane: UInt64(Placement.partition(of: id)), work)
    }

    // MARK: Looking for streams

    /// Goes through one partition after another, and lets other work in between.
    private func search(_ partitions: ArraySlice<UInt16>) {
        guard let partition = partitions.first else { return link() }
        perform { [self] in
            do throws(LogError) {
                try search(partition)
            } catch {
                return fail(ChannelError(error))
            }
            guard names.count <= Subscriptions.linksMax else { return fail(tooMany) }
            search(partitions.dropFirst())
        }
    }

    private func search(_ partition: UInt16) throws(LogError) {
        var lower = Bytes()
        lower.append(bigEndian: partition)
        let partitionBytes = lower.count
        lower.append(configuration.pattern!.literalPrefix)
        try subscriptions.channels.log.scan(.names, from: lower, to: lower.endOfPrefix, reversed: false) { key, value in
            guard NameRow(Bytes(value))?.isTombstone == false else { return true }
            let name = Bytes(key[partitionBytes...]).text
            if configuration.matches(name) { names.append(name) }
            return names.count <= Subscriptions.linksMax
        }
    }

    private var tooMany: ChannelError {
        ChannelError(
            "INVALID_REQUEST",
            "more than \(Subscriptions.linksMax) streams match '\(configuration.pattern!.text)'. Choose a narrower pattern.")
    }

    // MARK: Linking them

    private func link() {
        links = (names.sorted().map { Link(stream: $0, isExplicit: false) } + configuration.links)[...]
        names = []
        linkPage()
    }

    private func linkPage() {
        perform { [self] in
            let page = Page(number: number, links: Array(links.prefix(Subscriptions.pageLinks)))
            links = links.dropFirst(page.links.count)
            // Loads the channels into memory for the writer, which reports what cannot be read.
            for link in page.links { _ = try? subscriptions.channels.find(link.stream) }
            let isLast = links.isEmpty
            let request: SubscriptionRequest = isLast ? .put(configuration, root: root, page) : .link(page)
            subscriptions.channels.submit(.subscription(SubscriptionCommand(id: id, request: request))) { [self] result in
                if case .failure(let error) = result { return fail(error) }
                if isLast { answer(result) } else { linkPage() }
            }
        }
    }

    /// Removes the links that were made, before the request is answered.
    private func fail(_ error: ChannelError) {
        subscriptions.request(.unmake(number), of: id) { [answer] _ in answer(.failure(error)) }
    }
}

extension SubscriptionConfiguration {
    /// Of the streams that it names.
    var links: [SubscriptionMaking.Link] { streams.map { SubscriptionMaking.Link(stream: $0, isExplicit: true) } }
}

extension Subscriptions {
    /// The subscriptions that are being made.
    struct Makings {
        private var byID: [TextKey: (number: UInt64, configuration: SubscriptionConfiguration)] = [:]
        private var last: UInt64 = 0

        var count: Int { byID.count }

        subscript(id: String) -> SubscriptionConfiguration? { byID[id]?.configuration }

        func isCurrent(_ id: String, _ number: UInt64) -> Bool { byID[id]?.number == number }

        mutating func begin(_ id: String, _ configuration: SubscriptionConfiguration) -> UInt64 {
            last += 1
            byID[id] = (last, configuration)
            return last
        }

        /// - Returns: its configuration, if it was the current one.
        mutating func end(_ id: String, _ number: UInt64? = nil) -> SubscriptionConfiguration? {
            guard number.map({ isCurrent(id, $0) }) ?? true else { return nil }
            return byID.removeValue(forKey: TextKey(id))?.configuration
        }

        func ids(in partition: UInt16) -> [String] { byID.keys.filter { Placement.partition(of: $0.text) == partition }.map(\.text) }
    }

    func configurationInMaking(_ id: String) -> SubscriptionConfiguration? { makings[id] }

    func isMaking(_ id: String, _ number: UInt64) -> Bool { makings.isCurrent(id, number) }

    func beginMaking(_ id: String, _ configuration: SubscriptionConfiguration) -> UInt64 {
        index.insert(id, configuration)
        return makings.begin(id, configuration)
    }

    func endMaking(_ id: String, _ number: UInt64? = nil) {
        guard let configuration = makings.end(id, number) else { return }
        if entry(id) == nil { index.remove(id, configuration) }
    }
}
