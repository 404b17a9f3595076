import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// A real language model, small enough for any machine. `./test` installs it.
@Suite(.serialized) struct `With a real model` {
    @Test func `killed in the middle of a sentence, the sentence continues`() async throws {
        try await OwnThread.run {
            let model = try LocalModel()
            let proxy = try RecordingProxy(to: model.url)
            let node = try EndToEndNode(
                agents: ["teller.md": "---\nkind: teller\nmax_tokens: 80\ntemperature: 0\n---\nYou are a helpful assistant.\n"],
                environment: ["PARLEY_MODEL": "openai:smollm2-135m", "OPENAI_BASE_URL": proxy.baseURL, "PARLEY_MODEL_CONTINUES": "prefix"],
                keeping: model, proxy)
            try node.start()
            _ = try node.send("Tell me about the sea.", to: "teller/one", key: "k")
            let reader = EndToEndReader(of: "teller/one")
            reader.attach(to: node)
            try reader.wait("a few words of the model", timeout: .seconds(600)) {
                ConvergedText($0.entries).text.utf8.count > 100 ? true : nil
            }
            try node.kill()
            try reader.wait("the connection to break") { $0.isOver ? true : nil }
            let before = ConvergedText(reader.seen.entries).text

            try node.start()
            reader.attach(to: node)
            let end = try reader.waitForTurnEnd(timeout: .seconds(600))
            let after = ConvergedText(reader.seen.entries).text
            #expect(end["type"] == "turn.completed")
            #expect(end["output"]?.string == after)
            #expect(after.hasPrefix(before) && after.utf8.count > before.utf8.count, "before: \(before)\nafter: \(after)")
            let recovered = reader.seen.first("step.completed")?["recovered_tokens"]?.integer ?? 0
            #expect(recovered > 0)

            let requests = proxy.requests
            #expect(requests.count == 2)
            let saved = String(before.reversed().drop { $0.isWhitespace }.reversed())
            let sentBack = requests.last?["messages"]?.array?.last
            #expect(sentBack?["role"] == "assistant")
            // More may have been durable than the reader had when the connection broke.
            #expect(sentBack?["content"]?.string?.hasPrefix(saved) == true)
            let contents = requests.last?["messages"]?.array?.compactMap { $0["content"]?.string } ?? []
            #expect(
                contents.joined(separator: "\n").components(separatedBy: saved).count == 2,
                "the saved text stands in the request exactly once")
            print("real model: \(recovered) tokens recovered, \(before.utf8.count) of \(after.utf8.count) bytes were saved")
        }
    }
}

/// The model server of `Scripts/local-model.py`, for one test.
struct LocalModel: Sendable {
    private let process: ChildProcess
    /// Without `/v1`.
    let url: String

    init() throws {
        guard let python = ProcessInfo.processInfo.environment["PARLEY_LOCAL_MODEL_PYTHON"], !python.isEmpty else {
            throw Missed("PARLEY_LOCAL_MODEL_PYTHON is not set: run ./test, which installs the local model and sets it")
        }
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        process = try ChildProcess(python, [root.appending(path: "Scripts/local-model.py").path])
        url = try process.wait("the local model to be ready", timeout: .seconds(600)) { output in
            if let exit = output.exit { throw Missed("the local model ended (\(exit)): \(output.error)") }
            let line = output.standard.split(separator: "\n").first { $0.hasPrefix("ready ") }
            return line.map { String($0.dropFirst("ready ".count).dropLast("/v1".count)) }
        }
    }
}
