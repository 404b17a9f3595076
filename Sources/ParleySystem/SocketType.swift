internal import Glibc

/// Types of sockets as `socket(2)` takes them.
///
/// Here, because the C enumeration belongs to whichever C module a compilation meets first: a file beside others that import libcurl may not see it.
package enum SocketType {
    package static let stream = Int32(SOCK_STREAM.rawValue)
    package static let closesOnExec = Int32(SOCK_CLOEXEC.rawValue)
    package static let doesNotBlock = Int32(SOCK_NONBLOCK.rawValue)
}
