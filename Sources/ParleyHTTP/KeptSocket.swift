internal import Glibc
internal import ParleySystem

/// The socket of a connection that libcurl keeps for the next request.
enum KeptSocket {
    /// The most that is read away; behind that, the next request fails instead.
    private static let (pieceBytes, piecesMax) = (64 << 10, 64)

    /// Whether unread input has come on it. Its end does not count.
    static func hasInput(_ socket: Int32) -> Bool {
        var byte: UInt8 = 0
        return recv(socket, &byte, 1, SocketFlag.peeks | SocketFlag.doesNotBlock) > 0
    }

    /// Makes libcurl find the end of the connection, once nothing is left to be read.
    static func spoil(_ socket: Int32) {
        var (rest, pieces) = (Bytes(repeating: 0, count: pieceBytes), piecesMax)
        while pieces > 0, recv(socket, &rest, rest.count, SocketFlag.doesNotBlock) > 0 { pieces -= 1 }
        shutdown(socket, SocketDirection.both)
    }

    static func close(_ socket: Int32) -> Int32 { Glibc.close(socket) }
}
