internal import Glibc

/// Nanoseconds of the monotonic clock: the one clock of every measurement.
typealias Nanoseconds = UInt64

enum Clock {
    static var now: Nanoseconds { read(CLOCK_MONOTONIC) }

    /// Processor time of this program.
    static var ownProcessor: Nanoseconds { read(CLOCK_PROCESS_CPUTIME_ID) }

    private static func read(_ clock: clockid_t) -> Nanoseconds {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}

extension Double {
    var nanoseconds: Nanoseconds { UInt64(self * 1e9) }
}
