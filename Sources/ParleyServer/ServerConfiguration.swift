package import ParleyHTTP

/// How a server listens, which clients it answers, and its bounds.
package struct ServerConfiguration: Sendable {
    /// Address, port and the bounds of HTTP itself.
    package var http = HTTPServerConfiguration()
    /// Host names besides loopback that requests may be addressed to; `*` for any.
    package var allowedHosts: Set<String> = []
    /// Origins besides its own, such as `https://app.example.com`, whose pages may use this server; `*` for any.
    package var allowedOrigins: Set<String> = []
    /// The folder whose files need no key; `nil`: none.
    package var publicFolder: PublicFolder?
    /// The keys and their rights; without keys, every client has all rights.
    package var keys = KeyRing()
    /// The sender of every entry while there are no keys: the `by` of entries.
    package var principal = "anonymous"
    /// Requests a second that each sender may make: each key, holder of a token, or address without either; `nil`: any.
    package var rate: Double?
    /// Loops, each with a thread; by default one a core.
    package var loopCount: Int?

    /// How long a long-poll waits for something new.
    package var longPollTimeout = Duration.seconds(15)
    /// How often a quiet stream of events gets a comment.
    package var heartbeatInterval = Duration.seconds(15)
    /// How long a stream of events may last, so that connections are spread again and caches can collapse them; clients resume.
    package var streamLifetime = Duration.seconds(60)
    /// Live readers of one loop; more are answered 503.
    package var readersPerLoopMax = 10_000
    /// Live readers of one account on all loops together; more are answered 429 `too_many_readers`. `nil`: half of all, and 64 at least.
    package var readersPerAccountMax: Int?
    /// The size at which an answer of a catch-up read ends: after the entry that passes it.
    package var pageBytes = 256 << 10
    /// A stream of events with more than this unsent waits until the peer has taken it.
    package var unsentBytesMax = 16 << 10
    /// The same for a socket, which is many readers.
    package var socketUnsentBytesMax = 256 << 10
    /// A longer message closes a socket with 1009.
    package var socketMessageBytesMax = 1 << 20
    /// Channels that one socket follows, those of its trees included; more are refused with `too_many_channels`.
    package var socketChannelsMax = 1_024
    /// How long a socket may be quiet before it is pinged; after twice as long again it is closed.
    package var socketPingInterval = Duration.seconds(20)
    /// How long a socket may last. It ends by telling where to resume, so that connections are spread again.
    package var socketLifetime = Duration.seconds(600)
    /// Appends and look-ups of one socket that are in flight before its messages wait in the connection.
    package var socketPendingMax = 64
    /// Ephemeral events that one socket may send a second, and twice as many at once; more are refused with `rate_limited`.
    package var ephemeralPerSecond = 20
    /// Bytes of answers that clients have not taken, of all together; more wait for room for a while, and are answered 503 `overloaded` then.
    package var answerBytesMax = 64 << 20
    /// Reads that wait for the log; more are answered 503.
    package var queuedReadsMax = 20_000

    package init() {
        http.port = 4_437
    }

    /// Periodic work for readers is due no more often than this.
    var shortestInterval: Duration { min(min(heartbeatInterval, streamLifetime), min(socketPingInterval, socketLifetime)) }
}
