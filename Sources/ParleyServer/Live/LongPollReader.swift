internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that waits for one answer: the next entries, or that none came in time.
final class LongPollReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    private var timeout: LoopTimer?
    private var exchange: Exchange!

    override func begin(_ exchange: Exchange) {
        self.exchange = exchange
        exchange.responder.onClose = { [unowned self] in leave() }  // The responder lets go of this when it has answered.
        exchange.responder.onHalfClose = {}  // It waits all the same, and not for long.
        advance()
        guard isAttached, !isReading else { return }
        var wait = readers.configuration.longPollTimeout
        if let expires { wait = min(wait, max(.zero, readers.channels.world.now.duration(to: expires))) }
        timeout = readers.loop.schedule(after: wait) { [weak self] in self?.end() }
    }

    override func advance() {
        guard isAttached, !isReading else { return }
        if hasExpired { return answerNothing(isEnded: false) }
        switch channel.tail(after: offset) {
        case .upToDate(isEnded: true) where channel.tail.isDeleted: failed(.removed(channel))
        case .upToDate(isEnded: true): answerNothing(isEnded: true)
        case .upToDate(isEnded: false): break
        case .chunks, .behind: readPage()
        }
    }

    override var patience: Duration? { WaitingAnswers.patience }

    override func received(_ page: Page, in room: MemoryReservation?) {
        if hasExpired { return answerNothing(isEnded: false) }
        // While the page was read, the reader could not be told that the key is gone.
        if let problem = readers.authenticator?.problem(with: exchange.access) {
            leave()
            return exchange.respond(problem)
        }
        let answer = PageAnswer(
            page, of: channel, after: offset, view: view, cursor: cursor, isPrivate: exchange.access.isShown,
            readers.channels.world.now)
        leave()
        exchange.respond(200, answer.headers, page.body, in: room)
    }

    override func failed(_ error: ChannelError) {
        leave()
        exchange.respond(Problem(error))
    }

    /// The time is up.
    override func end() {
        guard isAttached, !isReading else { return }
        answerNothing(isEnded: false)
    }

    private func answerNothing(isEnded: Bool) {
        leave()
        var headers: [HeaderField] = [
            (StreamHeader.nextOffset, Offset(offset).token), (StreamHeader.upToDate, "true"), ("Cache-Control", "no-store"),
        ]
        headers.append(isEnded ? (StreamHeader.closed, "true") : (StreamHeader.cursor, String(cursor)))
        exchange.respond(204, headers)
    }

    private func leave() {
        timeout?.cancel()
        timeout = nil
        readers.remove(self)
    }
}
