internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that gets what is appended to a channel as messages on a socket that it shares with others.
final class SocketReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    let subscription: SocketSubscription
    /// The index of the channel among the subscription's.
    let index: Int
    /// Waits in the session for room, at its offset.
    var isParked = false
    private var hasSent = false

    init(_ channel: any Tail, after offset: UInt64, view: View, index: Int = 0, _ subscription: SocketSubscription) {
        self.subscription = subscription
        self.index = index
        let session = subscription.session
        super.init(channel, after: offset, view: view, cursorFloor: 0, expires: session.access.expires, session.readers)
    }

    private var session: SocketSession { subscription.session }

    func begin() { advance() }

    override func advance() {
        guard isAttached, !isReading, !isParked else { return }
        if hasExpired { return session.end(.expired) }
        guard session.hasRoom else { return session.park(self) }
        switch channel.tail(after: offset) {
        case .upToDate(isEnded: true): finish()
        case .upToDate(isEnded: false): if !hasSent { sendNothing() }
        case .chunks(let chunks, let isEnded) where !chunks.contains(where: \.isLarge):
            for chunk in chunks where isAttached { send(chunk, isUpToDate: chunk === chunks.last) }
            if isEnded { finish() }
        case .chunks, .behind:  // A large piece is counted as a page, when there is room for it.
            guard session.mayRead() else { return session.park(self) }
            readPage()
        }
    }

    override func received(_ page: Page, in room: MemoryReservation?) {
        if hasExpired {
            session.readEnded()
            return session.end(.expired)
        }
        send(SocketReader.form(page, of: channel, isUpToDate: page.isUpToDate), in: room, to: page.next, children: page.children)
        session.readEnded()
        if page.isEnd { finish() } else { advance() }
    }

    override func failed(_ error: ChannelError) {
        end(with: error)
        session.readEnded()
    }

    private func end(with error: ChannelError) {
        leave()
        if error.isOfRemoval { return subscription.ended(self, "deleted", nil) }
        if error.code != "overloaded" {
            Diagnostics.log(.error, "a live read failed", ["channel": channel.name, "reason": error.message])
        }
        subscription.ended(self, "failed", Problem(error))
    }

    override func deliver(_ event: EphemeralDelivery) {
        guard isAttached, session.hasRoom else { return }
        session.socket.send(head: SocketReader.head(subscription.reference), event.socketForm)
    }

    /// The session says where to resume, for all its readers at once.
    override func end() {}

    override func channelLeft() {
        end(with: ChannelError("partition_unavailable", "'\(channel.name)' is not on this node any more. Follow it again."))
    }

    /// Stops following. Idempotent.
    func leave() {
        guard isAttached else { return }
        readers.remove(self)
        session.release(subscription.heldName(of: self))
        // The page in flight finds no reader.
        if isReading { session.readEnded() }
    }

    private func finish() {
        guard isAttached else { return }
        leave()
        subscription.ended(self, channel.tail.isDeleted ? "deleted" : "closed", nil)
    }

    // MARK: Messages

    static func head(_ reference: Int64) -> Bytes { Bytes("{\"ref\":\(reference),".utf8) }

    private func send(_ chunk: Chunk, isUpToDate: Bool) {
        let form = chunk.wire(isUpToDate ? "w\(view.rawValue)u" : "w\(view.rawValue)") { chunk in
            SocketReader.form(chunk.page(of: channel, view: view), of: channel, isUpToDate: isUpToDate)
        }
        send(form, to: chunk.last, children: chunk.children)
    }

    private func sendNothing() {
        var form = Bytes("\"channel\":".utf8)
        JSON.write(string: channel.name, to: &form)
        form.append(",\"entries\":[],\"offset\":\"\(Offset(offset).token)\",\"up_to_date\":true}")
        send(form, to: offset, children: [])
    }

    /// - Parameter form: The message behind its head; one for all readers of the channel.
    private func send(_ form: Bytes, in room: MemoryReservation? = nil, to next: UInt64, children: @autoclosure () -> [String]) {
        hasSent = true
        offset = next
        subscription.advanced(self, to: next, children: children())
        session.socket.send(head: subscription.head(for: self), form, room: room)
        subscription.sent()
    }

    private static func form(_ page: Page, of channel: any Tail, isUpToDate: Bool) -> Bytes {
        var form = Bytes("\"channel\":".utf8)
        form.reserveCapacity(page.body.count + channel.name.utf8.count + 96)
        JSON.write(string: channel.name, to: &form)
        form.append(",\"entries\":")
        form.append(contentsOf: page.body)
        form.append(",\"offset\":\"")
        Offset(page.next).write(to: &form)
        form.append(isUpToDate ? "\",\"up_to_date\":true}" : "\",\"up_to_date\":false}")
        return form
    }
}
