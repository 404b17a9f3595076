internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

extension StreamRoutes {
    func append(to name: StreamName, _ exchange: Exchange) throws(Problem) {
        try refuseReserved(name)
        let head = try AppendRequest(exchange.request)
        if let agent = name.agent {
            let append = try AgentAppend(context: context, agent: agent, head: head, body: exchange.request.body, by: exchange.access)
            try exchange.hold(append.entryCount, entriesOf: AgentAppend.entryBytes)
            return append.submit { result in
                exchange.onLoop {
                    exchange.release()
                    StreamRoutes.answer(result.map(\.appended), head, isAgent: true, exchange)
                }
            }
        }
        let entries: [NewEntry]
        do throws(Problem) {
            let isJSON = head.contentType.map { ContentType.isJSON($0) } ?? false
            entries = try StreamRoutes.entries(of: exchange.request.body, json: isJSON)
            if entries.isEmpty && !head.closes || entries.isEmpty && !exchange.request.body.isEmpty {
                throw .bad("empty_array", "the body is an empty array; expected at least one message.")
            }
        } catch {
            return refuse(error, name, head, exchange)
        }
        try exchange.hold(entries.count, entriesOf: StreamRoutes.entryBytes)
        var append = Append(to: name.text, entries)
        append.contentType = head.contentType
        append.sequence = head.sequence
        append.ifTail = head.ifTail
        append.producer = head.producer
        append.idempotency = head.idempotency(of: exchange.request.body)
        append.closes = head.closes
        context.channels.submit(append) { result in
            exchange.onLoop {
                exchange.release()
                StreamRoutes.answer(result, head, isAgent: false, exchange)
            }
        }
    }

    /// The bytes that a message takes besides its own until it is in the log.
    private static let entryBytes = 256

    /// Refuses a body that cannot be read, unless the stream itself refuses it first: not there, closed, of another type.
    private func refuse(_ problem: Problem, _ name: StreamName, _ head: AppendRequest, _ exchange: Exchange) {
        context.withChannel(name, exchange) { channel in
            let tail = channel.tail
            if tail.isClosed {
                let error = ChannelError.closed(channel.name, tail: Offset(tail.head))
                return exchange.respond(Problem(error))
            }
            if let type = head.contentType, !ContentType.matches(type, channel.contentType) {
                return exchange.respond(Problem(.mismatch(type, channel.contentType)))
            }
            exchange.respond(problem)
        }
    }

    private static func answer(_ result: Result<Appended, ChannelError>, _ head: AppendRequest, isAgent: Bool, _ exchange: Exchange) {
        switch result {
        case .failure(let error): exchange.respond(Problem(error))
        case .success(let appended):
            var headers: [HeaderField] = [(StreamHeader.nextOffset, Offset(appended.tail).token)]
            // An agent ends when it has finished; its close is only asked for here.
            if appended.isClosed, !isAgent || appended.isReplay { headers.append((StreamHeader.closed, "true")) }
            if let producer = appended.producer {
                headers.append((StreamHeader.producerEpoch, String(producer.epoch)))
                headers.append((StreamHeader.producerSequence, String(producer.sequence)))
            }
            if head.idempotencyKey != nil, appended.isReplay { headers.append(("Idempotent-Replayed", "true")) }
            let isNewByProducer = head.producer != nil && !appended.isReplay && !appended.offsets.isEmpty
            exchange.respond(isNewByProducer ? 200 : 204, headers)
        }
    }
}
