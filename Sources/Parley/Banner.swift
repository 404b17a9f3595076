internal import Glibc
internal import ParleyHTTP
internal import ParleyModels
internal import ParleyServer

/// The text that a node prints once it listens: its address, and commands that work with its agents and model.
struct Banner {
    let text: String

    init(_ configuration: ServeConfiguration, _ node: Node, _ environment: [String: String]) {
        let scheme = node.certificate == nil ? "http" : "https"
        func url(_ host: String) -> String { "\(scheme)://\(host.contains(":") ? "[\(host)]" : host):\(node.port)" }
        let kinds = node.kinds.isEmpty ? "none" : node.kinds.joined(separator: ", ")
        var lines = ["parley: serving \(url(configuration.host)) from \(configuration.dataFolder); agents: \(kinds)"]
        let host = Banner.host(configuration.host, node.certificate)
        let address = url(host)
        var rows = [("Console", "\(address)/")]
        if let certificate = node.certificate, !certificate.covers(host) {
            let names = certificate.names.prefix(5).joined(separator: ", ")
            rows.append(("Names", "the certificate is for \(names.isEmpty ? "no host" : names), not for \(host)"))
        }
        if address != "http://127.0.0.1:4437" { rows.append(("Commands", "export PARLEY_URL=\(address)")) }
        let isUnknown = node.certificate?.isSelfSigned == true && (environment["PARLEY_CA_FILE"] ?? "").isEmpty
        if isUnknown, let file = configuration.tlsCertificate { rows.append(("", "export PARLEY_CA_FILE=\(Banner.quoted(file))")) }
        if !configuration.keys.isEmpty { rows.append(("", "export PARLEY_TOKEN=<a key or token>")) }
        var curl = isUnknown ? "--cacert \(Banner.quoted(configuration.tlsCertificate ?? "")) " : ""
        if !configuration.keys.isEmpty { curl += "-H \"Authorization: Bearer $PARLEY_TOKEN\" " }
        rows += Banner.unusable(node) + Banner.prompts(node, address, curl: curl)
        if let files = Banner.reloaded(configuration, node) { rows.append(("Reload", "kill -HUP \(getpid()) reads \(files) again")) }
        rows.append(("Stop", "Ctrl-C, or kill -9 \(getpid()) in the middle of an answer: after the next start it continues"))
        lines += [""] + rows.map { name, value in "  " + name + String(repeating: " ", count: 11 - name.count) + value } + [""]
        text = lines.joined(separator: "\n")
    }

    /// A path as it is typed in a shell.
    private static func quoted(_ path: String) -> String {
        let isPlain = path.utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) || "/._-".utf8.contains(byte)
        }
        return isPlain ? path : "'\(path.replacing("'", with: "'\\''"))'"
    }

    /// The files that SIGHUP reads again; `nil`: none.
    private static func reloaded(_ configuration: ServeConfiguration, _ node: Node) -> String? {
        var files: [String] = []
        if let folder = node.agentsFolder { files.append("the agent files in \(folder)") }
        if configuration.hasKeyFiles { files.append("the key file") }
        if node.certificate != nil { files.append("the certificate") }
        guard let last = files.popLast() else { return nil }
        return files.isEmpty ? last : files.joined(separator: ", ") + " and \(last)"
    }

    /// A host to connect to, by a name that the certificate has if it has one.
    private static func host(_ listening: String, _ certificate: TLSIdentity?) -> String {
        // An address that means every address is none to connect to.
        let host = ["0.0.0.0": "127.0.0.1", "::": "::1"][listening] ?? listening
        guard let certificate else { return host }
        let isHere = ["127.0.0.1", "::1"].contains(host)
        let names = [host] + (isHere ? ["localhost"] : []) + certificate.names.filter { !$0.contains("*") }
        return names.first { certificate.covers($0) } ?? host
    }

    /// Kinds whose turns fail because their model is not configured, and what is missing.
    private static func unusable(_ node: Node) -> [(String, String)] {
        let kinds = node.declaredKinds.filter { $0.problem != nil }
        guard !kinds.isEmpty else { return [] }
        let names = kinds.map(\.file.kind).joined(separator: ", ")
        let isUnset = kinds.contains { $0.problem!.contains("PARLEY_MODEL is not set") }
        let remedy = isUnset ? "set PARLEY_MODEL, e.g. PARLEY_MODEL=scripted, and start again" : "see below"
        return [("No model", "turns of \(names) will fail: \(remedy)")] + node.modelProblems.map { ("", $0.replacing("\n", with: "; ")) }
    }

    /// - Parameter curl: The options that curl needs.
    private static func prompts(_ node: Node, _ address: String, curl: String) -> [(String, String)] {
        let declared = node.declaredKinds.filter { $0.problem == nil }
        guard let talker = declared.first(where: { $0.file.kind == "assistant" }) ?? declared.first else {
            let unusable = node.declaredKinds.map(\.file.kind)
            return node.kinds.first { !unusable.contains($0) }.map { kind in
                let input = node.takesText(kind) ? "\"Hello\"" : "--data '{…}'"
                return [("Talk to it", "\(program) run \(kind)/me \(input)\(place)"), ("Follow it", "\(program) tail \(kind)/me")]
            } ?? []
        }
        let agent = "\(talker.file.kind)/me"
        var rows = [
            ("Talk to it", "\(program) run \(agent) \"Tell me about the sea.\""), ("Follow it", "\(program) tail \(agent)"),
            (
                "With curl",
                "curl -N \(curl)'\(address)/v1/stream/agents/\(agent)?offset=-1&live=sse&view=settled'"
            ),
        ]
        // The scripted model calls a tool when told to; what another model makes of the same request is unknown.
        if let writer = declared.first(where: { $0.model.hasPrefix("scripted:") && $0.file.tools.contains("write_file") }) {
            let name = "\(writer.file.kind)/me"
            rows.append(("A tool", "\(program) run \(name) 'call: write_file {\"path\": \"sea.md\", \"text\": \"The sea is deep.\"}'"))
            rows.append(("Approve it", "\(program) approve \(name)"))
        }
        return rows
    }

    /// As it was called, if this is the program; else where the shell finds it, or the link in the clone.
    private static var program: String { isProgram ? called : isInstalled ? "parley" : "./parley" }

    /// A comment that says where to run it.
    private static var place: String { isProgram || isInstalled ? "" : "   # in the clone of Parley" }

    private static var called: String { CommandLine.arguments.first ?? "" }
    private static var isProgram: Bool { called.split(separator: "/").last == "parley" }
    private static var isInstalled: Bool {
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        return path.split(separator: ":").contains { access("\($0)/parley", X_OK) == 0 }
    }
}
