internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// Identifies the sender of a request.
final class Authenticator: Sendable {
    private let ring: Mutex<KeyRing>
    /// Rises with each replacement of the keys.
    private let version = Atomic(1)
    private let principal: String
    private let world: any World
    let tickets = Tickets()

    init(_ configuration: ServerConfiguration, world: any World) {
        ring = Mutex(configuration.keys)
        principal = configuration.principal
        self.world = world
    }

    /// Takes other keys from now on. Tickets carry rights of the old ones, so clients that need one ask again.
    func replace(_ keys: KeyRing) {
        ring.withLock { ring in
            ring = keys
            version.add(1, ordering: .sequentiallyConsistent)
        }
        tickets.dropAll()
    }

    var hasKeys: Bool { ring.withLock { !$0.isEmpty } }

    var keys: KeyRing { ring.withLock { $0 } }

    /// Returns the sender of `request`; without keys, every sender has all rights.
    ///
    /// - Throws: 401 `unauthorized` with what is wrong as `reason`: `missing`, `invalid` or `expired`.
    func access(_ request: HTTPRequest) throws(Problem) -> Access {
        let (keys, current) = ring.withLock { ($0, version.load(ordering: .sequentiallyConsistent)) }
        var access = try access(request, keys)
        // A ticket keeps the version of the keys that it was issued under.
        if access.keysVersion == 0 { access.keysVersion = current }
        return access
    }

    private func access(_ request: HTTPRequest, _ keys: KeyRing) throws(Problem) -> Access {
        guard !keys.isEmpty else { return .everybody(principal) }
        let fields = request.headers("Authorization")
        if fields.isEmpty, let ticket = request.queryValue("ticket") { return try redeem(ticket, request) }
        guard let field = fields.first else {
            throw Authenticator.refused("missing", "no key is given; expected 'Authorization: Bearer <key or token>'.")
        }
        let parts = field.split(separator: " ", omittingEmptySubsequences: true)
        guard fields.count == 1, parts.count == 2, parts[0].lowercased() == "bearer" else {
            throw Authenticator.refused("invalid", "Authorization is not of the form 'Bearer <key or token>', given once.")
        }
        return try access(bearer: String(parts[1]), keys)
    }

    private func access(bearer: String, _ keys: KeyRing) throws(Problem) -> Access {
        guard bearer.hasPrefix("parley_") else {
            guard let key = keys.key(secret: bearer) else {
                throw bearer.contains(":") ? Authenticator.wholeEntry : Authenticator.unknown
            }
            return .key(key)
        }
        guard let token = CapabilityToken(bearer), let key = keys.key(named: token.keyName), token.isSigned(by: key.signing) else {
            throw Authenticator.unknown
        }
        guard world.now < token.expires else { throw Authenticator.expired(token.expires) }
        return .bearer(token)
    }

    /// Why a right that was good when its request came is not any more; `nil`: it is. Asked whenever an answer took a while to find.
    func problem(with access: Access) -> Problem? {
        if case .nothing = access.basis { return nil }
        if let expires = access.expires, expires <= world.now { return Authenticator.expired(expires) }
        if access.keysVersion == version.load(ordering: .sequentiallyConsistent) { return nil }
        let isGood = ring.withLock { keys in
            switch access.basis {
            case .nothing: true
            case .noKeys: keys.isEmpty
            case .key(let digest): keys.keys.contains { $0.digest == digest }
            case .token: access.token.flatMap { token in keys.key(named: token.keyName).map { token.isSigned(by: $0.signing) } } ?? false
            }
        }
        return isGood ? nil : Authenticator.unknown
    }

    /// A ticket is good for one GET; its rights say of which channel.
    private func redeem(_ ticket: String, _ request: HTTPRequest) throws(Problem) -> Access {
        let use: Tickets.Use = request.pathUTF8.elementsEqual(SocketRoute.path.utf8) ? .socket : .channel
        guard request.method == "GET", let access = tickets.redeem(ticket, for: use, world.now) else {
            throw Authenticator.refused("invalid", "the ticket is not known, was used, or has expired. POST /v1/tickets gives another.")
        }
        if let expires = access.expires, expires <= world.now { throw Authenticator.expired(expires) }
        return access
    }

    private static var unknown: Problem {
        refused("invalid", "the key or token is not one of this server's. Its key may have been replaced; ask for a new one.")
    }

    /// A line of a key file was sent, or what PARLEY_KEYS holds.
    private static var wholeEntry: Problem {
        refused("invalid", "the key is not one of this server's: it has the form <name>:<secret>. Send the secret alone.")
    }

    private static func expired(_ instant: Timestamp) -> Problem {
        refused("expired", "the token ended at \(instant). Ask for a new one, and go on from the offset you have.")
    }

    private static func refused(_ reason: String, _ detail: String) -> Problem {
        let challenge = reason == "missing" ? "Bearer realm=\"parley\"" : "Bearer realm=\"parley\", error=\"invalid_token\""
        return Problem(
            status: 401, code: "unauthorized", detail: detail, extra: [.init("reason", .string(reason))],
            headers: [("WWW-Authenticate", challenge)])
    }
}
