internal import Glibc
internal import ParleyModels
internal import ParleyServer

/// What a node says once it listens: where it is, and commands that work with the agents and the model it has.
struct Banner {
    let text: String

    init(_ configuration: ServeConfiguration, _ node: Node) {
        let scheme = configuration.tlsCertificate == nil ? "http" : "https"
        func url(_ host: String) -> String { "\(scheme)://\(host.contains(":") ? "[\(host)]" : host):\(node.port)" }
        let kinds = node.kinds.isEmpty ? "none" : node.kinds.joined(separator: ", ")
        var lines = ["parley: serving \(url(configuration.host)) from \(configuration.dataFolder); agents: \(kinds)"]
        // Every address is no address to connect to.
        let address = url(["0.0.0.0": "127.0.0.1", "::": "::1"][configuration.host] ?? configuration.host)
        var rows = [("Console", "\(address)/")]
        if address != "http://127.0.0.1:4437" { rows.append(("Commands", "export PARLEY_URL=\(address)")) }
        if !configuration.keys.isEmpty { rows.append(("", "export PARLEY_TOKEN=<a key or token>")) }
        rows += Banner.prompts(node, address, hasKeys: !configuration.keys.isEmpty)
        rows.append(("Stop", "Ctrl-C, or kill -9 \(getpid()) in the middle of an answer: after the next start it continues"))
        lines += [""] + rows.map { name, value in "  " + name + String(repeating: " ", count: 11 - name.count) + value } + [""]
        text = lines.joined(separator: "\n")
    }

    private static func prompts(_ node: Node, _ address: String, hasKeys: Bool) -> [(String, String)] {
        let declared = node.declaredKinds.filter { $0.problem == nil }
        guard let talker = declared.first(where: { $0.file.kind == "assistant" }) ?? declared.first else {
            return node.kinds.first.map {
                [("Talk to it", "\(program) run \($0)/me \"Hello\""), ("Follow it", "\(program) tail \($0)/me")]
            } ?? []
        }
        let agent = "\(talker.file.kind)/me"
        var rows = [
            ("Talk to it", "\(program) run \(agent) \"Tell me about the sea.\""), ("Follow it", "\(program) tail \(agent)"),
            (
                "With curl",
                "curl -N \(hasKeys ? "-H \"Authorization: Bearer $PARLEY_TOKEN\" " : "")'\(address)/v1/stream/agents/\(agent)?offset=-1&live=sse&view=settled'"
            ),
        ]
        // The scripted model calls a tool when it is told to; what another makes of a request nobody knows.
        if let writer = declared.first(where: { $0.model.hasPrefix("scripted:") && $0.file.tools.contains("write_file") }) {
            let name = "\(writer.file.kind)/me"
            rows.append(("A tool", "\(program) run \(name) 'call: write_file {\"path\": \"sea.md\", \"text\": \"The sea is deep.\"}'"))
            rows.append(("Approve it", "\(program) approve \(name)"))
        }
        return rows
    }

    /// As it was called, if this is the program.
    private static var program: String {
        let called = CommandLine.arguments.first ?? ""
        return called.split(separator: "/").last == "parley" ? called : "parley"
    }
}
