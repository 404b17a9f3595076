internal import ParleyHTTP
internal import ParleySystem

/// Cuts the body of a JSON append into messages: the elements of an array, one level deep, or the one value it is.
enum MessageCutter {
    /// - Returns: The bytes of each message as they came; none for `[]`.
    /// - Throws: 400 `invalid_json` naming the byte.
    static func cut(_ body: Bytes) throws(Problem) -> [Bytes] {
        var messages: [Bytes] = []
        var scanner = JSONScanner(body)
        do throws(JSONError) {
            try scanner.requireUTF8()
            if scanner.next(is: "[") {
                try scanner.elements { (scanner) throws(JSONError) in messages.append(Bytes(body[try scanner.skip()])) }
            } else {
                messages.append(Bytes(body[try scanner.skip()]))
            }
            try scanner.end()
        } catch {
            throw .bad("invalid_json", error.description)
        }
        return messages
    }
}
