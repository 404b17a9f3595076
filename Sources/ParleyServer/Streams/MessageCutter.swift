internal import ParleyHTTP
internal import ParleySystem

/// Cuts the body of a JSON append into messages: the elements of an array, one level deep, or the one value it is.
enum MessageCutter {
    /// More would hold up the one writer, and so all clients: this many take it about 50 ms.
    static let messagesMax = 100_000

    /// - Returns: The range of each message; none for `[]`.
    /// - Throws: 400 `invalid_json` naming the byte; 413 `too_many_messages`.
    static func cut(_ body: Bytes) throws(Problem) -> [Range<Int>] {
        var messages: [Range<Int>] = []
        var isTooMany = false
        var scanner = JSONScanner(body)
        do throws(JSONError) {
            try scanner.requireUTF8()
            if scanner.next(is: "[") {
                try scanner.elements { (scanner) throws(JSONError) in
                    isTooMany = messages.count == messagesMax
                    // Not read any further, to bound its cost.
                    if isTooMany { throw JSONError(position: 0, problem: "") }
                    messages.append(try scanner.skip())
                }
            } else {
                messages.append(try scanner.skip())
            }
            try scanner.end()
        } catch {
            guard isTooMany else { throw .bad("invalid_json", error.description) }
            throw Problem(
                status: 413, code: "too_many_messages",
                detail: "the body has more than \(messagesMax) messages. Send it in several requests.")
        }
        return messages
    }
}
