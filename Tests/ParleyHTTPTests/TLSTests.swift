import Foundation
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyHTTP

/// Runs a program of the system; returns its output.
private func run(_ words: String..., input: String = "") throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/env")
    process.arguments = ["timeout", "20"] + words
    let (output, feed) = (Pipe(), Pipe())
    (process.standardOutput, process.standardError, process.standardInput) = (output, output, feed)
    try process.run()
    if !input.isEmpty { try feed.fileHandleForWriting.write(contentsOf: Data(input.utf8)) }
    try feed.fileHandleForWriting.close()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, text)
}

/// A folder with a certificate for localhost that it signed itself.
private final class Certificate: Sendable {
    let folder: String
    var certificate: String { folder + "/cert.pem" }
    var key: String { folder + "/key.pem" }

    init(_ name: String = "first") throws {
        folder = NSTemporaryDirectory() + "parley-tls-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try make(name)
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    func make(_ name: String) throws {
        let made = try run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
            "/O=\(name)/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate)
        guard made.status == 0 else { throw TestFailure(made.output) }
    }

    func identity() throws -> TLSIdentity { try TLSIdentity(certificateFile: certificate, keyFile: key) }
}

private let large = Bytes((0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) })

@Suite struct `HTTP over TLS` {
    private let certificate: Certificate
    private let identity: TLSIdentity
    private let server: TestServer

    init() throws {
        let certificate = try Certificate()
        let identity = try certificate.identity()
        (self.certificate, self.identity) = (certificate, identity)
        server = try TestServer {
            $0.tls = identity
            $0.handshakeTimeout = .milliseconds(300)
        } handle: { request, responder in
            switch request.path {
            case "/large": responder.respond(status: 200, body: large)
            case "/stream":
                let stream = responder.stream()
                stream.onClose = {}
                for number in 0..<5 { stream.write(Bytes("data: \(number)\n\n".utf8)) }
                stream.finish()
            default:
                responder.respond(
                    status: 200, headers: [("X-Secure", String(request.isSecure))],
                    body: Bytes("\(request.method) \(request.body.count)".utf8))
            }
        }
    }

    private func curl(_ path: String, _ options: String...) throws -> (status: Int32, output: String) {
        let words = ["curl", "-sS", "--cacert", certificate.certificate] + options + ["https://localhost:\(server.port)\(path)"]
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments = ["timeout", "20"] + words
        let output = Pipe()
        (process.standardOutput, process.standardError) = (output, output)
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return (process.terminationStatus, text)
    }

    @Test func `curl asks, sends much and gets much`() throws {
        #expect(try curl("/", "-i").output.contains("X-Secure: true"))
        let file = certificate.folder + "/large"
        try Data(large).write(to: URL(filePath: file))
        #expect(try curl("/", "--data-binary", "@" + file).output == "POST \(large.count)")
        let got = certificate.folder + "/got"
        #expect(try curl("/large", "-o", got).status == 0)
        #expect(try Data(contentsOf: URL(filePath: got)) == Data(large))
        #expect(try curl("/stream").output.contains("data: 4"))
    }

