internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

extension StreamRoutes {
    func read(_ name: StreamName, _ exchange: Exchange) throws(Problem) {
        let request = try ReadRequest(exchange.request, isAgent: name.agent != nil)
        context.withTail(name, reaching: request.start.offset, exchange) { channel in
            let tail = channel.tail
            guard !tail.isDeleted else { return exchange.respond(Problem(.removed(channel))) }
            if let minOffset = request.minOffset, minOffset.value > tail.head {
                return wait(for: minOffset, request, channel, exchange)
            }
            answer(request, channel, exchange)
        }
    }

    private func answer(_ request: ReadRequest, _ channel: any Tail, _ exchange: Exchange) {
        let tail = channel.tail
        switch request.start {
        case .now: start(request, channel, after: tail.head, exchange)
        case .after(let offset) where offset.value <= tail.head: start(request, channel, after: offset.value, exchange)
        case .after(let offset): exchange.respond(.beyondTail(offset, tail.head))
        }
    }

    private func wait(for minOffset: Offset, _ request: ReadRequest, _ channel: any Tail, _ exchange: Exchange) {
        let readers = context.readers(on: exchange.loop)
        guard let place = place(exchange, readers) else { return }
        let reader = TailReader(channel, until: minOffset.value, readers) { answer(request, channel, exchange) }
        reader.place = place
        guard readers.add(reader) else { return exchange.respond(.overloaded("the channel is being let go of")) }
        reader.begin(exchange)
    }

    private func start(_ request: ReadRequest, _ channel: any Tail, after offset: UInt64, _ exchange: Exchange) {
        channel.touched(in: context.channels)
        switch request.mode {
        case .catchUp where request.start == .now: answerNow(channel, exchange)
        case .catchUp: catchUp(request, channel, after: offset, exchange)
        case .longPoll, .sse: follow(request, channel, after: offset, exchange)
        }
    }

    private func answerNow(_ channel: any Tail, _ exchange: Exchange) {
        let tail = channel.tail
        var headers: [HeaderField] = [
            ("Content-Type", channel.contentType), (StreamHeader.nextOffset, Offset(tail.head).token), (StreamHeader.upToDate, "true"),
            ("Cache-Control", "no-store"), StreamHeader.inert,
        ]
        if tail.isClosed { headers.append((StreamHeader.closed, "true")) }
        exchange.respond(200, headers, channel.isJSON ? Bytes("[]".utf8) : [])
    }

    private func catchUp(_ request: ReadRequest, _ channel: any Tail, after offset: UInt64, _ exchange: Exchange) {
        let (channels, bytesMax) = (context.channels, context.configuration.pageBytes)
        context.readLarge(for: exchange, weight: \.body.count) { isShort throws(ChannelError) in
            try channel.page(after: offset, view: request.view, bytesMax: isShort ? AnswerMemory.shortBytes : bytesMax, in: channels)
        } then: { page, room in
            guard !channel.tail.isDeleted else { return exchange.respond(Problem(.removed(channel))) }
            let answer = PageAnswer(
                page, of: channel, after: offset, view: request.view, isPrivate: exchange.access.isShown, channels.world.now)
            if answer.matches(request.ifNoneMatch) { return exchange.respond(304, answer.headers) }
            exchange.respond(200, answer.headers, page.body, in: room)
        }
    }

