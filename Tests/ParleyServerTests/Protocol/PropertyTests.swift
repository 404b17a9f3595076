import ParleySystem
import ParleyTesting
import Testing

extension DurableStreams {
    /// Properties of any data: random runs, each with a seed of its own that a failure names. `PARLEY_SEED` sets the first.
    @Suite struct `For any data` {
        private static let seeds = (0..<12).map { Seed.value &+ $0 }
        private static let octets = [("Content-Type", "application/octet-stream")]
        private var server: ProtocolServer { .shared }

        private func bytes(_ count: ClosedRange<Int>, _ random: inout SplitMix64) -> Bytes {
            (0..<Int.random(in: count, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
        }

        private func chunks(_ count: ClosedRange<Int>, of size: ClosedRange<Int>, _ random: inout SplitMix64) -> [Bytes] {
            (0..<Int.random(in: count, using: &random)).map { _ in bytes(size, &random) }
        }

        private func append(_ path: String, _ body: Bytes, on client: TestClient) throws -> String {
            let answer = try client.request("POST", path, Self.octets, body)
            guard [200, 204].contains(answer.status) else { throw TestFailure("\(answer.status): \(answer.text)") }
            return answer.next
        }

        @Test(arguments: seeds) func `who reads while others write sees whole appends, from the first on`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream("application/octet-stream")
            let (writer, readers) = (try server.connect(), try (0..<7).map { _ in try server.connect() })
            var written = Bytes()
            var ends: Set = [0]
            let all = chunks(1...10, of: 1...500, &random)
            for chunk in all {
                written += chunk
                ends.insert(written.count)
            }
            for chunk in all {
                let cut = Int.random(in: 0...readers.count, using: &random)
                for reader in readers[..<cut] { try reader.send("GET", path) }
                try writer.send("POST", path, Self.octets, chunk)
                for reader in readers[cut...] { try reader.send("GET", path) }
                for reader in readers {
                    let seen = try reader.answer().body
                    try #require(ends.contains(seen.count) && written.starts(with: seen), "seed \(seed)")
                }
                #expect([200, 204].contains(try writer.answer().status))
            }
            #expect(try server.read(path) == written, "seed \(seed)")
        }

        @Test func `each byte there is is read back, also by those who ask while it is written`() throws {
            let (writer, readers) = (try server.connect(), try (0..<3).map { _ in try server.connect() })
            for byte in UInt8.min ... .max {
                let path = try server.stream("application/octet-stream")
                for reader in readers { try reader.send("GET", path) }
                _ = try append(path, [byte], on: writer)
                for reader in readers { try #require([[], [byte]].contains(try reader.answer().body), "byte \(byte)") }
                try #require(try server.read(path, on: writer) == [byte], "byte \(byte)")
            }
        }

        @Test(arguments: seeds) func `every offset that was given leads to the same data for ever`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream("application/octet-stream")
            let client = try server.connect()
            var written = Bytes()
            var given = [("-1", 0)]
            for _ in 0..<Int.random(in: 5...30, using: &random) {
                switch Int.random(in: 0..<3, using: &random) {
                case 0:
                    let chunk = bytes(1...200, &random)
                    written += chunk
                    let offset = try append(path, chunk, on: client)
                    try #require(offset > given.last!.0 || given.count == 1, "seed \(seed)")
                    given.append((offset, written.count))
                case 1: try #require(try server.read(path, on: client) == written, "seed \(seed)")
                default:
                    let (offset, begin) = given.randomElement(using: &random)!
                    try #require(try server.read(path, from: offset, on: client) == Bytes(written[begin...]), "seed \(seed)")
                }
            }
            for (offset, begin) in given {
                try #require(try server.read(path, from: offset, on: client) == Bytes(written[begin...]), "seed \(seed)")
            }
        }

        @Test(arguments: seeds) func `offsets rise, are short, and can stand in a URL as they are`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream("application/octet-stream")
            let client = try server.connect()
            var last = try server.tail(path)
            for chunk in chunks(2...15, of: 1...100, &random) {
                let offset = try append(path, chunk, on: client)
                try #require(offset > last && offset.utf8.count < 256, "seed \(seed)")
                try #require(!offset.contains { ",&=?/ ".contains($0) } && !["-1", "now"].contains(offset), "seed \(seed)")
                last = offset
            }
        }

        @Test(arguments: seeds) func `what was answered is read at once, and stays as it is when more comes`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream("application/octet-stream")
            let client = try server.connect()
            var written = Bytes()
            for chunk in chunks(1...6, of: 1...500, &random) {
                _ = try append(path, chunk, on: client)
                written += chunk
                try #require(try server.read(path) == written, "seed \(seed)")
            }
        }

