internal import Glibc

/// Waiting in tests of programs and sockets, which have no world of their own.
package enum RealTime {
    /// Asks again until it is so: the only way to wait for what a process, a socket or the kernel does not announce.
    ///
    /// - Throws: ``Missed`` with `what` after `timeout`, and what `isMet` throws.
    package static func until(_ what: String, timeout: Duration = .seconds(10), _ isMet: () throws -> Bool) throws {
        let deadline = ContinuousClock.now + timeout
        while try !isMet() {
            guard ContinuousClock.now < deadline else { throw Missed("waited \(timeout) for \(what)") }
            pass(.milliseconds(5))
        }
    }

    /// Lets time pass, for tests of a limit in seconds or of a process that is killed at any moment. To wait for something, use ``until(_:timeout:_:)``.
    package static func pass(_ duration: Duration) {
        let (seconds, attoseconds) = duration.components
        var rest = timespec(tv_sec: Int(seconds), tv_nsec: Int(attoseconds / 1_000_000_000))
        var time = rest
        while nanosleep(&time, &rest) != 0 && errno == EINTR { time = rest }
    }

    /// Lets a time pass that a seed decides.
    package static func pass(_ milliseconds: ClosedRange<Double>, _ random: inout some RandomNumberGenerator) {
        pass(.seconds(Double.random(in: milliseconds, using: &random) / 1_000))
    }
}
