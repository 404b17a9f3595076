internal import Glibc

/// A text as a key: the same when its bytes are.
///
/// Swift takes two strings for equal when they are canonically equivalent in Unicode (`é` is one scalar or two). Names and ids are bytes on the wire
/// and in the log, so they must be compared as bytes in memory too. Cost: as that of a string.
package struct TextKey: Hashable, Comparable, Sendable {
    package let text: String

    package init(_ text: String) { self.text = text }

    package static func == (a: TextKey, b: TextKey) -> Bool { a.text.hasSameBytes(as: b.text) }

    package static func < (a: TextKey, b: TextKey) -> Bool { a.text.utf8.lexicographicallyPrecedes(b.text.utf8) }

    package func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }
}

extension String {
    package func hasSameBytes(as other: String) -> Bool {
        var (a, b) = (self, other)
        guard a.utf8.count == b.utf8.count else { return false }
        return a.withUTF8 { a in b.withUTF8 { b in a.isEmpty || memcmp(a.baseAddress!, b.baseAddress!, a.count) == 0 } }
    }
}

extension Dictionary where Key == TextKey {
    package subscript(text: String) -> Value? {
        get { self[TextKey(text)] }
        _modify { yield &self[TextKey(text)] }
    }

    package subscript(text: String, default value: @autoclosure () -> Value) -> Value {
        get { self[TextKey(text), default: value()] }
        _modify { yield &self[TextKey(text), default: value()] }
    }
}

extension Set where Element == TextKey {
    package mutating func insert(_ text: String) { insert(TextKey(text)) }
    package mutating func remove(_ text: String) { remove(TextKey(text)) }
    package func contains(_ text: String) -> Bool { contains(TextKey(text)) }
    /// In the order of their bytes.
    package var texts: [String] { sorted().map(\.text) }
}
