package import ParleySystem

/// The text that a reader shows which follows the rules, made of the entries it got, in whatever view and from whatever offset on.
///
/// It is written from the rules alone and shares nothing with the server or the command line: text of a higher attempt replaces that of a
/// lower one from `continues_at` on; `step.completed` replaces whatever was shown.
package struct ConvergedText: Sendable {
    private struct Piece {
        var attempt: Int64
        var bytes: Bytes
    }

    private struct Step {
        var attempt: Int64 = 0
        /// The pieces, by their start.
        var pieces: [Int: Piece] = [:]
        var final: String?
    }

    private var steps: [String: Step] = [:]
    private var order: [String] = []

    package init(_ entries: [JSON]) { for entry in entries { add(entry) } }

    package mutating func add(_ entry: JSON) {
        guard let turn = entry["turn"]?.string, let path = entry["step"]?.string else { return }
        let name = turn + " " + path
        switch entry["type"]?.string {
        case "text" where entry["part"]?.string == "text":
            if steps[name] == nil { order.append(name) }
            addText(entry, &steps[name, default: Step()])
        case "step.completed":
            guard let text = entry["text"]?.string else { return }
            if steps[name] == nil { order.append(name) }
            steps[name, default: Step()].final = text
        default: break
        }
    }

    private func addText(_ entry: JSON, _ step: inout Step) {
        guard let attempt = entry["attempt"]?.integer, let index = entry["index"]?.integer, let delta = entry["delta"]?.string else {
            return
        }
        guard step.final == nil, attempt >= step.attempt else { return }
        if attempt > step.attempt {
            step.attempt = attempt
            let from = Int(entry["continues_at"]?.integer ?? 0)
            step.pieces = step.pieces.filter { $0.key < from }
            for (start, piece) in step.pieces where start + piece.bytes.count > from {
                step.pieces[start]!.bytes.removeLast(start + piece.bytes.count - from)
            }
        }
        step.pieces[Int(index)] = Piece(attempt: attempt, bytes: Bytes(delta.utf8))
    }

    /// The text of each step in the order in which it was first seen. A gap, from a reader that began late, is left out.
    package var texts: [String] {
        order.map { name in
            let step = steps[name]!
            return step.final ?? step.pieces.sorted { $0.key < $1.key }.flatMap(\.value.bytes).text
        }
    }

    package var text: String { texts.joined() }
}
