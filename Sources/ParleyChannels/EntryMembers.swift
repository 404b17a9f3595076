package import ParleySystem

/// The members of an entry from outside, as they stand in the log.
///
/// A member becomes a value when it is asked for: values take many times the memory of their text (`[[],[],...]` sixteen times), and most of
/// what handles an entry only passes it on.
package struct EntryMembers: Sendable {
    /// A JSON object.
    private let bytes: Bytes

    /// - Parameter members: Those of an object, without its braces, already validated.
    package init(_ members: UnsafeRawBufferPointer) {
        var bytes = Bytes()
        bytes.reserveCapacity(members.count + 2)
        bytes.append(UInt8(ascii: "{"))
        bytes.append(contentsOf: members)
        bytes.append(UInt8(ascii: "}"))
        self.bytes = bytes
    }

    /// None.
    package init() { bytes = [UInt8(ascii: "{"), UInt8(ascii: "}")] }

    /// - Parameter object: What is an object; anything else has no members.
    package init(_ object: JSON) { bytes = object.members == nil ? EntryMembers().bytes : object.bytes }

    package var byteCount: Int { bytes.count }

    /// The value of a member. Cost: a look at all of them.
    package subscript(name: String) -> JSON? { take(name) { (scanner) throws(JSONError) in try scanner.value() } }

    /// All of them as a value.
    package var json: JSON { (try? JSON.parse(stored: bytes)) ?? .null }

    /// What a message says: its text, or its data as JSON.
    package var messageText: String? { self["text"]?.string ?? dataText }

    /// `data` as JSON, as its value would be written.
    private var dataText: String? {
        let text = take("data") { (scanner) throws(JSONError) -> Bytes in
            scanner.requiresUniqueNames = true
            var output = Bytes()
            try scanner.copy(to: &output)
            return output
        }
        // In entries of earlier versions a name may come twice.
        return text?.text ?? self["data"]?.text
    }

    private func take<Value>(_ name: String, _ read: (inout JSONScanner) throws(JSONError) -> Value) -> Value? {
        var found: Value?
        var scanner = JSONScanner(bytes, depthMax: JSONScanner.storedDepthMax)
        do throws(JSONError) {
            try scanner.members { (member, scanner) throws(JSONError) in
                if member.hasSameBytes(as: name) { found = try read(&scanner) } else { try scanner.skip() }
            }
        } catch {
            return nil
        }
        return found
    }
}
