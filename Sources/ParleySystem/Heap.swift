internal import CJemalloc

/// The process's allocator: jemalloc, in place of the C library's from the first allocation on.
///
/// It gives an append to a channel a tenth of its time back, and memory that has become free returns to the system.
package enum Heap {
    /// Bytes that the program holds, without what the allocator keeps for itself. Cost: the counters of a few arenas are added up.
    package static var allocatedBytes: Int { read("stats.allocated") }

    /// Bytes of memory that the allocator has of the system and that are in use, as pages.
    package static var residentBytes: Int { read("stats.resident") }

    /// Returns freed memory to the system within about a quarter of a second, by a thread of the allocator's own.
    ///
    /// By default it is returned after ten seconds, and only while others allocate: the memory of a burst would stay with a process that is quiet
    /// afterwards. A thousand readers that had stopped reading cost 74 MiB, of which 30 were of that kind.
    ///
    /// A piece larger than 8 MiB has an arena of its own, from which it would be returned at once: a request of 10 MB, which needs such pieces
    /// several times, took four times as long as ten of 1 MB, most of it in the kernel.
    package static func givesBackSoon() {
        write("arenas.dirty_decay_ms", decayMilliseconds)  // For arenas that are still to come.
        dallocx(mallocx(largeBytes, 0), 0)  // Makes the arena of large pieces. The compiler would leave out malloc and free.
        for arena in 0..<read("arenas.narenas", UInt32(0)) where read("arena.\(arena).initialized", false) {
            write("arena.\(arena).dirty_decay_ms", decayMilliseconds)
            write("arena.\(arena).oversize_threshold", Int.max)
        }
        write("max_background_threads", 1)
        write("background_thread", true)
    }

    /// A second instead is 15 MB more at the peak of forty answers of 4 MB each, and a fifth less processor time for requests of 10 MB that come
    /// at longer intervals than this; without intervals there is no difference.
    private static let decayMilliseconds = 250
    /// Enough to be large for the allocator.
    private static let largeBytes = 16 << 20

    /// The allocator's value under that name; `absent` when it knows none of this type.
    static func read<Value: BitwiseCopyable>(_ name: String, _ absent: Value = 0) -> Value {
        // The statistics are those of the last epoch: this begins a new one.
        var epoch: UInt64 = 1
        mallctl("epoch", nil, nil, &epoch, MemoryLayout<UInt64>.size)
        var (value, size) = (absent, MemoryLayout<Value>.size)
        return mallctl(name, &value, &size, nil, 0) == 0 ? value : absent
    }

    private static func write<Value: BitwiseCopyable>(_ name: String, _ value: Value) {
        var value = value
        let status = mallctl(name, nil, nil, &value, MemoryLayout<Value>.size)
        if status != 0 { Diagnostics.log(.warning, "the allocator does not take a setting", ["name": name, "status": "\(status)"]) }
    }
}
