internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A request from the client of a socket, checked.
struct SocketRequest {
    enum Operation {
        case follow(channel: String, ReadRequest.Start, View)
        case unfollow
        /// - Parameter body: The JSON array of the entries, byte for byte as it came.
        case append(channel: String, body: Bytes, key: String?)
        case ephemeral(channel: String, EphemeralEvent)
        case tree(channel: String, cursor: String?, View)
    }

    /// The client's name for what it asked; `nil` only where none is needed.
    let reference: Int64?
    let operation: Operation

    private static let operations = "follow, unfollow, append, ephemeral, tree"
    private static let referenceMax: Int64 = 9_007_199_254_740_991

    /// - Throws: the problem, with the reference of the answer as far as that could be read.
    init(_ message: Bytes) throws(SocketRefusal) {
        let fields = try SocketRequest.fields(of: message)
        let reference = try SocketRequest.reference(fields["ref"], message)
        self.reference = reference
        do throws(Problem) {
            operation = try SocketRequest.operation(fields, message)
            if reference == nil, SocketRequest.needsReference(operation) {
                throw .bad("missing_field", "ref is missing; expected an integer from 0 to \(SocketRequest.referenceMax).")
            }
        } catch {
            throw SocketRefusal(reference: reference, problem: error)
        }
    }

    /// The range of each member's value.
    private static func fields(of message: Bytes) throws(SocketRefusal) -> [String: Range<Int>] {
        var (fields, repeated) = ([String: Range<Int>](), String?.none)
        var scanner = JSONScanner(message)
        do throws(JSONError) {
            try scanner.requireUTF8()
            try scanner.members { (name, scanner) throws(JSONError) in
                if fields.updateValue(try scanner.skip(), forKey: name) != nil { repeated = name }
            }
            try scanner.end()
        } catch {
            throw SocketRefusal(
                reference: nil,
                problem: .bad("invalid_json", "\(error.description). Expected one object with op, such as {\"op\":\"follow\",...}."))
        }
        // Readers of JSON differ on which one counts.
        if let repeated {
            let reference = repeated == "ref" ? nil : try reference(fields["ref"], message)
            throw SocketRefusal(
                reference: reference, problem: .bad("invalid_json", "'\(shown(repeated))' is there twice. Each member may be there once."))
        }
        return fields
    }

    private static func value(_ range: Range<Int>?, _ message: Bytes) -> JSON? {
        range.flatMap { try? JSON.parse(Bytes(message[$0])) }
    }

    private static func reference(_ range: Range<Int>?, _ message: Bytes) throws(SocketRefusal) -> Int64? {
        guard let value = value(range, message) else { return nil }
        guard case .integer(let reference) = value, (0...referenceMax).contains(reference) else {
            throw SocketRefusal(
                reference: nil, problem: .bad("invalid_ref", "ref is \(shown(value)); expected an integer from 0 to \(referenceMax)."))
        }
        return reference
    }

    private static func needsReference(_ operation: Operation) -> Bool { if case .ephemeral = operation { false } else { true } }

    private static func operation(_ fields: [String: Range<Int>], _ message: Bytes) throws(Problem) -> Operation {
        func text(_ name: String) throws(Problem) -> String? {
            guard let value = value(fields[name], message), value != .null else { return nil }
            guard case .string(let text) = value else { throw .bad("invalid_\(name)", "\(name) is \(shown(value)); expected a string.") }
            return text
        }
        func channel() throws(Problem) -> String {
            guard let channel = try text("channel") else {
                throw .bad("missing_field", "channel is missing; expected a name such as agents/assistant/me.")
            }
            return channel
        }
        func view() throws(Problem) -> View {
            guard let text = try text("view") else { return .raw }
            guard let view = View(rawValue: text) else {
                throw .bad("invalid_view", "view is '\(shown(text))'; expected raw or settled.")
            }
            return view
        }
        guard let name = try text("op") else { throw .bad("missing_field", "op is missing; expected one of \(operations).") }
        switch name {
        case "follow":
            guard let offset = try text("offset") else {
                throw .bad("missing_offset", "offset is missing; expected -1, now or an offset as it was given.")
            }
            return .follow(channel: try channel(), try ReadRequest.start(offset), try view())
        case "unfollow": return .unfollow
        case "append":
            guard let range = fields["entries"], message[range.lowerBound] == UInt8(ascii: "[") else {
                let given = value(fields["entries"], message).map { "is \($0.kindName)" } ?? "is missing"
                throw .bad("invalid_entries", "entries \(given); expected an array of entries.")
            }
            return .append(channel: try channel(), body: Bytes(message[range]), key: try key(try text("key")))
        case "ephemeral":
            return .ephemeral(channel: try channel(), try EphemeralEvent(value(fields["event"], message)))
        case "tree": return .tree(channel: try channel(), cursor: try text("cursor"), try view())
        default: throw .bad("unknown_op", "op is '\(shown(name))'; expected one of \(operations).")
        }
    }

    private static func key(_ key: String?) throws(Problem) -> String? {
        guard let key else { return nil }
        guard (1...256).contains(key.utf8.count) else {
            throw .bad("invalid_idempotency_key", "key has \(key.utf8.count) bytes; expected 1 to 256.")
        }
        return key
    }

    private static func shown(_ value: JSON) -> String {
        switch value {
        case .string(let text): "'\(shown(text))'"
        case .array, .object: value.kindName
        default: value.text
        }
    }

    /// An answer repeats only as much of a value as helps to recognise it.
    private static func shown(_ text: String) -> String { text.count > 64 ? text.prefix(64) + "…" : text }
}

/// Why a message was not done, and under which reference that is answered.
struct SocketRefusal: Error {
    let reference: Int64?
    let problem: Problem
}
