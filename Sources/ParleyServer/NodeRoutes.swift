internal import ParleyHTTP
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The routes of the node as a whole, for clients with all rights: `GET /v1/kinds`, `POST /v1/backup`.
final class NodeRoutes: Sendable {
    private let context: ServerContext
    private let isBackingUp = Atomic(false)

    static let (kindsPath, backupPath) = ("/v1/kinds", "/v1/backup")

    init(_ context: ServerContext) { self.context = context }

    func kinds(_ exchange: Exchange) throws(Problem) {
        let method = exchange.request.method
        guard method == "GET" || method == "HEAD" else { throw .wrongMethod(exchange.request, allow: "GET, HEAD") }
        try exchange.request.requireParameters(among: [])
        exchange.respond(200, json: ["kinds": .array(context.node?.kinds ?? [])])
    }

    /// `{"folder": "/backups/monday"}`: answers when the copy is complete and durable.
    func backUp(_ exchange: Exchange) throws(Problem) {
        guard exchange.request.method == "POST" else { throw .wrongMethod(exchange.request, allow: "POST") }
        try exchange.request.requireParameters(among: [])
        guard let node = context.node else {
            throw Problem(status: 404, code: "route_not_found", detail: "this server has no data folder.")
        }
        let folder = try folder(exchange.request)
        guard !isBackingUp.exchange(true, ordering: .acquiring) else {
            throw Problem(status: 409, code: "backup_running", detail: "another backup is being made; try again when it is done.")
        }
        // On a thread of its own: it may take minutes.
        _ = SystemThread(name: "backup") { [self] in
            let result = Result { try node.backUp(to: folder) }
            isBackingUp.store(false, ordering: .releasing)
            exchange.onLoop {
                switch result {
                case .success: exchange.respond(201, json: ["folder": .string(folder)])
                case .failure(let error): exchange.respond(NodeRoutes.problem(error))
                }
            }
        }
    }

    /// A folder that cannot take a backup is the caller's mistake, and nothing was written; anything else leaves half a copy.
    private static func problem(_ error: any Error) -> Problem {
        if let error = error as? LogError, error.code == .invalidFolder { return .bad("invalid_folder", "\(error.message).") }
        return Problem(status: 500, code: "backup_failed", detail: "\(error).")
    }

    private func folder(_ request: HTTPRequest) throws(Problem) -> String {
        guard let members = (try? JSON.parse(request.body))?.members else {
            throw .bad("invalid_folder", "the body is not a JSON object; expected {\"folder\": \"/backups/monday\"}.")
        }
        let unknown = members.map(\.name).filter { $0 != "folder" }.map { "'\($0.prefix(64))'" }
        let others = unknown.isEmpty ? "" : " The body has \(unknown.prefix(3).joined(separator: ", ")), which is unknown here."
        guard let value = members.first(where: { $0.name == "folder" })?.value else {
            throw .bad(
                "invalid_folder", "'folder' is missing; expected the absolute path of a new folder on the server's machine.\(others)")
        }
        guard unknown.isEmpty else { throw .bad("invalid_folder", "expected 'folder' alone.\(others)") }
        let folder = value.string ?? ""
        guard folder.hasPrefix("/"), folder.utf8.count <= 1_024, !folder.utf8.contains(0) else {
            throw .bad(
                "invalid_folder", "folder is '\(folder.prefix(64))'; expected the absolute path of a new folder on the server's machine.")
        }
        return folder
    }
}
