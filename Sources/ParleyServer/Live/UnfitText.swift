internal import ParleyChannels
internal import Synchronization

/// The places in channels of text where something has not become text for a while, so that readers that come there get it in Base64.
///
/// It need not remember all: a reader that comes to a forgotten place waits once more.
final class UnfitText: Sendable {
    private let places = Mutex<[ChannelID: UInt64]>([:])
    private static let countMax = 1_024

    func add(_ channel: any Tail, after offset: UInt64) {
        places.withLock { places in
            if places.count >= UnfitText.countMax { places.removeAll() }
            places[channel.id] = offset
        }
    }

    func contains(_ channel: any Tail, after offset: UInt64) -> Bool { places.withLock { $0[channel.id] == offset } }
}
