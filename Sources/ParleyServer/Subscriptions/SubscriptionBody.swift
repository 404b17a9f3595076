internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem
internal import ParleyWebhooks

/// The JSON body of a request about a subscription, checked.
struct SubscriptionBody {
    private let json: JSON

    private static let descriptionBytesMax = 4_096
    private static let urlBytesMax = 2_048

    init(_ request: HTTPRequest) throws(SubscriptionProblem) {
        do throws(JSONError) { json = try JSON.parse(request.body) } catch { throw .invalid("the body has \(error).") }
        guard json.members != nil else { throw .invalid("the body is \(json.kindName); expected an object.") }
    }

    // MARK: A subscription

    func configuration(allowsLoopback: Bool) throws(SubscriptionProblem) -> SubscriptionConfiguration {
        let delivery = try delivery(allowsLoopback: allowsLoopback)
        let pattern = try pattern()
        let streams = try streams()
        guard pattern != nil || streams != nil else { throw .invalid("neither pattern nor streams is given; at least one is needed.") }
        return SubscriptionConfiguration(
            delivery, pattern: pattern, streams: streams ?? [], leaseMilliseconds: try lease(),
            description: try optionalText("description", bytesMax: SubscriptionBody.descriptionBytesMax))
    }

    private func delivery(allowsLoopback: Bool) throws(SubscriptionProblem) -> SubscriptionConfiguration.Delivery {
        switch json["type"]?.string {
        case "webhook":
            guard let text = json["webhook"]?["url"]?.string else { throw .invalid("webhook.url is missing; a webhook needs it.") }
            guard text.utf8.count <= SubscriptionBody.urlBytesMax else {
                throw SubscriptionProblem(400, "WEBHOOK_URL_REJECTED", "webhook.url has more than \(SubscriptionBody.urlBytesMax) bytes.")
            }
            do { return .webhook(url: try SubscriptionURL(text, allowsLoopback: allowsLoopback).text) } catch {
                throw SubscriptionProblem(400, "WEBHOOK_URL_REJECTED", "\(error)")
            }
        case "pull-wake":
            guard let text = json["wake_stream"]?.string else { throw .invalid("wake_stream is missing; a pull-wake needs it.") }
            let name = try SubscriptionBody.name(text)
            guard name.agent == nil else { throw .invalid("wake_stream is an agent's channel; expected a plain channel.") }
            return .pullWake(stream: name.text)
        default: throw .invalid("type is \(json["type"]?.text ?? "missing"); expected \"webhook\" or \"pull-wake\".")
        }
    }

    private func pattern() throws(SubscriptionProblem) -> SubscriptionPattern? {
        guard let text = try optionalText("pattern", bytesMax: StreamName.bytesMax) else { return nil }
        guard let pattern = SubscriptionPattern(text.hasPrefix("/") ? String(text.dropFirst()) : text) else {
            throw .invalid("pattern is '\(text)'; expected segments separated by '/', none of them empty.")
        }
        return pattern
    }

    private func lease() throws(SubscriptionProblem) -> Int64 {
        guard let value = json["lease_ttl_ms"], value != .null else { return SubscriptionConfiguration.leaseMillisecondsDefault }
        let range = SubscriptionConfiguration.leaseMillisecondsRange
        guard let milliseconds = value.integer, range.contains(milliseconds) else {
            throw .invalid("lease_ttl_ms is \(value.text); expected an integer from \(range.lowerBound) to \(range.upperBound).")
        }
        return milliseconds
    }

    /// The names in `streams`; `nil` when there is none.
    func streams() throws(SubscriptionProblem) -> [String]? {
        guard let value = json["streams"], value != .null else { return nil }
        guard let values = value.array else { throw .invalid("streams is \(value.kindName); expected a list of names of streams.") }
        var names: [String] = []
        for value in values {
            guard let text = value.string else { throw .invalid("streams has \(value.kindName); expected names of streams.") }
            names.append(try SubscriptionBody.name(text).text)
        }
        return names
    }

    // MARK: A wake

    func generation() throws(SubscriptionProblem) -> UInt64 {
        guard let generation = json["generation"]?.integer.flatMap({ UInt64(exactly: $0) }) else {
            throw .invalid("generation is \(json["generation"]?.text ?? "missing"); expected the wake's.")
        }
        return generation
    }

    func flag(_ name: String) throws(SubscriptionProblem) -> Bool {
        guard let value = json[name], value != .null else { return false }
        guard let flag = value.bool else { throw .invalid("\(name) is \(value.kindName); expected true or false.") }
        return flag
    }

