import Foundation
import ParleyChannels
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyServer

@Suite struct `A tree of agents` {
    /// The entries that a reader of a tree has seen, over as many connections as it took.
    private struct Reading {
        var cursor: String?
        var seen: [String: [String]] = [:]

        mutating func take(_ message: JSON) throws {
            if let problem = message["error"], message["ended"] == nil { throw TestFailure("\(problem)") }
            guard let channel = message["channel"]?.string else { return }
            seen[channel, default: []] += (message["entries"]?.array ?? []).compactMap { $0["name"]?.string ?? $0["agent"]?.string }
            cursor = message["cursor"]?.string ?? cursor
        }

        var count: Int { seen.values.reduce(0) { $0 + $1.count } }
    }

    private func open(_ server: TestServer, _ root: String, _ reading: Reading) throws -> SocketClient {
        let socket = try server.socket()
        try socket.say(("op", "tree"), ("ref", 1), ("channel", .string(root)), ("cursor", reading.cursor.map { .string($0) }))
        return socket
    }

    @Test func `children and their children are followed, those started later and those not there yet, too`() throws {
        let server = try TestServer()
        try server.emit("agents/echo/root", "a")
        try server.startChild("agents/echo/early", of: "agents/echo/root")
        try server.emit("agents/echo/early", "b")
        var reading = Reading()
        let socket = try open(server, "agents/echo/root", reading)
        while reading.count < 3 { try reading.take(try socket.next()) }
        try server.startChild("agents/echo/late", of: "agents/echo/early")
        while reading.count < 4 { try reading.take(try socket.next()) }
        try server.emit("agents/echo/late", "c")
        try server.stage(
            "agents/echo/late", [NewEntry(.emit, nil, ("name", "d")), NewEntry(.childStarted, nil, ("agent", "agents/echo/last"))])
        try server.emit("agents/echo/last", "e")
        while reading.count < 8 { try reading.take(try socket.next()) }
        #expect(reading.seen["agents/echo/root"] == ["a", "agents/echo/early"])
        #expect(reading.seen["agents/echo/early"] == ["b", "agents/echo/late"])
        #expect(reading.seen["agents/echo/late"] == ["c", "d", "agents/echo/last"])
        #expect(reading.seen["agents/echo/last"] == ["e"])
    }

    @Test func `each end is told, and the tree ends with the last of them`() throws {
        let server = try TestServer()
        try server.startChild("agents/echo/child", of: "agents/echo/root")
        try server.stage("agents/echo/child", [NewEntry(.emit, nil, ("name", "x"))], closes: true)
        let socket = try open(server, "agents/echo/root", Reading())
        var messages = try socket.hear { $0["ended"] == true }
        #expect(messages.last?["channel"] == "agents/echo/child")
        #expect(messages.last?["reason"] == "closed")
        let cursor = messages.last?["cursor"]?.string
        try server.stage("agents/echo/root", [NewEntry(.emit, nil, ("name", "end"))], closes: true)
        messages = try socket.hear { $0["ended"] == true && $0["channel"] == nil }
        #expect(messages.last == ["ref": 1, "ended": true, "reason": "closed"])
        // A client that reconnects does not get again what had ended.
        var reading = Reading(cursor: cursor)
        let again = try open(server, "agents/echo/root", reading)
        for message in try again.hear(until: { $0["ended"] == true && $0["channel"] == nil }) { try reading.take(message) }
        #expect(reading.seen["agents/echo/root"] == ["end"])
        #expect(reading.seen["agents/echo/child"] ?? [] == [])
    }

    @Test func `one cursor leads over any breaks, without a gap and without a duplicate`() throws {
        let seed = Seed.value
        var random = SplitMix64(seed: seed)
        let server = try TestServer { $0.pageBytes = 400 }
        let root = "agents/echo/n0"
        var written: [String: [String]] = [root: ["start"]]
        try server.emit(root, "start")
        var reading = Reading()
        var total = 1
        for _ in 0..<30 {
            let socket = try open(server, root, reading)
            for _ in 0..<Int.random(in: 0..<10, using: &random) {
                let channel = "agents/echo/n\(Int.random(in: 0..<written.count, using: &random))"
                if written.count < 25, Int.random(in: 0..<4, using: &random) == 0 {
                    let child = "agents/echo/n\(written.count)"
                    try server.startChild(child, of: channel)
                    written[channel]!.append(child)
                    written[child] = []
                } else {
                    try server.emit(channel, "e\(total)")
                    written[channel]!.append("e\(total)")
                }
                total += 1
            }
            for _ in 0..<Int.random(in: 0..<12, using: &random) where reading.count < total { try reading.take(try socket.next()) }
        }
        let socket = try open(server, root, reading)
        while reading.count < total { try reading.take(try socket.next()) }
        #expect(reading.seen.filter { !$0.value.isEmpty } == written.filter { !$0.value.isEmpty }, "seed \(seed)")
    }

