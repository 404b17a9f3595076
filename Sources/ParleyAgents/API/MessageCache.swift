internal import ParleySystem
internal import Synchronization

/// The hash of a message, computed once and shared by its copies. It is no part of the message's value.
struct MessageCache: Sendable, Equatable {
    private final class Storage: Sendable {
        let identity = Mutex<[UInt8]?>(nil)
    }

    private let storage = Storage()

    func identity(_ make: () -> [UInt8]) -> [UInt8] {
        if let known = storage.identity.withLock({ $0 }) { return known }
        let made = make()
        storage.identity.withLock { $0 = made }
        return made
    }

    static func == (a: MessageCache, b: MessageCache) -> Bool { true }
}
