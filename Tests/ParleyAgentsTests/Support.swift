import ParleySystem

/// Waits in simulated time, as a body of a step that waits for something outside.
func pause(_ world: any World, _ duration: Duration) async {
    await withCheckedContinuation { continuation in
        world.schedule(at: world.now.advanced(by: duration)) { continuation.resume() }
    }
}

/// Entries in a line each, but for steps whose names begin with an s: for the report of a test that fails.
func short(_ entries: [JSON]) -> [String] {
    entries.filter { $0["step"]?.string?.split(separator: "/").last?.hasPrefix("s") != true }.map {
        "\($0["offset"]!.string!.suffix(5)) \($0["type"]!.string!) \($0["step"]?.string ?? "") \($0["state"]?.string ?? "") \($0["reason"]?.text ?? "") \($0["error"]?["code"]?.string ?? "") \($0["output"]?.text ?? "") \($0["message"]?.string?.prefix(150) ?? "")"
    }
}
