internal import Glibc

// Constants of `<sys/socket.h>` that are C enumerations. They are here, because such an enumeration belongs to whichever C module a
// compilation meets first: a file beside others that import libcurl may not see it, and whether it does changes with the settings of a build.

/// Types of sockets, as `socket(2)` takes them.
package enum SocketType {
    package static let stream = Int32(SOCK_STREAM.rawValue)
    package static let closesOnExec = Int32(SOCK_CLOEXEC.rawValue)
    package static let doesNotBlock = Int32(SOCK_NONBLOCK.rawValue)
}

/// Flags of one call, as `send(2)` and `recv(2)` take them.
package enum SocketFlag {
    package static let peeks = Int32(MSG_PEEK)
    package static let doesNotBlock = Int32(MSG_DONTWAIT)
    package static let raisesNoSignal = Int32(MSG_NOSIGNAL)
}

/// The direction that `shutdown(2)` ends.
package enum SocketDirection {
    package static let sending = Int32(SHUT_WR)
    package static let both = Int32(SHUT_RDWR)
}