    @Test func `it is TLS 1_2 or later, with forward secrecy, and HTTP 1_1 by ALPN`() throws {
        func connect(_ options: String...) throws -> String {
            let words = ["openssl", "s_client", "-connect", "localhost:\(server.port)", "-CAfile", certificate.certificate] + options
            return try openssl(words, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        }
        let modern = try connect("-alpn", "h2,http/1.1", "-ign_eof")
        #expect(modern.contains("TLSv1.3") && modern.contains("ALPN protocol: http/1.1") && modern.contains("Verify return code: 0"))
        #expect(modern.contains("HTTP/1.1 200 OK"))
        #expect(try connect("-tls1_2", "-ign_eof").contains("HTTP/1.1 200 OK"))
        for refused in [["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], ["-tls1_2", "-cipher", "AES256-SHA"], ["-alpn", "h2"]] {
            let output = try openssl(["openssl", "s_client", "-connect", "localhost:\(server.port)"] + refused, "")
            #expect(!output.contains("HTTP/1.1 200 OK") && (output.contains("alert") || output.contains("error")), "\(refused): \(output)")
        }
        // R asks for another handshake in the middle, which old TLS allows.
        let renegotiated = try openssl(["openssl", "s_client", "-connect", "localhost:\(server.port)", "-tls1_2"], "R\n")
        #expect(renegotiated.contains("no renegotiation"), "\(renegotiated.suffix(300))")
    }

    private func openssl(_ words: [String], _ input: String) throws -> String {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments = ["timeout", "5"] + words
        let (output, feed) = (Pipe(), Pipe())
        (process.standardOutput, process.standardError, process.standardInput) = (output, output, feed)
        try process.run()
        try? feed.fileHandleForWriting.write(contentsOf: Data(input.utf8))
        if !words.contains("-ign_eof"), !input.hasPrefix("R") { try feed.fileHandleForWriting.close() }
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return text
    }

    @Test func `Python reads in pieces, pipelines, and sees a clean end`() throws {
        let script = """
            import socket, ssl, sys
            context = ssl.create_default_context(cafile=sys.argv[1])
            raw = socket.create_connection(("localhost", int(sys.argv[2])), 10)
            tls = context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
            tls.sendall(b"GET /1 HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n" * 30)
            tls.sendall(b"GET /large HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
            got = 0
            while True:
                part = tls.recv(5000)  # SSLEOFError without close_notify
                if not part: break
                got += len(part)
            print("got", got > 3000000, tls.version())
            """
        let result = try run("python3", "-c", script, certificate.certificate, String(server.port))
        #expect(result.output.contains("got True"), "\(result.output)")
    }

    @Test func `says which hosts its certificate covers`() {
        #expect(identity.names == ["localhost", "127.0.0.1"])
        #expect(["localhost", "127.0.0.1", "::1", "example.com", "127.0.0.2"].map(identity.covers) == [true, true, false, false, false])
        #expect(identity.isSelfSigned)
    }

    @Test func `the certificate is replaced while it serves, and a wrong one is not taken`() throws {
        #expect(try curl("/", "-v").output.contains("O=first"))
        try certificate.make("second")
        #expect(try curl("/").status != 0, "still the first one")
        try identity.reload()
        #expect(try curl("/", "-v").output.contains("O=second"))
        try Data("nothing".utf8).write(to: URL(filePath: certificate.certificate))
        #expect(throws: TLSError.self) { try identity.reload() }
        let other = try Certificate("other")
        let error = #expect(throws: TLSError.self) { try TLSIdentity(certificateFile: other.certificate, keyFile: certificate.key) }
        #expect(error?.message.contains(certificate.key) == true)
        #expect(throws: TLSError.self) { try TLSIdentity(certificateFile: "/nowhere", keyFile: other.key) }
    }

    @Test func `who does not shake hands is let go`() throws {
        let silent = try server.connect()
        #expect(try silent.readToEnd("the end of a connection without a handshake") == [])
        let plain = try server.connect()
        try plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        let answer = try plain.readToEnd("the end of a connection in plain text")
        #expect(answer.text.hasPrefix("HTTP/1.1 400 ") && answer.text.contains("\"code\":\"tls_required\""), "\(answer.text)")
        #expect(answer.text.contains("\"type\":\"urn:parley:problem:tls_required\""), "\(answer.text)")
        #expect(try curl("/").output == "GET 0")
    }

    @Test func `bytes that were changed on the way end the connection`() throws {
        for _ in 0..<20 {
            let client = try server.connect()
            try client.send([0x16, 0x03, 0x01, 0x00, 0x20] + (0..<32).map { _ in UInt8.random(in: 0...255) })
            _ = try client.readToEnd("the end of a broken handshake")
        }
        #expect(try curl("/").output == "GET 0")
    }
}

@Suite struct `A full server` {
    @Test func `closes a connection that asks nothing for one that does`() throws {
        let server = try TestServer {
            $0.connectionCountMax = 20
        } handle: { _, responder in
            responder.respond(status: 200)
        }
        var silent: [TestClient] = []
        for _ in 0..<20 {
            let client = try server.connect()
            if silent.count % 2 == 0 { try client.send("GET / HT") }
            silent.append(client)
        }
        try RealTime.until("all connections to be there") { server.server.connectionCount == 20 }
        #expect(try refused(server), "they have only just come")
        RealTime.pass(.milliseconds(1_200))  // More than the patience with a connection that asks nothing.
        for _ in 0..<50 {
            let client = try server.connect()
            try client.send(get())
            #expect(try client.answer().status == 200)
        }
        #expect(server.server.connectionCount <= 20)
    }

    @Test func `keeps those that have asked, and tells the others`() throws {
        let server = try TestServer {
            $0.connectionCountMax = 3
            $0.patience = .seconds(30)
        } handle: { _, responder in
            responder.respond(status: 200)
        }
        let clients = try (0..<3).map { _ in try server.connect() }
        for client in clients {
            try client.send(get())
            _ = try client.answer()
        }
        #expect(try refused(server))
        for client in clients {
            try client.send(get())
            #expect(try client.answer().status == 200)
        }
    }

    private func refused(_ server: TestServer) throws -> Bool {
        let client = try server.connect()
        let answer = try client.answer()
        return answer.status == 503 && answer.text.contains("too_many_connections")
    }
}
