internal import ParleyLog
internal import ParleySystem

extension Channels {
    /// Returns the channel of that name for a reader; `nil`: there is none. Cost: as ``find(_:)``.
    ///
    /// - Throws: `agent_deleted` and `channel_gone` when it was deleted and its name is kept; `partition_unavailable` when this node does not own it.
    package func readable(_ name: String) throws(ChannelError) -> Channel? {
        let (channel, isDeleted): (Channel?, Bool)
        do throws(LogError) {
            channel = try find(name)
            isDeleted = channel == nil ? try self.isDeleted(name) : false
        } catch { throw ChannelError(error) }
        if isDeleted { throw .deleted(name) }
        if channel?.isSoftDeleted == true { throw .gone(name) }
        return channel
    }
}

/// What the owner of a channel does for a node that follows. All but ``touch(_:)`` may block on the disk: not for event loops.
extension Channels {
    /// Describes the channel of that name to another node; `nil`: there is none. Throws as ``readable(_:)``.
    package func describe(_ name: String) throws(ChannelError) -> ChannelDescription? {
        guard let channel = try readable(name) else { return nil }
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
        guard let channel = resident(reference.name), channel.id == reference.id else { return }
        touched(channel)
    }

    private func served(_ reference: ChannelReference) throws(ChannelError) -> Channel? {
        do throws(LogError) {
            guard let channel = try find(reference.name), channel.id == reference.id, !channel.isSoftDeleted else { return nil }
            return channel
        } catch { throw ChannelError(error) }
    }
}
