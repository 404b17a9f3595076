/// The version of this program, for `--version` and for the servers it calls.
package enum Release {
    package static let version = "0.1.0"
    /// The `User-Agent` of outgoing calls that name their sender.
    package static let userAgent = "parley/\(version)"
}
