import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyHTTP

private let megabyte = 1 << 20

@Suite struct `The memory for requests` {
    @Test func `is shared: who takes much leaves as much for others`() {
        let budget = MemoryBudget(bytesMax: 64 * megabyte)
        func taken(_ account: String) -> [MemoryReservation] {
            var held: [MemoryReservation] = []
            while true {
                let reservation = MemoryReservation(budget, account: account)
                guard reservation.resize(to: megabyte) else { return held }
                held.append(reservation)
            }
        }
        let first = taken("first")
        #expect(first.count == 32)
        #expect(taken("first").isEmpty)
        let second = taken("second")
        #expect(second.count == 16)
        let third = taken("third")
        #expect(third.count == 8)
        let small = MemoryReservation(budget, account: "first")
        #expect(small.resize(to: 10_000) == false, "it has more than its share by now")
        let newcomer = MemoryReservation(budget, account: "fourth")
        #expect(newcomer.resize(to: 10_000))
        withExtendedLifetime((first, second, third)) {}
    }

    @Test func `has room for small requests of one that sends large ones`() {
        let budget = MemoryBudget(bytesMax: 64 * megabyte)
        let large = (0..<40).map { _ in MemoryReservation(budget, account: "a") }
        #expect(large.filter { $0.resize(to: megabyte) }.count == 32)
        let small = (0..<200).map { _ in MemoryReservation(budget, account: "a") }
        #expect(small.allSatisfy { $0.resize(to: 60_000) })
    }

    @Test func `is free again when a request is answered`() {
        let budget = MemoryBudget(bytesMax: 10)
        do {
            let reservation = MemoryReservation(budget, account: "a")
            #expect(reservation.resize(to: 4) && reservation.resize(to: 5) && reservation.resize(to: 2))
            #expect(!reservation.resize(to: 11))
            #expect(budget.usedBytes == 2)
        }
        #expect(budget.usedBytes == 0)
    }
}

@Suite struct `Answers that are not taken` {
    @Test func `hold memory until they have been sent, or nobody is there any more`() throws {
        let budget = MemoryBudget(bytesMax: 64 * megabyte)
        let body = Bytes(repeating: 0x61, count: 8 * megabyte)
        let server = try TestServer { _, responder in
            responder.respond(status: 200, body: body, room: budget.reserve(body.count, for: "a"))
        }
        var clients = try (0..<2).map { _ in try server.connect() }
        for client in clients { try client.send(get()) }
        try RealTime.until("both to be on their way") { budget.usedBytes == 16 * megabyte }
        #expect(try clients[0].answer().body.count == body.count)
        try RealTime.until("what was taken to be free") { budget.usedBytes == 8 * megabyte }
        clients = []
        try RealTime.until("what nobody waits for to be free") { budget.usedBytes == 0 }
    }

    @Test func `are followed by no other: the next request waits until they are taken`() throws {
        let begun = Monitor(0)
        let body = Bytes(repeating: 0x61, count: 900 << 10)
        let server = try TestServer { request, responder in
            begun.withLock { $0 += 1 }
            responder.respond(status: 200, body: body)
        }
        let client = try server.connect()
        try client.send(get() + get() + get())
        let other = try server.connect()
        try other.send(get())
        #expect(try other.answer().body.count == body.count)
        #expect(begun.withLock { $0 } == 2, "one of each connection")
        for _ in 0..<3 { #expect(try client.answer().body.count == body.count) }
        #expect(begun.withLock { $0 } == 4)
    }

    @Test func `count although there is no room, where they are owed`() {
        let budget = MemoryBudget(bytesMax: 10)
        let owed = MemoryReservation(budget, account: "a")
        #expect(owed.resize(to: 100, isOwed: true))
        #expect(budget.usedBytes == 100 && budget.reserve(1, for: "b") == nil)
        withExtendedLifetime(owed) {}
    }

    @Test func `of a body that was made into more count as long as the request waits`() throws {
        let held = Monitor<[Bool]>([])
        let server = try TestServer {
            $0.requestBytesMax = 8 * megabyte
        } handle: { _, responder in
            held.withLock { $0.append(responder.hold(3 * megabyte)) }
            held.withLock { $0.append(responder.hold(100 * megabyte)) }
            responder.respond(status: 200)
        }
        let client = try server.connect()
        try client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n".latin1 + Bytes(repeating: 0x61, count: 10_000))
        #expect(try client.answer().status == 200)
        #expect(held.withLock { $0 } == [true, true], "never more than an account could get")
        #expect(server.server.requestBytes == 0)
    }
}

@Suite struct `Bodies` {
    private static func post(_ count: Int, _ path: String = "/", _ more: String = "") -> String {
        "POST \(path) HTTP/1.1\r\nHost: a\r\n\(more)Content-Length: \(count)\r\n\r\n"
    }

