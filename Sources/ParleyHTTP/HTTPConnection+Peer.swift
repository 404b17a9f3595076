internal import CUV
internal import Glibc
internal import ParleySystem

extension HTTPConnection {
    /// The numeric address of the other side; empty when it is gone. Every request asks, so the system is asked once.
    var peerAddress: String {
        if let knownPeer { return knownPeer }
        let peer = systemsPeer
        if !peer.isEmpty { knownPeer = peer }
        return peer
    }

    private var systemsPeer: String {
        var storage = sockaddr_storage()
        var length = Int32(MemoryLayout<sockaddr_storage>.size)
        var text = Bytes(repeating: 0, count: 64)
        let status = withUnsafeMutablePointer(to: &storage) { storage -> Int32 in
            let address = UnsafeMutableRawPointer(storage).assumingMemoryBound(to: sockaddr.self)
            guard uv_tcp_getpeername(handle, address, &length) == 0 else { return -1 }
            return text.withUnsafeMutableBytes { text in
                let characters = text.baseAddress!.assumingMemoryBound(to: CChar.self)
                return getnameinfo(address, socklen_t(length), characters, socklen_t(text.count), nil, 0, NI_NUMERICHOST)
            }
        }
        return status == 0 ? Bytes(text.prefix { $0 != 0 }).text : ""
    }
}

extension HTTPResponder {
    /// The numeric address of the peer; empty when it is gone. Cost: a system call the first time.
    package var peerAddress: String { connection?.peerAddress ?? "" }
}
