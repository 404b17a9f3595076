import ParleyChannels
import ParleyLog
import ParleySystem
import Synchronization
import Testing

/// Two servers on one log, as they would be on one that is replicated, and clients that ask the other when one does not have what they want.
@Suite struct `Clients of two nodes` {
    private let path = "/v1/stream/shared"
    private let partition = Placement.partition(of: "shared")
    private let servers: [TestServer]
    /// Appends that have been answered.
    private let answered = Monitor(0)

    init() throws {
        let log = GatedLog()
        servers = try (0..<2).map { _ in try TestServer(on: log, partitions: PartitionSet()) }
        try open(on: 0)
        let answer = try servers[0].request("PUT", path, [("Content-Type", "application/json")], "")
        try #require(answer.status == 201)
    }

    private func open(on server: Int) throws { try wait { servers[server].channels.open(partition, completion: $0) } }

    private func wait(_ start: (@escaping @Sendable (Result<Void, ChannelError>) -> Void) -> Void) throws {
        let done = Monitor<Result<Void, ChannelError>?>(nil)
        start { result in done.withLock(signalAll: true) { $0 = result } }
        guard let result = done.wait(timeout: .seconds(20), { $0 }) else { throw TestFailure("the partition does not move") }
        try result.get()
    }

    /// Asks one server after the other until one has an answer that is good.
    private func ask(from first: Int, _ request: (TestServer) throws -> TestClient.Answer) throws {
        for attempt in first..<first + 20_000 {
            let answer = try? request(servers[attempt % 2])
            if let answer, [200, 204].contains(answer.status) { return }
        }
        throw TestFailure("no server takes the request")
    }

    private func write(_ writer: Int, _ count: Int) throws {
        for number in 0..<count {
            let headers = [
                ("Content-Type", "application/json"), ("Producer-Id", "p\(writer)"), ("Producer-Epoch", "0"), ("Producer-Seq", "\(number)"),
            ]
            // As behind a load balancer: either may be asked first.
            try ask(from: writer + number) { try $0.request("POST", path, headers, #"[{"by":\#(writer),"number":\#(number)}]"#) }
            answered.withLock(signalAll: true) { $0 += 1 }
        }
    }

    /// Follows by server-sent events until the stream is closed, at whichever server has it.
    private func follow() throws -> [JSON] {
        var (found, offset, server): ([JSON], String, Int) = ([], "-1", 0)
        for _ in 0..<20_000 {
            server = 1 - server
            guard let client = try? servers[server].connect() else { continue }
            try? client.send("GET", "\(path)?offset=\(offset)&live=sse")
            guard let head = try? client.head(), head.status == 200 else { continue }
            var data: [JSON] = []
            // Data that no control event has followed is sent again.
            while let event = try? client.event() {
                if event.name == "data" { data += event.json?.array ?? [] }
                guard event.name == "control", let control = event.json, let next = control["streamNextOffset"]?.string else { continue }
                (found, data, offset) = (found + data, [], next)
                if control["streamClosed"] == true { return found }
            }
        }
        throw TestFailure("no server has the end of the stream")
    }

    @Test func `lose nothing and repeat nothing while the partition moves, asked for or not`() throws {
        let (writers, each, moves) = (3, 120, 24)
        let failures = Mutex<[String]>([])
        let followed = Mutex<[[JSON]]>([])
        func thread(_ name: String, _ body: @escaping @Sendable () throws -> Void) -> SystemThread {
            SystemThread(name: name) { do { try body() } catch { failures.withLock { $0.append("\(name): \(error)") } } }
        }
        let writing = (0..<writers).map { writer in thread("writer") { try write(writer, each) } }
        let reading = (0..<2).map { _ in
            thread("reader") {
                let found = try follow(); followed.withLock { $0.append(found) }
            }
        }
        for move in 0..<moves {
            let isReached = answered.wait(timeout: .seconds(60)) { $0 >= move * writers * each / moves ? true : nil }
            try #require(isReached == true, "\(failures.withLock { $0 })")
            let former = servers[move % 2].channels
            // Not asked, it learns of it at its next commit.
            if move % 3 > 0 { try wait { former.close(partition, completion: $0) } }
            try open(on: 1 - move % 2)
        }
        for thread in writing { thread.join() }
        try ask(from: 0) { try $0.request("POST", path, [("Content-Type", "application/json"), ("Stream-Closed", "true")], "") }
        for thread in reading { thread.join() }
        #expect(failures.withLock { $0 } == [])
        let all = followed.withLock { $0 }
        #expect(all.count == 2)
        for entries in all {
            for writer in 0..<writers {
                let numbers = entries.filter { $0["by"] == .integer(Int64(writer)) }.compactMap { $0["number"]?.integer }
                #expect(numbers == (0..<each).map(Int64.init))
            }
            #expect(entries.count == writers * each)
        }
    }
}
