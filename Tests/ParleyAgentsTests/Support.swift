import ParleySystem

/// Waits in simulated time, as a body of a step that waits for something outside.
func pause(_ world: any World, _ duration: Duration) async {
    await withCheckedContinuation { continuation in
        world.schedule(at: world.now.advanced(by: duration)) { continuation.resume() }
    }
}
