package import ParleySystem

/// Frames server-sent events (HTML standard, section 9.2).
package enum SSEWriter {
    /// A comment: keeps proxies and clients from giving up on a quiet connection.
    package static let heartbeat = Bytes(":\n\n".utf8)

    /// Appends an event to `output`.
    ///
    /// Every line of `data` becomes a line of its own, whether it ends in CR, LF or CRLF, so that no payload can end the event or
    /// start a field. Line ends inside `name` and `id` are dropped.
    package static func event(name: String? = nil, data: UnsafeRawBufferPointer, id: String? = nil, to output: inout Bytes) {
        if let name { field("event: ", name, to: &output) }
        if let id { field("id: ", id, to: &output) }
        var start = 0
        repeat {
            let end = data[start...].firstIndex { $0 == 0x0a || $0 == 0x0d } ?? data.count
            output.append(contentsOf: "data: ".utf8)
            output.append(contentsOf: UnsafeRawBufferPointer(rebasing: data[start..<end]))
            output.append(0x0a)
            start = end
            if end < data.count {
                start += data[end] == 0x0d && end + 1 < data.count && data[end + 1] == 0x0a ? 2 : 1
            } else {
                break
            }
        } while true
        output.append(0x0a)
    }

    package static func event(name: String? = nil, data: Bytes, id: String? = nil, to output: inout Bytes) {
        data.withUnsafeBytes { event(name: name, data: $0, id: id, to: &output) }
    }

    /// An event on its own.
    package static func event(name: String? = nil, data: String, id: String? = nil) -> Bytes {
        var output = Bytes()
        var data = data
        data.withUTF8 { event(name: name, data: UnsafeRawBufferPointer($0), id: id, to: &output) }
        return output
    }

    private static func field(_ prefix: StaticString, _ value: String, to output: inout Bytes) {
        prefix.withUTF8Buffer { output.append(contentsOf: $0) }
        output.append(contentsOf: value.utf8.lazy.filter { $0 != 0x0a && $0 != 0x0d && $0 != 0 })
        output.append(0x0a)
    }
}
