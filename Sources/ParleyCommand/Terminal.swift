internal import FoundationEssentials
internal import Glibc
internal import ParleySystem

/// Standard output and standard error, unbuffered: what has been said is seen, also when the program is killed.
///
/// Both take ``TerminalText`` only, so that nothing another party wrote gets to a terminal as it is.
enum Terminal {
    static func output(_ text: TerminalText) { write(text.string, to: 1) }
    static func error(_ text: TerminalText) { write(text.string + "\n", to: 2) }

    /// Whether both go to the same place, such as a terminal or with `2>&1`: then what is said beside an answer could cut one of its lines.
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

    static func exit(_ status: ExitStatus) -> Never { Glibc.exit(status.rawValue) }

    private static func write(_ text: String, to descriptor: Int32) {
        var text = text
        text.withUTF8 { buffer in
            var rest = UnsafeRawBufferPointer(buffer)
            while !rest.isEmpty {
                let count = Glibc.write(descriptor, rest.baseAddress, rest.count)
                if count < 0 && errno == EINTR { continue }
                // A reader that has gone (`parley tail | head`) ends the program quietly, as it ends other filters.
                guard count > 0 else { Glibc.exit(descriptor == 1 ? 0 : 1) }
                rest = UnsafeRawBufferPointer(rebasing: rest[count...])
            }
        }
    }
}
