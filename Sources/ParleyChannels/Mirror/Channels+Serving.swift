internal import ParleyLog
internal import ParleySystem

extension Channels {
    /// Returns the channel of that name for a reader; `nil`: there is none. Cost: as ``locate(_:)``.
    ///
    /// - Parameter id: The channel that the owner of the name's home has found; `nil`: this node is asked as that.
    /// - Throws: `agent_deleted` and `channel_gone` when it was deleted and its name is kept; `partition_unavailable` when this node does not own the
    ///   partition that is asked; ``ChannelError/elsewhere(_:_:)``; ``ChannelError/changed(_:)`` when the channel with that id is not there any more.
    package func readable(_ name: String, at id: ChannelID? = nil) throws(ChannelError) -> Channel? {
        let (location, isDeleted): (Location, Bool)
        do throws(LogError) {
            if let id { location = try find(name, at: id).map { .here($0) } ?? .nowhere } else { location = try locate(name) }
            isDeleted = if case .nowhere = location, id == nil { try self.isDeleted(name) } else { false }
        } catch { throw ChannelError(error) }
        switch location {
        case .here(let channel) where channel.isSoftDeleted: throw .gone(name)
        case .here(let channel): return channel
        case .at(let id): throw .elsewhere(name, id)
        case .nowhere where isDeleted: throw .deleted(name)
        case .nowhere where id != nil: throw .changed(name)
        case .nowhere: return nil
        }
    }
}

/// What the owner of a channel does for a node that follows. All but ``touch(_:)`` may block on the disk: not for event loops.
extension Channels {
    /// Describes the channel of that name to another node; `nil`: there is none. Throws as ``readable(_:at:)``.
    package func describe(_ name: String, at id: ChannelID? = nil) throws(ChannelError) -> ChannelDescription? {
        guard let channel = try readable(name, at: id) else { return nil }
        return ChannelDescription(
            reference: ChannelReference(name: name, id: channel.id), contentType: channel.contentType, isAgent: channel.isAgent,
            end: channel.end, state: channel.update(after: .max).state)
    }

    /// Reads a page for another node; `nil`: the channel was deleted.
    package func page(_ request: PageRequest) throws(ChannelError) -> Page? {
        guard let channel = try served(request.channel) else { return nil }
        do throws(ChannelError) {
            return try channel.page(after: request.after, view: request.view, bytesMax: request.bytesMax, in: self)
        } catch where error.isOfRemoval {
            return nil
        }
    }

    /// Begins to serve a follow.
    ///
    /// - Parameter whenReady: Called when ``ChannelFeed/next()`` has an event again after it had none. Called on the writer thread; must only take
    ///   note.
    package func feed(_ request: FollowRequest, whenReady: @escaping @Sendable () -> Void) -> ChannelFeed {
        do throws(ChannelError) {
            while let channel = try served(request.channel) {
                let feed = ChannelFeed(channel, after: request.after, whenReady: whenReady)
                // Evicted since it was found: there is another object by now.
                if channel.attach(feed) { return feed }
            }
            return ChannelFeed(last: .deleted)
        } catch {
            return ChannelFeed(last: .left)
        }
    }

    /// Renews a sliding TTL for a reader of another node. Only of a channel in memory, which it is while another node follows it.
    package func touch(_ reference: ChannelReference) {
        guard let channel = resident(reference.name, at: reference.id) else { return }
        touched(channel)
    }

    private func served(_ reference: ChannelReference) throws(ChannelError) -> Channel? {
        do throws(LogError) {
            guard let channel = try find(reference.name, at: reference.id), !channel.isSoftDeleted else { return nil }
            return channel
        } catch { throw ChannelError(error) }
    }
}