    @Test func `hold memory together up to a bound, until they are answered`() throws {
        let waiting = Monitor<[HTTPResponder]>([])
        let server = try TestServer {
            $0.requestBytesMax = 5 * megabyte
        } handle: { _, responder in
            waiting.withLock(signal: true) { $0.append(responder) }
        }
        let body = Bytes(repeating: 0x61, count: megabyte)
        let clients = try (0..<3).map { _ in try server.connect() }
        for client in clients.prefix(2) { try client.send(Bodies.post(megabyte).latin1 + body) }
        _ = waiting.wait(timeout: .seconds(10)) { $0.count == 2 ? true : nil }
        #expect((2 * megabyte...2 * megabyte + 1_000).contains(server.server.requestBytes))
        try clients[2].send(Bodies.post(megabyte))
        try? clients[2].send(body)
        let refused = try clients[2].answer()
        #expect(refused.status == 503 && refused.text.contains("overloaded") && refused.headers["retry-after"] == "1")
        for responder in waiting.withLock({ $0 }) { responder.loop.execute { responder.respond(status: 200) } }
        for client in clients.prefix(2) { #expect(try client.answer().status == 200) }
        #expect(server.server.requestBytes == 0)
        let next = try server.connect()
        try next.send(Bodies.post(3) + "abc")
        let last = try #require(waiting.wait(timeout: .seconds(10)) { $0.count == 3 ? $0.last : nil })
        last.loop.execute { last.respond(status: 200) }
        #expect(try next.answer().status == 200)
    }

    @Test func `that are not complete count, and no more when their connection is gone`() throws {
        let server = try TestServer { _, responder in responder.respond(status: 200) }
        var clients: [TestClient] = []
        for _ in 0..<4 {
            clients.append(try server.connect())
            try clients.last!.send(Bodies.post(megabyte).latin1 + Bytes(repeating: 0x61, count: 100_000))
        }
        clients.append(try server.connect())
        try clients.last!.send("GET /" + String(repeating: "a", count: 5_000))
        try RealTime.until("all of it to count") { server.server.requestBytes > 405_000 }
        clients = []
        try RealTime.until("nothing to count") { server.server.requestBytes == 0 }
    }

    @Test func `that drip behind much that came at once are broken off`() throws {
        let server = try TestServer {
            $0.bodyTimeout = .milliseconds(200)
        } handle: { _, responder in
            responder.respond(status: 200)
        }
        let client = try server.connect()
        try client.send(Bodies.post(megabyte).latin1 + Bytes(repeating: 0x61, count: megabyte / 2))
        for _ in 0..<80 where (try? client.send("a")) != nil { RealTime.pass(.milliseconds(25)) }
        #expect(try client.answer("the 408 for a body").status == 408)
    }
}

@Suite struct `Connections that wait` {
    @Test func `make place for new ones, the longest first`() throws {
        let server = try TestServer {
            $0.connectionCountMax = 3
            $0.patience = .zero
        } handle: { request, responder in
            responder.respond(status: 200, body: Bytes(request.path.utf8))
        }
        func ask(_ client: TestClient, _ path: String) throws -> String {
            try client.send(get(path))
            return try client.answer().text
        }
        let held = try (0..<3).map { _ in try server.connect() }
        for (index, client) in held.enumerated() { #expect(try ask(client, "/\(index)") == "/\(index)") }
        // The first is not the longest idle any more.
        #expect(try ask(held[0], "/again") == "/again")
        let newcomer = try server.connect()
        #expect(try ask(newcomer, "/new") == "/new")
        #expect(try held[1].readToEnd("the end of the one that waited longest") == [])
        for client in [held[0], held[2], newcomer] { #expect(try ask(client, "/still") == "/still") }
        #expect(server.server.connectionCount == 3)
    }

    @Test func `do so on every loop`() throws {
        let server = try TestServer(loops: 3) {
            $0.connectionCountMax = 3
            $0.patience = .zero
        } handle: { _, responder in
            responder.respond(status: 200)
        }
        var held: [TestClient] = []
        for _ in 0..<30 {
            held.append(try server.connect())
            try held.last!.send(get())
            #expect(try held.last!.answer().status == 200)
        }
        #expect(server.server.connectionCount <= 3 + 1, "the last one that makes place may be about to")
    }

    @Test func `for an answer stay`() throws {
        let waiting = Monitor<HTTPResponder?>(nil)
        let server = try TestServer {
            $0.connectionCountMax = 1
            $0.patience = .zero
        } handle: { _, responder in
            waiting.withLock(signal: true) { $0 = responder }
        }
        let first = try server.connect()
        try first.send(get())
        let responder = try #require(waiting.wait(timeout: .seconds(10)) { $0 })
        #expect(try server.connect().answer().status == 503)
        responder.loop.execute { responder.respond(status: 200) }
        #expect(try first.answer().status == 200)
    }
}
