import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization

/// Two nodes in one simulated world: one owns the channels, the other mirrors them over a link.
final class MirrorBench: Sendable {
    let owner: Bench
    let link: LoopbackLink
    let mirrors: ChannelMirrors
    /// Of the node that mirrors; it owns nothing.
    let channels: Channels

    init(delay: Duration = .zero) {
        let owner = Bench()
        let link = LoopbackLink(to: owner.channels, world: owner.world) { delay }
        (self.owner, self.link) = (owner, link)
        mirrors = ChannelMirrors { _ in link }
        channels = Bench(partitions: PartitionSet(), world: owner.world).channels
    }

    var world: SimulatedWorld { owner.world }

    func mirror(_ name: String = "a") throws -> ChannelMirror {
        guard let mirror = try mirrors.find(name) else { throw ChannelError.notFound(name) }
        return mirror
    }

    /// What a reader that stands at `offset` gets without reading a page.
    func recent(_ tail: any Tail, after offset: UInt64) -> [String]? {
        guard case .chunks(let chunks, _) = tail.tail(after: offset) else { return nil }
        return chunks.map { $0.page(of: tail, view: .raw).body.text }
    }
}

/// Follows a channel by its name as a live reader does: recent commits from memory, pages when it is behind, and a new look when the tail leaves.
final class TailFollower: ChannelWatcher, Sendable {
    enum Ending { case closed, deleted }

    private struct State {
        var tail: (any Tail)?
        var offset: UInt64 = 0
        var entries: [JSON] = []
        var pages = 0
        var lefts = 0
        var isScheduled = false
        var ending: Ending?
    }

    private let name: String
    private let mirrors: ChannelMirrors
    private let channels: Channels
    private let world: SimulatedWorld
    /// How late it reads, in milliseconds at most.
    private let slowness: UInt64
    private let state = Mutex(State())

    init(_ name: String, _ mirrors: ChannelMirrors, _ channels: Channels, slowness: UInt64) {
        (self.name, self.mirrors, self.channels, self.slowness) = (name, mirrors, channels, slowness)
        world = channels.world as! SimulatedWorld
    }

    var entries: [JSON] { state.withLock { $0.entries } }
    var ending: Ending? { state.withLock { $0.ending } }
    var pages: Int { state.withLock { $0.pages } }
    var lefts: Int { state.withLock { $0.lefts } }

    func begin() { look(after: world.random() % (slowness + 1)) }

    func channelChanged(_ tail: any Tail) { look(after: world.random() % (slowness + 1)) }

    func channelLeft(_ tail: any Tail) {
        state.withLock { state in
            state.tail = nil
            state.lefts += 1
        }
        look(after: 0)
    }

    private func look(after milliseconds: UInt64) {
        let isFirst = state.withLock { state in
            defer { state.isScheduled = true }
            return !state.isScheduled && state.ending == nil
        }
        guard isFirst else { return }
        world.schedule(at: world.now.advanced(by: .milliseconds(Int64(milliseconds)))) {
            self.state.withLock { $0.isScheduled = false }
            do throws(ChannelError) {
                while let tail = try self.attached(), try self.step(tail) {}
            } catch {
                self.look(after: 5)  // Out of reach, for now.
            }
        }
    }

    private func attached() throws(ChannelError) -> (any Tail)? {
        if let tail = state.withLock({ $0.tail }) { return tail }
        while let found = try mirrors.find(name) {
            guard found.attach(self) else { continue }
            state.withLock { $0.tail = found }
            return found
        }
        state.withLock { $0.ending = .deleted }
        return nil
    }

    /// - Returns: Whether there may be more.
    private func step(_ tail: any Tail) throws(ChannelError) -> Bool {
        let offset = state.withLock { $0.offset }
        switch tail.tail(after: offset) {
        case .upToDate(isEnded: false): return false
        case .upToDate(isEnded: true):
            tail.detach(self)
            state.withLock { ($0.tail, $0.ending) = (nil, tail.tail.isDeleted ? .deleted : .closed) }
            return false
        case .chunks(let chunks, _):
            for chunk in chunks { take(chunk.page(of: tail, view: .raw)) }
            return true
        case .behind:
            let bytesMax = world.random() % 8 == 0 ? 1 : Int(world.random() % 100_000)
            take(try tail.page(after: offset, view: .raw, bytesMax: bytesMax, in: channels))
            state.withLock { $0.pages += 1 }
            return true
        }
    }

    private func take(_ page: Page) {
        let entries = (try? JSON.parse(page.body))?.array ?? []
        state.withLock { state in
            state.entries += entries
            state.offset = page.next
        }
    }
}
