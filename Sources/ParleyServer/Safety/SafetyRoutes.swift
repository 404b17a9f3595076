internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// `POST /v1/tokens` and `POST /v1/tickets`: hands out less than one has.
struct SafetyRoutes: Sendable {
    let context: ServerContext

    private static let tokenFields = ["name", "allow", "expires_in", "expires_at"]
    /// Ten years: longer is a mistake, and rotating keys ends it earlier.
    private static let lifetimeMax = Duration.seconds(10 * 365 * 86_400)

    // MARK: Tokens

    /// - Throws: 403 unless a key, or a token that may do everything everywhere, is presented; then it is narrowed.
    func issueToken(_ exchange: Exchange) throws(Problem) {
        try requirePost(exchange)
        guard exchange.access.mayEverything else {
            throw Problem(
                status: 403, code: "forbidden",
                detail:
                    "tokens are issued by a key, or by a token that allows **:admin. A token's holder narrows it without the server: `parley token`.",
                extra: [
                    .init("verb", .string(Verb.admin.name)), .init("verbs", [.string(Verb.admin.name)]), .init("channel", .string("**")),
                ])
        }
        let keys = context.authenticator.keys
        guard let key = keys.key(named: exchange.access.name) ?? keys.keys.first else {
            throw Problem(
                status: 409, code: "no_keys",
                detail:
                    "this server has no keys, so it needs no tokens and cannot sign any. To use tokens, start it with PARLEY_KEYS or --keys."
            )
        }
        let body = try SafetyRoutes.object(exchange, SafetyRoutes.tokenFields, "invalid_token_request")
        let now = context.channels.world.now
        let block = CapabilityToken.Block(
            name: try SafetyRoutes.name(body), expires: try SafetyRoutes.expires(body, now), grants: try SafetyRoutes.grants(body))
        let token: CapabilityToken
        do throws(SafetyError) {
            if let own = exchange.access.token {
                token = try own.narrowed(block)
            } else {
                token = try CapabilityToken(keyName: key.name, key: key.signing, block)
            }
        } catch {
            throw .bad("invalid_token_request", error.message)
        }
        exchange.respond(
            201,
            json: [
                "token": .string(token.text), "name": .string(token.name), "expires_at": .string(token.expires.description),
                "allow": .array(block.grants.map { .string($0.text) }),
            ])
    }

    private static func name(_ body: JSON) throws(Problem) -> String {
        guard let name = body["name"]?.string else {
            throw .bad("invalid_token_request", "'name' is missing, or is not a string; expected the holder's name.")
        }
        do throws(SafetyError) { try CapabilityToken.Block.checkName(name) } catch {
            throw .bad("invalid_token_request", "'name': \(error.message)")
        }
        return name
    }

    private static func grants(_ body: JSON) throws(Problem) -> [Grant] {
        let texts = body["allow"]?.array?.map(\.string) ?? [body["allow"]?.string]
        var grants: [Grant] = []
        for text in texts {
            guard let text else {
                throw .bad(
                    "invalid_token_request",
                    "'allow' is missing or wrong; expected [\"<pattern>:<verb>,...\"], e.g. agents/assistant/*:read.")
            }
            do throws(SafetyError) { grants.append(try Grant(text)) } catch {
                throw .bad("invalid_token_request", "'allow': \(error.message)")
            }
        }
        guard !grants.isEmpty else { throw .bad("invalid_token_request", "'allow' is empty; expected at least one <pattern>:<verb>,....") }
        return grants
    }

    private static func expires(_ body: JSON, _ now: Timestamp) throws(Problem) -> Timestamp {
        let latest = now.advanced(by: lifetimeMax)
        switch (body["expires_in"], body["expires_at"]) {
        case (.integer(let seconds)?, nil) where seconds > 0 && seconds <= lifetimeMax.components.seconds:
            return now.advanced(by: .seconds(seconds))
        case (nil, .string(let text)?):
            guard let instant = Timestamp(text), instant > now, instant <= latest else {
                throw .bad(
                    "invalid_token_request",
                    "'expires_at' is '\(text.prefix(64))'; expected an instant (RFC 3339) after \(now) and up to \(latest).")
            }
            return instant
        default: break
        }
        throw .bad(
            "invalid_token_request",
            "'expires_in' (seconds, up to \(lifetimeMax.components.seconds)) or 'expires_at' (RFC 3339, in the future) is wrong or missing; expected one of them."
        )
    }

    // MARK: Tickets

    func issueTicket(_ exchange: Exchange) throws(Problem) {
        try requirePost(exchange)
        let body = try SafetyRoutes.object(exchange, ["channel", "socket"], "invalid_ticket_request")
        let (access, use): (Access, Tickets.Use)
        switch (body["channel"], body["socket"]) {
        case (.string(let channel)?, nil):
            // Parsed as in a URL, so that one name has one form.
            let name = try StreamName(path: ArraySlice(PercentEncoding.encode(channel, keeping: "/").utf8))
            try exchange.access.require(.read, name.text)
            (access, use) = (exchange.access.reading(only: name.text), .channel)
        case (nil, .bool(true)?): (access, use) = (exchange.access, .socket)
        default:
            throw .bad(
                "invalid_ticket_request",
                "expected either 'channel', a channel's name such as agents/assistant/me, or 'socket': true for /v1/socket.")
        }
        guard let ticket = context.authenticator.tickets.issue(access, for: use, context.channels.world.now) else {
            throw Problem(
                status: 429, code: "too_many_tickets", detail: "\(Tickets.countMax) tickets wait to be used. Try again later.",
                headers: [("Retry-After", "60")])
        }
        exchange.respond(201, json: ["ticket": .string(ticket.text), "expires_at": .string(ticket.expires.description)])
    }

    // MARK: Both

    private func requirePost(_ exchange: Exchange) throws(Problem) {
        guard exchange.request.method == "POST" else { throw .wrongMethod(exchange.request, allow: "POST, OPTIONS") }
        try exchange.request.requireParameters(among: [])
    }

    /// The body as an object with no other fields than these, so that a misspelt restriction is not taken for none.
    ///
    /// - Throws: 400 `invalid_json` for a body that is no JSON, else with `code`.
    private static func object(_ exchange: Exchange, _ fields: [String], _ code: String) throws(Problem) -> JSON {
        let json: JSON
        do throws(JSONError) { json = try JSON.parse(exchange.request.body, uniqueNames: true) } catch {
            throw .bad("invalid_json", "the body has \(error.description)")
        }
        guard let members = json.members else {
            throw .bad(code, "the body is \(json.kindName); expected an object with \(fields.joined(separator: ", ")).")
        }
        if let unknown = members.first(where: { !fields.contains($0.name) }) {
            let meant = Suggestion.closest(to: unknown.name, in: fields).map { " Did you mean '\($0)'?" } ?? ""
            throw .bad(code, "the body has the field '\(unknown.name)'; expected \(fields.joined(separator: ", ")).\(meant)")
        }
        return json
    }
}
