internal import FoundationEssentials
internal import Parley
internal import ParleyServer
internal import ParleySystem

/// The key or token that is shown to the server.
enum Bearer {
    /// From `--token-file`, else from PARLEY_TOKEN. Never from an option's value: other users see the arguments of a process.
    static func find(_ arguments: Arguments) throws(UsageError) -> String? {
        guard let file = arguments["token-file"] else { return Terminal.environment("PARLEY_TOKEN") }
        do throws(SafetyError) {
            let text = try KeyRing.read(file)
            let word = text.split(whereSeparator: { $0.isWhitespace })
            guard word.count == 1 else { throw SafetyError("\(file) has \(word.count) words; expected one key or token.") }
            return String(word[0])
        } catch {
            throw UsageError("--token-file: \(error.message)", showsUsage: false)
        }
    }
}

/// `parley token`: makes a token that allows less than what one has.
enum TokenCommand: Command {
    static let name = "token"
    static let summary = "make a token with some of your own rights"
    static let usage = """
        usage: parley token --allow '<pattern>:<verb>,...' [--allow ...] [--name <name>] [--expires <duration>]
                            [--keys <file> | --token-file <file>] [--server <url>]
        """
    static let help = """
        \(usage)

        Prints a token made from PARLEY_TOKEN (or --token-file). From a key, the server signs it. From a token, it is narrowed here, without the
        server, and never allows more than that token: what it lacks is said on standard error.

          --allow <grant>       a channel pattern (* is one segment, ** one or more) and the verbs allowed there: read, append, steer, approve,
                                stop, admin; e.g. agents/assistant/*:read,steer. Repeatable
          --name <name>         the holder, and the `by` of what they append. Required with a key; a narrowed token has both names: ann/phone
          --expires <duration>  30s, 15m, 1h or 7d, or an instant such as 2030-01-31T12:00:00Z; default 1h
          --keys <file>         sign it here with the first key of this file, without the server
          --server <url>        default PARLEY_URL, then http://127.0.0.1:4437

          PARLEY_TOKEN=<key> parley token --allow 'agents/assistant/*:read,steer' --expires 1h --name ann
        """
    static let options: [CommandOption] = [.value("allow"), .value("name"), .value("expires"), .value("keys"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(0)
        let grants: [Grant]
        let now = Terminal.now
        let expires = try expiry(arguments["expires"] ?? "1h", now)
        let token: String
        do throws(SafetyError) {
            var all: [Grant] = []
            for text in arguments.all("allow") { all.append(try Grant(text)) }
            grants = all
        } catch {
            throw UsageError("--allow: \(error.message)")
        }
        let block = CapabilityToken.Block(name: arguments["name"], expires: expires, grants: grants)
        let bearer = try Bearer.find(arguments)
        for grant in grants { if let notice = notice(on: grant.pattern.text) { Terminal.error("\(line: notice)") } }
        do {
            if let name = arguments["name"] { try CapabilityToken.Block.checkName(name) }
            if let file = arguments["keys"] {
                var ring = KeyRing()
                do throws(SafetyError) { try ring.addFile(file) } catch {
                    throw UsageError("--keys: \(error.message)", showsUsage: false)
                }
                try requireWhole(block)
                token = try CapabilityToken(keyName: ring.keys[0].name, key: ring.keys[0].signing, block).text
            } else if let bearer, bearer.hasPrefix("parley_") {
                let source = arguments["token-file"].map { "--token-file \($0)" } ?? "PARLEY_TOKEN"
                guard let own = CapabilityToken(bearer) else {
                    throw UsageError("\(source) begins like a token and is not one; was it copied in part?", showsUsage: false)
                }
                guard own.expires > now else {
                    throw UsageError(
                        "\(source): that token ended at \(own.expires), and so would all that is made from it. Ask for a new one.",
                        showsUsage: false)
                }
                token = try own.narrowed(block).text
                for line in lost(grants, own) { Terminal.error("\(line: line)") }
            } else {
                try requireWhole(block)
                token = try issued(block, Client(arguments))
            }
        } catch let error as SafetyError {
            throw UsageError(error.message)
        }
        Terminal.output("\(token)\n")
        return .done
    }

    /// Says so of a pattern that names channels and looks like that of an agent.
    private static func notice(on pattern: String) -> String? {
        let parts = pattern.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, parts[0] != "agents", AgentName(kind: parts[0], id: parts[1] == "*" ? "any" : parts[1]) != nil else {
            return nil
        }
        return
            "\(pattern) names the channel\(parts[1] == "*" ? "s" : "") /\(pattern); for the agent\(parts[1] == "*" ? "s" : "") write agents/\(pattern)"
    }

    /// The requested rights that are not granted, because the token that the new one is made from does not allow them.
    private static func lost(_ grants: [Grant], _ own: CapabilityToken) -> [String] {
        let allowed = own.blocks.filter { !$0.grants.isEmpty }.map { $0.grants.map(\.text).joined(separator: " ") }
        return grants.compactMap { grant in
            let verbs = own.lacks(grant).map(\.name).joined(separator: ", ")
            guard !verbs.isEmpty else { return nil }
            let extent = grant.pattern.isWide ? "is granted only where the token that this one is made from allows it" : "is not granted"
            return "\(verbs) on \(grant.pattern.text) \(extent). That token allows \(allowed.joined(separator: ", narrowed to "))."
        }
    }

    private static func requireWhole(_ block: CapabilityToken.Block) throws(UsageError) {
        let missing = [
            block.grants.isEmpty ? "--allow '<pattern>:<verb>,...', what it allows" : nil,
            block.name == nil ? "--name <name>, its holder and the `by` of what they append" : nil,
        ].compactMap { $0 }
        guard missing.isEmpty else { throw UsageError("a token made from a key needs \(missing.joined(separator: "; and ")).") }
    }

    private static func issued(_ block: CapabilityToken.Block, _ client: Client) throws -> String {
        let body: JSON = [
            "name": .string(block.name!), "expires_at": .string(block.expires!.description),
            "allow": .array(block.grants.map { .string($0.text) }),
        ]
        let answer = try client.request("POST", "/v1/tokens", headers: [("Content-Type", "application/json")], body: body.bytes)
        guard answer.status == 201, let token = answer.json?["token"]?.string else { throw client.refusal(answer) }
        return token
    }

    private static func expiry(_ text: String, _ now: Timestamp) throws(UsageError) -> Timestamp {
        if let instant = Timestamp(text) {
            guard instant > now else {
                throw UsageError("--expires is '\(text)', which is in the past; expected a later instant, or a duration such as 1h.")
            }
            return instant
        }
        let units: [Character: Int64] = ["s": 1, "m": 60, "h": 3_600, "d": 86_400]
        guard let unit = text.last.flatMap({ units[$0] }), let count = Int64(text.dropLast()), (1...315_360_000).contains(count),
            count * unit <= 315_360_000
        else {
            throw UsageError(
                "--expires is '\(text)'; expected 30s, 15m, 1h, 7d (up to ten years) or an instant such as 2030-01-31T12:00:00Z.")
        }
        return now.advanced(by: .seconds(count * unit))
    }
}
