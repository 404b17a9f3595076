internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A single channel that a socket follows.
final class FollowedChannel: SocketSubscription, @unchecked Sendable {  // Guard: used on the loop only.
    private let name: StreamName
    private let start: ReadRequest.Start
    private let view: View
    private let messageHead: Bytes
    private var reader: SocketReader?

    init(_ reference: Int64, _ name: StreamName, _ start: ReadRequest.Start, _ view: View, _ session: SocketSession) {
        self.name = name
        self.start = start
        self.view = name.agent == nil ? .raw : view
        messageHead = SocketReader.head(reference)
        super.init(reference, session)
    }

    func begin() {
        session.operationBegan()
        let session = session
        session.context.findTail(name, reaching: start.offset, on: session.loop) { [self] result in
            if !isLeft { found(result) }
            session.operationEnded()
        }
    }

    private func found(_ result: Result<any Tail, ChannelError>) {
        do throws(Problem) {
            switch result {
            case .failure(let error): throw Problem(error)
            case .success(let channel): try follow(channel)
            }
        } catch {
            forget()
            session.refuse(reference, error)
        }
    }

    private func follow(_ channel: any Tail) throws(Problem) {
        let tail = channel.tail
        guard !tail.isDeleted else { throw Problem(.removed(channel)) }
        channel.touched(in: session.context.channels)
        let offset = try SocketReader.place(start, in: channel, tail.head)
        let place = try session.place(for: name.text)
        let reader = SocketReader(channel, after: offset, view: view, self)
        reader.place = place
        // The object was released between finding and following it: the next lookup finds its successor.
        guard session.readers.add(reader) else { return begin() }
        self.reader = reader
        reader.begin()
    }

    override var place: JSON? {
        var offset = reader.map { Offset($0.offset).token }
        if offset == nil, case .after(let start) = start { offset = start.token }
        return .compact(("ref", .integer(reference)), ("channel", .string(name.text)), ("offset", .string(offset ?? "now")))
    }

    override func leave() {
        guard !isLeft else { return }
        super.leave()
        if let reader { reader.leave() } else { session.release(name.text) }
    }

    override func head(for reader: SocketReader) -> Bytes { messageHead }

    override func heldName(of reader: SocketReader) -> String { name.text }

    override func ended(_ reader: SocketReader, _ reason: String, _ problem: Problem?) {
        forget()
        session.sendEnd(reference, channel: nil, reason, problem)
    }
}

extension SocketReader {
    /// The offset at which a reader that asks for `start` begins.
    static func place(_ start: ReadRequest.Start, in channel: any Tail, _ head: UInt64) throws(Problem) -> UInt64 {
        guard channel.isJSON else { throw Problem(.mismatch(ContentTypeText.json, channel.contentType)) }
        switch start {
        case .now: return head
        case .after(let offset):
            guard offset.value <= head else { throw .beyondTail(offset, head) }
            return offset.value
        }
    }
}

extension SocketSession {
    /// Says that nothing more comes.
    /// - Parameter members: Members that the subscription adds.
    func sendEnd(_ reference: Int64, channel: String?, _ reason: String, _ problem: Problem?, _ members: [JSON.Member] = []) {
        var message: [JSON.Member] = [.init("ref", .integer(reference))]
        if let channel { message.append(.init("channel", .string(channel))) }
        message += members + [.init("ended", true), .init("reason", .string(reason))]
        if let problem, let error = try? JSON.parse(problem.body) { message.append(.init("error", error)) }
        send(.object(message))
    }
}
