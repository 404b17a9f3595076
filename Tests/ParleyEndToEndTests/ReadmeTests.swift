import Foundation
import Testing

@Suite struct `The README` {
    /// The example is built with everything else, so what the README shows compiles.
    @Test func `shows the example as it is`() throws {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let readme = try String(contentsOf: root.appendingPathComponent("README.md"), encoding: .utf8)
        let example = try String(contentsOf: root.appendingPathComponent("Examples/Greeter/Greeter.swift"), encoding: .utf8)
        #expect(readme.contains("```swift\n\(example)```"))
    }
}
