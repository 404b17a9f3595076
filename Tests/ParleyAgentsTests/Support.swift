import ParleyLog
import ParleySystem
import ParleyTesting

/// Waits in simulated time, as a body of a step that waits for something outside.
func pause(_ world: any World, _ duration: Duration) async {
    await withCheckedContinuation { continuation in
        world.schedule(at: world.now.advanced(by: duration)) { continuation.resume() }
    }
}

extension SimulatedNode {
    /// How many rows a family has.
    func rows(_ family: Family) throws -> Int {
        var count = 0
        try log.scan(family, from: [0, 0], to: [255, 255], reversed: false) { _, _ in
            count += 1
            return true
        }
        return count
    }
}
