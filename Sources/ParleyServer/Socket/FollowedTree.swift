internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// An agent and all its descendants, those started later, too: followed under one reference, with one cursor for all of them.
///
/// A descendant is what a `child.started` in a followed channel names. The message that carries that entry carries a cursor which has the
/// child at its start, so that no break can come between the two.
final class FollowedTree: SocketSubscription, @unchecked Sendable {  // Guard: used on the loop only.
    private struct Member {
        var reader: SocketReader?
        var isEnded = false
        /// The channel is not there yet: it is looked for once a second.
        var isAwaited = false
        var isFinding = false
    }

    private var cursor: TreeCursor
    private let view: View
    private var members: [Member]
    private var indices: [String: Int] = [:]
    private var nameBytes = 0
    /// Children that the message being sent names.
    private var newcomers: [Int] = []
    private var refused: [(name: String, problem: Problem)] = []

    /// With this many bytes of names the cursor's text stays within its bound.
    private static let nameBytesMax = 40 << 10

    init(_ reference: Int64, _ places: [TreeCursor.Place], _ view: View, _ session: SocketSession) {
        cursor = TreeCursor(places)
        self.view = view
        members = places.map { _ in Member() }
        for (index, place) in places.enumerated() {
            indices[place.channel] = index
            nameBytes += place.channel.utf8.count + 16
        }
        super.init(reference, session)
    }

    /// The channels of members that have not ended.
    var channels: [String] { members.indices.filter { !members[$0].isEnded }.map { cursor.places[$0].channel } }

    func begin() { for index in members.indices { find(index) } }

    private func find(_ index: Int) {
        guard !isLeft, !members[index].isFinding else { return }
        let name: StreamName
        do throws(Problem) {
            name = try StreamName(cursor.places[index].channel)
            // Also of those that a cursor names: it comes from the client.
            try session.access.require(.read, name.text)
        } catch { return end(index, "failed", error) }
        members[index].isFinding = true
        session.operationBegan()
        let session = session
        session.context.findTail(name, reaching: cursor.places[index].offset, on: session.loop) { [self] result in
            members[index].isFinding = false
            if !isLeft { found(index, result) }
            session.operationEnded()
        }
    }

    private func found(_ index: Int, _ result: Result<any Tail, ChannelError>) {
        do throws(Problem) {
            switch result {
            case .failure(let error) where index > 0 && error.code == "channel_not_found": members[index].isAwaited = true
            case .failure(let error) where index > 0 && error.code == "agent_deleted": end(index, "deleted", nil)
            case .failure(let error): throw Problem(error)
            case .success(let channel): try follow(channel, index)
            }
        } catch {
            guard index == 0 else { return end(index, "failed", error) }
            forget()
            session.refuse(reference, error)
        }
    }

    private func follow(_ channel: any Tail, _ index: Int) throws(Problem) {
        members[index].isAwaited = false
        let tail = channel.tail
        guard !tail.isDeleted else { return end(index, "deleted", nil) }
        let offset = try SocketReader.place(.after(Offset(cursor.places[index].offset)), in: channel, tail.head)
        let place = try session.place(for: cursor.places[index].channel)
        let reader = SocketReader(channel, after: offset, view: channel.isAgent ? view : .raw, index: index, self)
        reader.place = place
        guard session.readers.add(reader) else { return find(index) }
        members[index].reader = reader
        reader.begin()
    }

    // MARK: As the readers continue

    override func advanced(_ reader: SocketReader, to offset: UInt64, children: @autoclosure () -> [String]) {
        cursor.places[reader.index].offset = offset
        for child in children() where indices[child] == nil { add(child) }
    }

    private func add(_ child: String) {
        guard AgentName(channel: child) != nil else { return }
        do throws(Problem) {
            guard members.count < TreeCursor.channelsMax, nameBytes + child.utf8.count + 16 <= FollowedTree.nameBytesMax else {
                throw Problem(
                    status: 429, code: "tree_full",
                    detail:
                        "the tree of '\(cursor.places[0].channel)' has \(members.count) channels; expected at most \(TreeCursor.channelsMax). "
                        + "Follow '\(child)' by itself.")
            }
            try session.hold([child])
        } catch {
            refused.append((child, error))
            return
        }
        nameBytes += child.utf8.count + 16
        indices[child] = members.count
        newcomers.append(members.count)
        members.append(Member())
        cursor.places.append(TreeCursor.Place(channel: child, offset: 0))
    }

    override func head(for reader: SocketReader) -> Bytes { SocketReader.head(reference) + Bytes("\"cursor\":\"\(cursor.text)\",".utf8) }

    override func sent() {
        let (found, refused) = (newcomers, self.refused)
        (newcomers, self.refused) = ([], [])
        for (name, problem) in refused { session.sendEnd(reference, channel: name, "refused", problem) }
        for index in found { find(index) }
    }

    override func heldName(of reader: SocketReader) -> String { cursor.places[reader.index].channel }

    override func ended(_ reader: SocketReader, _ reason: String, _ problem: Problem?) {
        members[reader.index].reader = nil
        end(reader.index, reason, problem, isCounted: false)
    }

    /// - Parameter isCounted: Whether the channel still counts among the session's.
    private func end(_ index: Int, _ reason: String, _ problem: Problem?, isCounted: Bool = true) {
        guard !isLeft, !members[index].isEnded else { return }
        members[index].isEnded = true
        members[index].isAwaited = false
        if isCounted { session.release(cursor.places[index].channel) }
        session.sendEnd(reference, channel: cursor.places[index].channel, reason, problem, [.init("cursor", .string(cursor.text))])
        guard members.allSatisfy(\.isEnded) else { return }
        forget()
        session.sendEnd(reference, channel: nil, reason, nil)
    }

    // MARK: As a subscription

    override var place: JSON? {
        .compact(("ref", .integer(reference)), ("channel", .string(cursor.places[0].channel)), ("cursor", .string(cursor.text)))
    }

    override func leave() {
        guard !isLeft else { return }
        super.leave()
        for (index, member) in members.enumerated() where !member.isEnded {
            if let reader = member.reader { reader.leave() } else { session.release(cursor.places[index].channel) }
        }
    }

    override func sweep() {
        for index in members.indices where members[index].isAwaited && !members[index].isEnded { find(index) }
    }
}
