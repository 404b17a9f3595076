package import ParleyLog
package import ParleySystem

/// A value that is folded from a channel's entries for readers, such as the turns of a trace or the settled view.
///
/// A projection does no I/O: ``Channels/project(_:after:upTo:_:)`` reads the log and applies one entry at a time. A projection may apply the
/// entries to smaller projections that it contains.
package protocol Projection {
    /// The result for readers. By default the projection itself, for results that are queried.
    associatedtype Output = Self
    var output: Output { get }

    /// Whether no later entry can change the output. Reading stops then.
    var isComplete: Bool { get }

    /// Takes the next entry. Called for entries of every kind, so check the kind before anything that has to be decoded.
    mutating func apply(_ entry: LogEntry)
}

extension Projection {
    package var isComplete: Bool { false }
}

extension Projection where Output == Self {
    package var output: Self { self }
}

/// An entry while it is applied. Its frame's bytes are gone when `apply` returns.
package final class LogEntry {
    package let offset: UInt64
    package let frame: Frame
    // Decoded on first use, once for all projections that it is applied to.
    package private(set) lazy var position = frame.position
    package private(set) lazy var body = frame.body

    package init(_ offset: UInt64, _ frame: Frame) { (self.offset, self.frame) = (offset, frame) }

    package var kind: EntryKind { frame.kind }
    /// When it was committed. Only for entries of agents, which are all stamped.
    package var at: Timestamp { frame.at! }
}

extension Position {
    /// The step, whatever the attempt.
    package var ofStep: Position { Position(turn: turn, step: step) }
}

extension Channels {
    /// Applies the entries after `offset` up to `head` to a projection until it is complete, and returns its output. Skips holes.
    ///
    /// - Throws: ``LogError`` with code `data_damaged`, as ``walk(_:after:upTo:_:)``. There is no output then, not even of the entries before.
    package func project<Value: Projection>(
        _ channel: Channel, after offset: UInt64, upTo head: UInt64, _ projection: Value
    ) throws(LogError) -> Value.Output {
        var projection = projection
        try walk(channel, after: offset, upTo: head) { projection.take($0, $1) }
        return projection.output
    }

    /// Applies the entries from `head` back to the start to a projection until it is complete, and returns its output.
    package func projectBack<Value: Projection>(
        _ channel: Channel, from head: UInt64, _ projection: Value
    ) throws(LogError) -> Value.Output {
        var projection = projection
        try walkBack(channel, from: head) { projection.take($0, $1) }
        return projection.output
    }
}

extension Chunk {
    /// Applies the entries of this commit to a projection, and returns its output.
    func project<Value: Projection>(_ projection: Value) -> Value.Output {
        var projection = projection
        frames.withUnsafeBytes { _ = Frame.walk($0, first: first) { projection.take($0, $1) } }
        return projection.output
    }
}

extension Projection {
    /// - Returns: Whether to continue reading.
    fileprivate mutating func take(_ offset: UInt64, _ frame: Frame) -> Bool {
        if frame.kind != .hole { apply(LogEntry(offset, frame)) }
        return !isComplete
    }
}
