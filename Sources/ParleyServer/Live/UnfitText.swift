internal import ParleyChannels
internal import Synchronization

/// Where in channels of text something stands that has not become text for a while, so that readers who come there get it in Base64.
///
/// It need not remember all: a reader who comes to a place that was forgotten waits once more.
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
