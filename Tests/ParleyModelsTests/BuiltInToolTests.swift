import Foundation
import ParleyAgents
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `Files that agents write` {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("parley-files-\(UInt64.random(in: 0...UInt64.max))")

    func code(_ path: String, _ text: String = "x") -> String? {
        do {
            try AgentFiles(folder: folder.path).write(Bytes(text.utf8), to: path, for: "agents/..b/a")
            return nil
        } catch { return (error as? StepFailure)?.code ?? "\(error)" }
    }

    @Test func `are below the agent's own folder, and the last one counts`() throws {
        defer { try? FileManager.default.removeItem(at: folder) }
        #expect(code("notes/to day.md", "one") == nil && code("notes/to day.md", "two") == nil)
        #expect(try String(contentsOf: folder.appendingPathComponent("kind-..b/id-a/notes/to day.md"), encoding: .utf8) == "two")
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path + "/kind-..b/id-a/notes") == ["to day.md"])
    }

    @Test(arguments: [
        "", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", ".hidden", "a/.b", "a\u{0}b", "é", "a\nb", "~x/",
        String(repeating: "a", count: 101), "1/2/3/4/5/6/7/8/9",
    ])
    func `are nowhere else`(path: String) {
        defer { try? FileManager.default.removeItem(at: folder) }
        #expect(code(path) == "invalid_path")
        #expect(!FileManager.default.fileExists(atPath: folder.path))
    }

    @Test func `do not follow a link that somebody has put there`() throws {
        defer { try? FileManager.default.removeItem(at: folder) }
        #expect(code("a.txt") == nil)
        let own = folder.path + "/kind-..b/id-a"
        try FileManager.default.createSymbolicLink(atPath: own + "/out", withDestinationPath: "/tmp")
        try FileManager.default.createSymbolicLink(atPath: own + "/link.txt", withDestinationPath: own + "/a.txt")
        #expect(code("out/x.txt") == "file_not_written")
        #expect(code("link.txt", "new") == nil)
        #expect(try String(contentsOfFile: own + "/a.txt", encoding: .utf8) == "x", "the link is replaced, not written through")
    }

    @Test func `have a limit`() {
        defer { try? FileManager.default.removeItem(at: folder) }
        #expect(code("a", String(repeating: "x", count: 1 << 20)) == nil)
        #expect(code("a", String(repeating: "x", count: 1 << 20 + 1)) == "file_too_large")
    }
}
