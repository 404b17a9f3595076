internal import ParleyChannels
internal import ParleyHTTP
internal import ParleyLog
internal import ParleySystem

/// The channels at `/v1/streams`, by name.
struct StreamList: Sendable {
    let context: ServerContext

    static let path = "/v1/streams"
    private static let limitMax = 1_000
    private static let limitDefault = 100

    func handle(_ exchange: Exchange) throws(Problem) {
        let request = exchange.request
        guard request.method == "GET" || request.method == "HEAD" else { throw .wrongMethod(request, allow: "GET, HEAD, OPTIONS") }
        try request.requireParameters(among: ["prefix", "limit", "after", "agents"])
        let (prefix, after) = (request.queryValue("prefix") ?? "", request.queryValue("after"))
        let limit = try request.limit(StreamList.limitDefault, max: StreamList.limitMax)
        let access = exchange.access
        let hidesAgents = request.queryValue("agents") == "false"
        context.read(for: exchange) { [channels = context.channels] () throws(ChannelError) in
            do throws(LogError) {
                return try channels.list(prefix: prefix, after: after, limit: limit) {
                    access.may(.read, $0) && !(hidesAgents && $0.utf8.starts(with: "agents/".utf8))
                }
            } catch { throw ChannelError(error) }
        } then: { found in
            let streams = found.channels.map { channel in
                JSON.compact(
                    ("name", .string(channel.name)), ("content_type", .string(channel.contentType)),
                    ("agent", channel.isAgent ? true : nil),
                    ("closed", .bool(channel.isClosed)), ("created", .string(channel.created.description)),
                    ("tail_offset", .string(Offset(channel.tail).token)))
            }
            exchange.respond(200, json: JSON.compact(("streams", .array(streams)), ("next", found.next.map { .string($0) })))
        }
    }
}