    @Test func `parley.js keeps one cursor over connections that end and are left`() throws {
        let server = try TestServer {
            $0.pageBytes = 400
            $0.socketLifetime = .milliseconds(300)
        }
        let root = "agents/echo/n0"
        try server.emit(root, "start")
        let script = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../Support/Clients/tree.mjs").path
        let words = ["--experimental-websocket", "--no-warnings", script, "http://127.0.0.1:\(server.server.port)", root, "400"]
        let client = try ChildProcess("/usr/bin/node", words)
        var random = SplitMix64(seed: Seed.value)
        var written: [String: [String]] = [root: ["start"]]
        for number in 1..<400 {
            let channel = "agents/echo/n\(Int.random(in: 0..<written.count, using: &random))"
            if written.count < 40, Int.random(in: 0..<5, using: &random) == 0 {
                let child = "agents/echo/n\(written.count)"
                try server.startChild(child, of: channel)
                written[channel]!.append(child)
                written[child] = []
            } else {
                try server.emit(channel, "e\(number)")
                written[channel]!.append("e\(number)")
            }
            if number % 40 == 0 { RealTime.pass(.milliseconds(100)) }  // So that connections end meanwhile, which live for 300 ms.
        }
        #expect(try client.waitForExit("parley.js to have seen all") == .status(0), "seed \(Seed.value): \(client.output.error)")
        var seen: [String: [String]] = [:]
        for line in client.output.standard.split(separator: "\n") {
            guard let entry = try? JSON.parse(String(line)), let channel = entry["channel"]?.string else { continue }
            seen[channel, default: []].append(entry["name"]?.string ?? "")
        }
        #expect(seen == written.filter { !$0.value.isEmpty }, "seed \(Seed.value)")
    }

    @Test func `at its bound the tree says which channel it does not follow`() throws {
        let server = try TestServer()
        let children = (0..<300).map { "agents/echo/child-\($0)" }
        try server.stage("agents/echo/root", children.map { NewEntry(.childStarted, nil, ("agent", .string($0))) })
        let socket = try open(server, "agents/echo/root", Reading())
        var refused: [String] = []
        while refused.count < 45 {
            let message = try socket.next()
            guard message["ended"] == true else { continue }
            #expect(message["reason"] == "refused")
            #expect(message["error"]?["code"] == "tree_full")
            refused.append(message["channel"]?.string ?? "")
        }
        #expect(refused == Array(children[255...]))
        try server.emit(children[100], "still followed")
        let messages = try socket.hear { $0["entries"]?.array?.isEmpty == false }
        #expect(messages.last?["channel"] == .string(children[100]))
        #expect((messages.last?["cursor"]?.string?.utf8.count ?? 0) < TreeCursor.textBytesMax)
    }

    @Test func `a cursor says where each channel is, and only what was given out is one`() throws {
        let places = [
            TreeCursor.Place(channel: "agents/a/b", offset: 0), .init(channel: "agents/a/bc", offset: 127),
            .init(channel: "agents/a/x~y.z", offset: .max >> 1), .init(channel: "grün", offset: 128),
        ]
        let text = TreeCursor(places).text
        #expect(TreeCursor(text)?.places == places)
        #expect(
            text.utf8.allSatisfy { (48...57).contains($0) || (65...90).contains($0) || (97...122).contains($0) || $0 == 45 || $0 == 95 })
        for wrong in ["", "A", "AQ", "AAAA", text + "A", String(text.dropLast()), String(text.dropLast(5)), "AQAB_w", text + "!"] {
            #expect(TreeCursor(wrong) == nil, "\(wrong)")
        }
        var random = SplitMix64(seed: Seed.value)
        for _ in 0..<2_000 {
            var bytes = Bytes(text.utf8)
            bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 33..<127, using: &random)
            _ = TreeCursor(bytes.text)  // Any text is read or refused.
        }
    }
}
