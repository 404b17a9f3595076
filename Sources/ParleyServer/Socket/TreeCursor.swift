internal import ParleyChannels
internal import ParleySystem

/// How far the reader of a tree has come in each channel of it, the root first: opaque to clients, bounded, and fit for a URL.
///
///     base64url( version 1 | for each channel: varint bytes shared with the name before | varint bytes that follow | those | varint offset )
struct TreeCursor: Equatable {
    struct Place: Equatable {
        var channel: String
        var offset: UInt64
    }

    var places: [Place]

    /// The channels of one tree. Children started beyond it are not followed, and the reader is told.
    static let channelsMax = 256
    /// A longer cursor is not one of this server's.
    static let textBytesMax = 64 << 10
    private static let version: UInt8 = 1

    init(_ places: [Place]) { self.places = places }

    init?(_ text: String) {
        guard text.utf8.count <= TreeCursor.textBytesMax, let bytes = Base64.decodeURL(text), bytes.first == TreeCursor.version else {
            return nil
        }
        var index = 1
        var name = Bytes()
        var places: [Place] = []
        while index < bytes.count {
            guard let shared = TreeCursor.varint(bytes, &index), let count = TreeCursor.varint(bytes, &index), shared <= UInt64(name.count),
                count <= UInt64(bytes.count - index)
            else { return nil }
            name = Bytes(name[..<Int(shared)] + bytes[index..<index + Int(count)])
            index += Int(count)
            guard let offset = TreeCursor.varint(bytes, &index), places.count < TreeCursor.channelsMax,
                let channel = String(validating: name, as: UTF8.self)
            else { return nil }
            places.append(Place(channel: channel, offset: offset))
        }
        guard !places.isEmpty, Set(places.map(\.channel)).count == places.count else { return nil }
        self.places = places
    }

    var text: String {
        var bytes: Bytes = [TreeCursor.version]
        var before = Bytes()
        for place in places {
            let name = Bytes(place.channel.utf8)
            var shared = 0
            while shared < min(name.count, before.count), name[shared] == before[shared] { shared += 1 }
            TreeCursor.append(varint: UInt64(shared), to: &bytes)
            TreeCursor.append(varint: UInt64(name.count - shared), to: &bytes)
            bytes.append(contentsOf: name[shared...])
            TreeCursor.append(varint: place.offset, to: &bytes)
            before = name
        }
        return Base64.encodeURL(bytes)
    }

    private static func append(varint value: UInt64, to output: inout Bytes) {
        var rest = value
        while rest >= 0x80 {
            output.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        output.append(UInt8(rest))
    }

    private static func varint(_ bytes: Bytes, _ index: inout Int) -> UInt64? {
        var value: UInt64 = 0
        for shift in stride(from: 0, to: 63, by: 7) {
            guard index < bytes.count else { return nil }
            let byte = bytes[index]
            index += 1
            value |= UInt64(byte & 0x7f) << UInt64(shift)
            if byte < 0x80 { return value }
        }
        return nil
    }
}
