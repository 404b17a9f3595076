internal import Glibc
internal import ParleySystem

/// Decides to which addresses an outgoing call may connect.
///
/// It is asked about the address that is really connected to, once the name has been resolved. So a name that resolves to an address inside is
/// refused, and so is one that resolves to another address the second time (DNS rebinding), nor an unusual spelling of a number.
package enum AddressPolicy: Sendable {
    /// Any address, and proxies as the environment names them.
    case any
    /// Addresses of the public Internet only, without a proxy, which would resolve and connect for itself.
    ///
    /// For addresses that others have a say in: services on this machine, in its network or at the cloud's metadata address trust all who can reach
    /// them.
    case publicOnly
    /// This machine only, without a proxy: for receivers under development.
    case loopbackOnly

    package func permits(_ address: IPAddress) -> Bool {
        switch self {
        case .any: true
        case .publicOnly: address.isPublic
        case .loopbackOnly: address.isLoopback
        }
    }
}

/// An address of the Internet protocol, version 4 or 6.
package enum IPAddress: Sendable, Hashable {
    case v4(UInt32)
    case v6(UInt128)

    /// 4 or 16 bytes in network order.
    init?(bytes: some Collection<UInt8>) {
        switch bytes.count {
        case 4: self = .v4(bytes.reduce(0) { $0 << 8 | UInt32($1) })
        case 16: self = .v6(bytes.reduce(0) { $0 << 8 | UInt128($1) })
        default: return nil
        }
    }

    /// The usual notation of an address, and only that: `192.0.2.1`, `2001:db8::1`.
    package init?(_ text: some StringProtocol) {
        let text = String(text)
        // C would see an address that ends there.
        guard !text.utf8.contains(0) else { return nil }
        var bytes = Bytes(repeating: 0, count: 16)
        if inet_pton(AF_INET, text, &bytes) == 1 {
            self.init(bytes: bytes[..<4])
        } else if inet_pton(AF_INET6, text, &bytes) == 1 {
            self.init(bytes: bytes)
        } else {
            return nil
        }
    }

    /// An address in any form that resolvers take for a number, which may be decimal, octal, hexadecimal or short: `127.1`, `0x7f000001`.
    package init?(numericHost text: some StringProtocol) {
        guard !text.utf8.contains(0) else { return nil }
        var hints = addrinfo()
        hints.ai_flags = AI_NUMERICHOST
        hints.ai_socktype = SocketType.stream
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(String(text), nil, &hints, &found) == 0, let raw = found?.pointee.ai_addr else { return nil }
        defer { freeaddrinfo(found) }
        let bytes = UnsafeRawBufferPointer(start: raw, count: Int(found!.pointee.ai_addrlen))
        switch Int32(raw.pointee.sa_family) {
        case AF_INET: self.init(bytes: bytes[4..<8])
        case AF_INET6: self.init(bytes: bytes[8..<24])
        default: return nil
        }
    }

    /// Whether it belongs to the public Internet: none of the special-purpose addresses of RFC 6890 and its registries, nor a form of IPv6 that
    /// represents one of them.
    package var isPublic: Bool {
        switch self {
        case .v4: return !IPAddress.special.contains { $0.contains(self) }
        case .v6(let bits):
            // Mapped (::ffff:0:0/96) and NAT64 (RFC 6052): the network connects to what the last 32 bits say.
            if IPAddress.embedding.contains(where: { $0.contains(self) }) { return IPAddress.v4(UInt32(truncatingIfNeeded: bits)).isPublic }
            return IPAddress.globalUnicast.contains(self) && !IPAddress.special.contains { $0.contains(self) }
        }
    }

    package var isLoopback: Bool {
        switch self {
        case .v4(let bits): bits >> 24 == 127
        case .v6(let bits): bits == 1
        }
    }

    private static let embedding = [Network("::ffff:0:0", 96), Network("64:ff9b::", 96)]

    /// The addresses that IANA assigns; all other IPv6 is loopback, private, link-local, multicast or not in use.
    private static let globalUnicast = Network("2000::", 3)

    private static let special = [
        Network("0.0.0.0", 8),  // "this network": Linux connects 0.0.0.0 to itself
        Network("10.0.0.0", 8), Network("172.16.0.0", 12), Network("192.168.0.0", 16),  // private (RFC 1918)
        Network("100.64.0.0", 10),  // behind a provider's NAT (RFC 6598); some clouds have their metadata here
        Network("127.0.0.0", 8),  // loopback
        Network("169.254.0.0", 16),  // link-local, and the metadata of most clouds
        Network("192.0.0.0", 24),  // protocol assignments
        Network("192.0.2.0", 24), Network("198.51.100.0", 24), Network("203.0.113.0", 24),  // documentation
        Network("192.88.99.0", 24),  // 6to4 relays, withdrawn
        Network("198.18.0.0", 15),  // benchmarks of networks
        Network("224.0.0.0", 4),  // multicast
        Network("240.0.0.0", 4),  // reserved, and broadcast
        Network("2001::", 23),  // protocol assignments, with Teredo, which carries an IPv4 address
        Network("2001:db8::", 32), Network("3fff::", 20),  // documentation
        Network("2002::", 16),  // 6to4, which carries an IPv4 address
    ]

    private struct Network: Sendable {
        let first: IPAddress
        let prefix: Int

        init(_ first: String, _ prefix: Int) {
            self.first = IPAddress(first)!  // Written above.
            self.prefix = prefix
        }

        func contains(_ address: IPAddress) -> Bool {
            switch (first, address) {
            case (.v4(let first), .v4(let bits)): (first ^ bits) >> UInt32(32 - prefix) == 0
            case (.v6(let first), .v6(let bits)): (first ^ bits) >> UInt128(128 - prefix) == 0
            default: false
            }
        }
    }
}

extension IPAddress: CustomStringConvertible {
    package var description: String {
        var (family, bytes) = (AF_INET6, Bytes())
        switch self {
        case .v4(let bits):
            bytes.append(bigEndian: bits)
            family = AF_INET
        case .v6(let bits): bytes.append(bigEndian: bits)
        }
        var text = [CChar](repeating: 0, count: 64)
        return inet_ntop(family, bytes, &text, socklen_t(text.count)).map { String(cString: $0) } ?? ""
    }
}
