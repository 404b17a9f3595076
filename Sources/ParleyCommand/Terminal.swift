internal import FoundationEssentials
internal import Glibc
internal import ParleySystem

/// Standard output and standard error, unbuffered: all output is seen, also when the program is killed.
///
/// Both take ``TerminalText`` only, so that nothing another party wrote gets to a terminal as it is.
enum Terminal {
    static func output(_ text: TerminalText) { write(text.string, to: 1) }
    static func error(_ text: TerminalText) { write(text.string + "\n", to: 2) }

    /// Whether both go to the same place, such as a terminal or with `2>&1`: then a message beside an answer could cut one of its lines.
    static let isOneStream: Bool = {
        var (output, error) = (stat(), stat())
        guard fstat(1, &output) == 0, fstat(2, &error) == 0 else { return false }
        return output.st_dev == error.st_dev && output.st_ino == error.st_ino
    }()

    /// Whether standard output is looked at by a person: then it may be drawn.
    static var isOutputDrawn: Bool { isatty(1) == 1 }

    static func environment(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
    }

    static var allEnvironment: [String: String] { ProcessInfo.processInfo.environment }

    static var now: Timestamp { Timestamp(milliseconds: Int64(Date().timeIntervalSince1970 * 1_000)) }

    static func exit(_ status: ExitStatus) -> Never { Glibc.exit(status.rawValue) }

    private static func write(_ text: String, to descriptor: Int32) {
        var text = text
        text.withUTF8 { buffer in
            var rest = UnsafeRawBufferPointer(buffer)
            while !rest.isEmpty {
                let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
                guard count < 0 else {
                    rest = UnsafeRawBufferPointer(rebasing: rest[count...])
                    continue
                }
                switch errno {
                case EINTR: continue
                case EAGAIN: waitUntilWritable(descriptor)
                case let reason: giveUp(on: descriptor, reason)
                }
            }
        }
    }

    /// Another program that shares the terminal or the pipe may have made it one that never blocks.
    private static func waitUntilWritable(_ descriptor: Int32) {
        var wanted = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        poll(&wanted, 1, -1)
    }

    /// Ends the program, because what it says gets nowhere.
    private static func giveUp(on descriptor: Int32, _ reason: Int32) -> Never {
        guard descriptor == 1 else { Glibc.exit(ExitStatus.failed.rawValue) }
        // A reader that has gone (`parley tail | head`) ends the program quietly, as it ends other filters.
        guard reason != EPIPE else { Glibc.exit(ExitStatus.done.rawValue) }
        error("parley: standard output cannot be written: \(String(cString: strerror(reason)))")
        exit(.failed)
    }
}
