package import ParleySystem

extension Bytes {
    /// The end of the range of all keys that begin with these bytes: what comes next among the keys of this length.
    ///
    /// Not for bytes that are all `0xFF`, behind which there is no key of the same length. No key begins so, because a partition's number does not.
    package var endOfPrefix: Bytes {
        var end = self
        for index in end.indices.reversed() {
            end[index] &+= 1
            if end[index] != 0 { break }
        }
        return end
    }
}