    private func follow(_ request: ReadRequest, _ channel: any Tail, after offset: UInt64, _ exchange: Exchange) {
        guard exchange.responder.isOpen else { return }  // Gone while its stream was looked for.
        guard !context.isDraining else { return exchange.respond(.overloaded("the server is stopping")) }
        let readers = context.readers(on: exchange.loop)
        guard let place = place(exchange, readers) else { return }
        let floor = StreamCursor.floor(client: request.cursor, context.channels.world)
        let expires = exchange.access.expires
        let reader: LiveReader =
            request.mode == .sse
            ? SSEReader(
                channel, after: offset, view: request.view, whenBehind: request.whenBehind, cursorFloor: floor, expires: expires, readers)
            : LongPollReader(channel, after: offset, view: request.view, cursorFloor: floor, expires: expires, readers)
        reader.place = place
        guard readers.add(reader) else {
            // The object was released between finding and following it: the next lookup finds its successor. Once this one has given back its place.
            guard let name = try? StreamName(path: exchange.request.pathUTF8.dropFirst(StreamName.prefix.utf8.count)) else { return }
            return exchange.onLoop { context.withTail(name, reaching: offset, exchange) { start(request, $0, after: offset, exchange) } }
        }
        reader.begin(exchange)
    }
}

extension StreamRoutes {
    /// A reader's place, or `nil` once the request was refused: its credential is no longer valid, or others need the room.
    private func place(_ exchange: Exchange, _ readers: LoopReaders) -> ReaderPlace? {
        do throws(Problem) {
            // The keys may have been replaced since the request came, and the readers of that moment have been told to reconnect.
            if let problem = context.authenticator.problem(with: exchange.access) { throw problem }
            let place = try context.places.take(context.account(of: exchange))
            guard readers.hasRoom else { throw .overloaded("\(readers.count) readers follow channels already") }
            return place
        } catch {
            exchange.respond(error)
            return nil
        }
    }
}

/// The header fields that go with a page.
struct PageAnswer {
    let headers: [HeaderField]
    private let tag: String

    /// - Parameter isPrivate: Others may not have it from a shared cache.
    init(_ page: Page, of channel: any Tail, after offset: UInt64, view: View, cursor: UInt64? = nil, isPrivate: Bool, _ now: Timestamp) {
        // The channel's number tells a stream from one that had its name before; the end, and what the view leaves out, change what is read.
        let end = page.isEnd ? ":c" : ""
        let viewMark = view == .settled ? ":s" + String(page.omissions, radix: 16) : ""
        let trimMark = page.trims > 0 ? ":t\(page.trims)" : ""
        tag = "\"\(channel.id.partition)-\(channel.id.number):\(offset):\(page.next)\(viewMark)\(trimMark)\(end)\""
        var headers: [HeaderField] = [
            ("Content-Type", channel.contentType), (StreamHeader.nextOffset, Offset(page.next).token), ("ETag", tag),
            ("Cache-Control", PageAnswer.cacheControl(page, channel, isPrivate, now)),
            StreamHeader.inert,
        ]
        if page.isUpToDate { headers.append((StreamHeader.upToDate, "true")) }
        if page.isEnd {
            headers.append((StreamHeader.closed, "true"))
        } else if let cursor {
            headers.append((StreamHeader.cursor, String(cursor)))
        }
        self.headers = headers
    }

    private static let (freshSeconds, staleSeconds): (Int64, Int64) = (60, 300)

    private static func cacheControl(_ page: Page, _ channel: any Tail, _ isPrivate: Bool, _ now: Timestamp) -> String {
        if channel.isAgent { return "private, no-store" }
        // Nothing yet, at an open tail: kept for a minute, it would hide what comes next.
        guard !page.isEmpty || page.isEnd else { return "no-cache" }
        let scope = isPrivate ? "private" : "public"
        // Nor is it kept longer than the stream itself.
        let left = channel.end.map { now.duration(to: $0).components.seconds } ?? .max
        guard left < freshSeconds + staleSeconds else {
            return "\(scope), max-age=\(freshSeconds), stale-while-revalidate=\(staleSeconds)"
        }
        return left > 0 ? "\(scope), max-age=\(min(freshSeconds, left))" : "no-cache"
    }

    /// - Parameter ifNoneMatch: The values of the fields of that name.
    func matches(_ ifNoneMatch: [String]) -> Bool {
        ifNoneMatch.joined(separator: ",").split(separator: ",").contains { candidate in
            let text = String(candidate).trimmingSpaces
            return text == "*" || text == tag || text == "W/" + tag
        }
    }
}
