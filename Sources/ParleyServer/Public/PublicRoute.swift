internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// Answers with the files of `--public`, at every path that is not a route of the server.
struct PublicRoute: Sendable {
    let context: ServerContext
    let folder: PublicFolder
    private let sending = SendingCount()

    /// Files that are sent in pieces at a time; each holds a descriptor for as long as its client takes.
    private static let sendingMax = 256

    init(context: ServerContext, folder: PublicFolder) { (self.context, self.folder) = (context, folder) }

    /// Whether a path could be a file's: everything but what belongs to the API.
    static func isPublic(_ path: ArraySlice<UInt8>) -> Bool {
        let own = ["/v1", "/healthz", "/readyz", "/metrics", "/parley.js", "/parley.d.ts"]
        return path.count > 1 && !own.contains { path.elementsEqual($0.utf8) } && !path.starts(with: "/v1/".utf8)
    }

    func answer(_ exchange: Exchange) {
        let path = Bytes(exchange.request.pathUTF8)
        context.read(for: exchange) { [folder] () throws(ChannelError) in
            folder.find(path[...])
        } then: { [self] found in
            switch found {
            case nil:
                let detail = "there is no file '\(exchange.request.path)' in the public folder."
                exchange.respond(Problem(status: 404, code: "file_not_found", detail: detail))
            case .folder: exchange.respond(308, [("Location", PublicRoute.slashed(exchange.request))])
            case .file(let file): answer(exchange, file)
            }
        }
    }

    /// The same place with a slash, by which relative links lead into the folder. Never `//host`, which would lead to another one.
    private static func slashed(_ request: HTTPRequest) -> String {
        let path = "/" + request.path.drop { $0 == "/" } + "/"
        return request.query.map { "\(path)?\($0)" } ?? path
    }

    private func answer(_ exchange: Exchange, _ file: PublicFile) {
        var headers: [HeaderField] = [
            ("Content-Type", file.contentType), ("ETag", file.tag), ("Cache-Control", "no-cache"), ("Referrer-Policy", "same-origin"),
        ]
        if exchange.request.hasTag(file.tag) { return exchange.respond(304, headers) }
        headers.append(("Content-Length", String(file.byteCount)))
        if exchange.request.method == "HEAD" { return exchange.respond(200, headers) }
        guard sending.add(1) <= PublicRoute.sendingMax else {
            sending.subtract(1)
            return exchange.respond(.overloaded("\(PublicRoute.sendingMax) files are being sent"))
        }
        PublicFileSender(file, exchange.stream(200, headers), context.reads) { [sending] in sending.subtract(1) }.sendNext()
    }
}

/// How many files are being sent.
private final class SendingCount: Sendable {
    private let value = Atomic(0)
    func add(_ count: Int) -> Int { value.add(count, ordering: .relaxed).newValue }
    func subtract(_ count: Int) { value.subtract(count, ordering: .relaxed) }
}

/// Sends a file as fast as its client takes it, a piece at a time.
private final class PublicFileSender: @unchecked Sendable {  // Guard: used on the stream's loop; `file` by one read at a time.
    private let file: PublicFile
    private let stream: HTTPStream
    private let reads: ReadPool
    private let done: @Sendable () -> Void
    private var rest: Int
    private static let pieceBytes = 64 << 10

    init(_ file: PublicFile, _ stream: HTTPStream, _ reads: ReadPool, done: @escaping @Sendable () -> Void) {
        (self.file, self.stream, self.reads, self.done) = (file, stream, reads, done)
        rest = file.byteCount
        stream.onClose = { self.end() }
    }

    func sendNext() {
        guard stream.isOpen else { return }
        guard rest > 0 else {
            end()
            return stream.finish()
        }
        let count = min(rest, PublicFileSender.pieceBytes)
        let isTaken = reads.run { [self] in
            let piece = file.read(count)
            stream.loop.execute { self.take(piece) }
        }
        if !isTaken { abort() }
    }

    private func take(_ piece: Bytes?) {
        guard stream.isOpen else { return }
        // Shorter than it was: its length has been announced.
        guard let piece, !piece.isEmpty else { return abort() }
        rest -= piece.count
        stream.write(piece)
        guard stream.bufferedBytes > HTTPStream.lowWaterBytes else { return sendNext() }
        stream.onDrain = { [self] in
            stream.onDrain = nil
            sendNext()
        }
    }

    private func abort() {
        end()
        stream.abort()
    }

    private func end() {
        stream.onDrain = nil
        stream.onClose = nil
        done()
    }
}