        @Test(arguments: seeds) func `the same appends make the same stream, and each changes it`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let client = try server.connect()
            let all = chunks(1...8, of: 1...100, &random)
            let streams = try (0..<2).map { _ in
                let path = try server.stream("application/octet-stream")
                var states = [try server.read(path, on: client)]
                for chunk in all {
                    _ = try append(path, chunk, on: client)
                    states.append(try server.read(path, on: client))
                }
                return states
            }
            #expect(streams[0] == streams[1], "seed \(seed)")
            #expect(streams[0].first == [] && Set(streams[0]).count == all.count + 1, "seed \(seed)")
        }

        @Test(arguments: seeds) func `what cannot be an offset is refused`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream("text/plain", "test")
            let client = try server.connect()
            func text() -> String {
                String(
                    (0..<Int.random(in: 0...8, using: &random)).map { _ in
                        Character(UnicodeScalar(UInt8.random(in: 32...126, using: &random)))
                    })
            }
            for mark in [" ", ",", "/", "\0", "\n", "\r\n", "../"] {
                let bad = (text() + mark + text()).utf8.map { "%" + (String($0, radix: 16).count < 2 ? "0" : "") + String($0, radix: 16) }
                    .joined()
                let answer = try client.request("GET", path + "?offset=\(bad)")
                try #require(answer.status == 400, "seed \(seed): \(bad)")
            }
        }

        private func word(_ random: inout SplitMix64) -> String {
            let alphabet = Array("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
            return String((0..<Int.random(in: 1...6, using: &random)).map { _ in alphabet.randomElement(using: &random)! })
        }

        @Test(arguments: seeds) func `seq is taken when it rises by its bytes, and else refused`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream()
            let client = try server.connect()
            var (last, taken) = ("", "")
            for _ in 0..<20 {
                let next = word(&random)
                let answer = try client.request(
                    "POST", path, [("Content-Type", "text/plain"), ("Stream-Seq", next)], Bytes("\(next);".utf8))
                let rises = last.utf8.lexicographicallyPrecedes(next.utf8)
                try #require((rises ? [200, 204] : [409]).contains(answer.status), "seed \(seed): \(next) after \(last)")
                if rises { (last, taken) = (next, taken + "\(next);") }
            }
            #expect(try server.read(path).text == taken, "seed \(seed)")
            let rising = Set((0..<10).map { _ in word(&random) }).sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
            let other = try server.stream()
            for next in rising { #expect([200, 204].contains(try server.post(other, next, "text/plain", [("Stream-Seq", next)]).status)) }
            #expect(try server.read(other).text == rising.joined(), "seed \(seed)")
        }

        @Test func `of many with the same seq, one is taken`() throws {
            let path = try server.stream()
            let writers = try (0..<5).map { _ in try server.connect() }
            for (number, writer) in writers.enumerated() {
                try writer.send("POST", path, [("Content-Type", "text/plain"), ("Stream-Seq", "seq-001")], Bytes("writer-\(number)".utf8))
            }
            let statuses = try writers.map { try $0.answer().status }
            #expect(statuses.filter { [200, 204].contains($0) }.count == 1 && statuses.filter { $0 == 409 }.count == 4)
            #expect(try server.get(path).text == "writer-\(statuses.firstIndex { $0 < 300 } ?? -1)")
        }

        @Test(arguments: 3...8) func `of many with rising seqs, those that are taken stand in their order`(_ count: Int) throws {
            let path = try server.stream()
            let writers = try (0..<count).map { _ in try server.connect() }
            for (number, writer) in writers.enumerated() {
                try writer.send(
                    "POST", path, [("Content-Type", "text/plain"), ("Stream-Seq", "000\(number)")], Bytes("data-\(number);".utf8))
            }
            let statuses = try writers.map { try $0.answer().status }
            let taken = (0..<count).filter { [200, 204].contains(statuses[$0]) }
            #expect(!taken.isEmpty && statuses.allSatisfy { [200, 204, 409].contains($0) })
            #expect(try server.get(path).text == taken.map { "data-\($0);" }.joined())
        }

        @Test func `appends of many connections are all there, each whole, each with an offset of its own`() throws {
            let path = try server.stream("application/json")
            let clients = try (0..<10).map { _ in try server.connect() }
            var offsets: Set<String> = []
            for round in 0..<20 {
                for (number, client) in clients.enumerated() {
                    try client.send("POST", path, [("Content-Type", "application/json")], Bytes("[\(number * 100 + round),\"x\"]".utf8))
                }
                for client in clients { offsets.insert(try client.answer().next) }
            }
            #expect(offsets.count == 200)
            var (messages, offset) = ([JSON](), "-1")
            while messages.count < 400 {
                let page = try server.get(path + "?offset=\(offset)")
                messages += try #require(page.json?.array)
                offset = page.next
            }
            #expect(messages.count == 400 && Set(messages.compactMap(\.integer)).count == 200)
            for pair in stride(from: 0, to: 400, by: 2) { #expect(messages[pair].integer != nil && messages[pair + 1] == "x") }
        }

        @Test func `readers among writers are answered`() throws {
            let path = try server.stream("text/plain", "initial;")
            let clients = try (0..<20).map { _ in try server.connect() }
            for (number, client) in clients.enumerated() {
                if number % 2 == 0 {
                    try client.send("POST", path, [("Content-Type", "text/plain")], Bytes("write-\(number);".utf8))
                } else {
                    try client.send("GET", path)
                }
            }
            for (number, client) in clients.enumerated() {
                let answer = try client.answer()
                #expect(number % 2 == 0 ? [200, 204].contains(answer.status) : answer.status == 200 && answer.text.hasPrefix("initial;"))
            }
            let text = try server.read(path).text
            for number in stride(from: 0, to: 20, by: 2) {
                #expect(text.split(separator: ";").filter { $0 == "write-\(number)" }.count == 1)
            }
        }

        @Test(arguments: seeds) func `JSON is cut at its messages, however it is batched`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream("application/json")
            func value(_ depth: Int) -> JSON {
                switch Int.random(in: 0..<(depth > 0 ? 6 : 4), using: &random) {
                case 0: .integer(Int64.random(in: -1_000_000...1_000_000, using: &random))
                case 1:
                    .string(
                        String(
                            (0..<Int.random(in: 0...12, using: &random)).map { _ in
                                ["a", "\"", "\\", "\n", "ä", "😀", "[", ","].randomElement(using: &random)! as Character
                            }))
                case 2: .bool(Bool.random(using: &random))
                case 3: .null
                case 4: .array((0..<Int.random(in: 0...3, using: &random)).map { _ in value(depth - 1) })
                default: ["k": value(depth - 1), "l": value(depth - 1)]
                }
            }
            var messages: [JSON] = []
            var given: [(String, Int)] = []
            for _ in 0..<8 {
                let batch = (0..<Int.random(in: 1...4, using: &random)).map { _ in value(2) }
                messages += batch
                // A lone message that is not an array may be sent without the array around it.
                let isBare = batch.count == 1 && batch[0].array == nil && Bool.random(using: &random)
                let answer = try server.post(path, (isBare ? batch[0] : .array(batch)).bytes.text, "application/json")
                try #require([200, 204].contains(answer.status), "seed \(seed): \(answer.text)")
                given.append((answer.next, messages.count))
            }
            for (offset, begin) in [("-1", 0)] + given {
                var (read, offset) = ([JSON](), offset)
                while true {
                    let page = try server.get(path + "?offset=\(offset)")
                    read += try #require(page.json?.array)
                    if page.headers["stream-up-to-date"] == "true" { break }
                    offset = page.next
                }
                try #require(read == Array(messages[begin...]), "seed \(seed)")
            }
        }

        @Test(arguments: seeds) func `a producer is answered by what it has sent, whatever it repeats, leaves out or begins anew`(
            _ seed: UInt64
        ) throws {
            var random = SplitMix64(seed: seed)
            let path = try server.stream()
            let client = try server.connect()
            var (state, taken) = ([String: (epoch: Int, sequence: Int)](), "")
            for number in 0..<60 {
                let id = ["p", "q"].randomElement(using: &random)!
                let (epoch, sequence) = (Int.random(in: 0...3, using: &random), Int.random(in: 0...3, using: &random))
                let answer = try client.request(
                    "POST", path, [("Content-Type", "text/plain")] + producer(id, String(epoch), String(sequence)), Bytes("\(number);".utf8)
                )
                let known = state[id]
                let expected =
                    if let known, epoch < known.epoch { 403 } else if known.map({ epoch > $0.epoch }) ?? true {
                        sequence == 0 ? 200 : known == nil ? 409 : 400
                    } else if sequence <= known!.sequence { 204 } else { sequence == known!.sequence + 1 ? 200 : 409 }
                try #require(answer.status == expected, "seed \(seed): \(id) \(epoch) \(sequence) after \(String(describing: known))")
                if expected == 200 { (state[id], taken) = ((epoch, sequence), taken + "\(number);") }
                if [200, 204].contains(expected) { #expect(answer.headers["producer-seq"] == String(state[id]!.sequence), "seed \(seed)") }
                if expected == 403 { #expect(answer.headers["producer-epoch"] == String(known!.epoch), "seed \(seed)") }
            }
            #expect(try server.read(path).text == taken, "seed \(seed)")
        }

        @Test(arguments: seeds) func `a fork has what its source had there, to the byte`(_ seed: UInt64) throws {
            var random = SplitMix64(seed: seed)
            let client = try server.connect()
            var source = try server.stream("application/octet-stream")
            var written = Bytes()
            var anchors = [(try server.tail(source), 0)]
            for _ in 0..<4 {
                for chunk in chunks(1...4, of: 1...60, &random) {
                    written += chunk
                    anchors.append((try append(source, chunk, on: client), written.count))
                }
                let index = Int.random(in: 0..<anchors.count, using: &random)
                let next = index + 1 < anchors.count ? anchors[index + 1].1 : anchors[index].1
                let further = Int.random(in: 0...(next - anchors[index].1), using: &random)
                let path = server.path("fork")
                let answer = try client.request(
                    "PUT", path,
                    [("Stream-Forked-From", source), ("Stream-Fork-Offset", anchors[index].0), ("Stream-Fork-Sub-Offset", String(further))])
                try #require(answer.status == 201, "seed \(seed): \(answer.text)")
                written = Bytes(written[..<(anchors[index].1 + further)])
                anchors = Array(anchors[...index]) + (further > 0 ? [(answer.next, written.count)] : [])
                source = path
                try #require(try server.read(source, on: client) == written, "seed \(seed)")
            }
        }
    }
}