    func acks(max: Int) throws(SubscriptionProblem) -> [SubscriptionAck] {
        guard let value = json["acks"], value != .null else { return [] }
        guard let values = value.array, values.count <= max else { throw .invalid("acks is not a list of at most \(max) offsets.") }
        var acks: [SubscriptionAck] = []
        for value in values {
            guard let stream = value["stream"]?.string ?? value["path"]?.string, let text = value["offset"]?.string else {
                throw .invalid(#"acks has \#(value.text.prefix(200)); expected {"stream": …, "offset": …}."#)
            }
            guard let offset = Offset(token: text) else {
                throw SubscriptionProblem(409, "INVALID_OFFSET", "'\(text.prefix(64))' is not an offset of this server.")
            }
            acks.append(SubscriptionAck(stream: try SubscriptionBody.name(stream).text, offset: offset.value))
        }
        return acks
    }

    // MARK: Texts

    func text(_ name: String, bytesMax: Int) throws(SubscriptionProblem) -> String {
        guard let text = try optionalText(name, bytesMax: bytesMax), !text.isEmpty else { throw .invalid("\(name) is missing or empty.") }
        return text
    }

    private func optionalText(_ name: String, bytesMax: Int) throws(SubscriptionProblem) -> String? {
        guard let value = json[name], value != .null else { return nil }
        guard let text = value.string else { throw .invalid("\(name) is \(value.kindName); expected a string.") }
        guard text.utf8.count <= bytesMax else { throw .invalid("\(name) has \(text.utf8.count) bytes; expected at most \(bytesMax).") }
        return text
    }

    /// A stream by its path relative to the stream root, as in bodies; a slash in front is forgiven.
    static func name(_ text: String) throws(SubscriptionProblem) -> StreamName {
        let path = PercentEncoding.encode(text.hasPrefix("/") ? String(text.dropFirst()) : text, keeping: "/")
        return try checked(path)
    }

    /// The same from a URL, where it is percent-encoded.
    static func name(encoded path: String) throws(SubscriptionProblem) -> String { try checked(path).text }

    private static func checked(_ path: String) throws(SubscriptionProblem) -> StreamName {
        let name: StreamName
        do throws(Problem) { name = try StreamName(path: ArraySlice(path.utf8)) } catch { throw .invalid(error.detail) }
        guard !name.isReserved else { throw .invalid("'\(name.text)' is a reserved name: \(StreamName.reservedText).") }
        return name
    }
}

/// Why a request about a subscription is refused, in the form the protocol has for that: `{"error": {"code": …, "message": …}}`.
struct SubscriptionProblem: Error {
    var status: Int
    var code: String
    var message: String
    var extra: [JSON.Member] = []
    var headers: [HeaderField] = []

    init(_ status: Int, _ code: String, _ message: String) { (self.status, self.code, self.message) = (status, code, message) }

    init(_ error: ChannelError) {
        self.init(SubscriptionProblem.status(of: error.code), error.code, error.message)
        extra = error.details.map { .init($0.name, $0.value) }
        if status == 503 { headers = [("Retry-After", "1")] }
    }

    private static func status(of code: String) -> Int {
        switch code {
        case "INVALID_REQUEST": 400
        case "TOKEN_INVALID": 401
        case "SUBSCRIPTION_NOT_FOUND": 404
        case "SUBSCRIPTION_EXISTS", "ALREADY_CLAIMED", "NO_PENDING_WORK", "FENCED", "INVALID_OFFSET": 409
        case "TOO_MANY_SUBSCRIPTIONS": 429
        case "overloaded", "log_closed", "partition_unavailable": 503
        case "outcome_unknown": 504
        default: 500
        }
    }

    static func invalid(_ message: String) -> SubscriptionProblem { SubscriptionProblem(400, "INVALID_REQUEST", message) }

    static func notFound(_ id: String) -> SubscriptionProblem {
        SubscriptionProblem(404, "SUBSCRIPTION_NOT_FOUND", "there is no subscription '\(id)'.")
    }

    static func wrongMethod(_ request: HTTPRequest, allow: String) -> SubscriptionProblem {
        guard request.hasKnownMethod else {
            return SubscriptionProblem(
                501, "UNSUPPORTED_METHOD", "\(request.method) is no method that the server knows; expected \(allow).")
        }
        var problem = SubscriptionProblem(405, "METHOD_NOT_ALLOWED", "\(request.method) does not apply here; expected \(allow).")
        problem.headers = [("Allow", allow)]
        return problem
    }
}

extension Exchange {
    func respond(_ problem: SubscriptionProblem) {
        refusals?.count(problem.code)
        let members: [JSON.Member] = [.init("code", .string(problem.code)), .init("message", .string(problem.message))]
        respond(problem.status, problem.headers, json: ["error": .object(members + problem.extra)])
    }
}
