internal import ParleySystem

/// A problem that the server reported, with what to do about it at a command line.
struct ServerProblem {
    let text: String

    init(_ json: JSON, _ status: Int) {
        let said = json["detail"]?.string ?? json["title"]?.string ?? "the server answered \(status)"
        text = (json["code"]?.string.map { "\(said) (\($0))" } ?? said) + (ServerProblem.remedy(json).map { " \($0)" } ?? "")
    }

    private static func remedy(_ json: JSON) -> String? {
        switch json["code"]?.string {
        case "unauthorized": "Set PARLEY_TOKEN to a key or token of this server, or name a file that holds one with --token-file."
        case "forbidden":
            json["channel"]?.string.flatMap { channel in
                json["verb"]?.string.map {
                    "A token for it: parley token --allow '\(channel):\($0)' --name <name>, with a key as PARLEY_TOKEN."
                }
            }
        case "agent_deleted": "At the command line: parley create <kind>/<id>."
        case "tls_required": "Name the server with https:// instead of http://."
        default: nil
        }
    }
}
