/// A value behind one reference: it is copied only when it is changed while it is shared, so that passing on one of many parts costs no more than
/// passing on a number.
struct Boxed<Value> {
    private final class Box {
        var value: Value

        init(_ value: Value) { self.value = value }
    }

    private var box: Box

    init(_ value: Value) { box = Box(value) }

    var value: Value {
        _read { yield box.value }
        _modify {
            if !isKnownUniquelyReferenced(&box) { box = Box(box.value) }
            yield &box.value
        }
    }
}

extension Boxed: @unchecked Sendable where Value: Sendable {}  // Guard: a box that is shared is not changed.
