import ParleySystem
import Testing

@testable import ParleyHTTP

@Suite struct `The address policy` {
    @Test(arguments: [
        // loopback, unspecified
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::",
        // private
        "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "fc00::1", "fd12:3456::1",
        // link-local with the metadata of clouds, and metadata elsewhere
        "169.254.0.1", "169.254.169.254", "169.254.170.2", "fe80::1", "febf::1", "fd00:ec2::254", "100.100.100.200", "192.0.0.192",
        // behind a provider's NAT
        "100.64.0.1", "100.127.255.255",
        // multicast, broadcast, reserved
        "224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1", "ff02::1", "ff05::2",
        // documentation and benchmarks
        "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "2001:db8::1", "3fff::1",
        // forms of IPv6 that represent an address of IPv4
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::100.64.0.1", "64:ff9b:1::8.8.8.8",
        "2002:7f00:1::", "2002:a00:1::1", "2001::7f00:1",
        // site-local, discard-only, segment routing, not given out
        "fec0::1", "100::1", "5f00::1", "4000::1", "e000::1",
    ])
    func `refuses what is not of the public Internet`(text: String) throws {
        let address = try #require(IPAddress(text))
        #expect(!AddressPolicy.publicOnly.permits(address))
        #expect(AddressPolicy.any.permits(address))
    }

    @Test(arguments: [
        "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "126.255.255.255", "128.0.0.1", "172.15.255.255", "172.32.0.1", "192.167.1.1",
        "192.169.1.1", "169.253.1.1", "169.255.1.1", "100.63.255.255", "100.128.0.1", "192.0.1.1", "198.17.1.1", "198.20.1.1",
        "223.255.255.255", "2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2003::1", "2001:200::1", "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ])
    func `permits what is`(text: String) throws {
        #expect(AddressPolicy.publicOnly.permits(try #require(IPAddress(text))))
    }

    @Test(arguments: [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7F.0.0.1", "017700000001", "0177.0.0.1", "0177.0.0.01", "0",
        "0x0", "10.1", "0xA000001", "3232235521", "0xc0a80001", "0300.0250.1", "2852039166", "0xa9fea9fe", "169.254.43518", "::1",
        "::ffff:7f00:1", "0:0:0:0:0:ffff:127.0.0.1",
    ])
    func `knows an address by what it resolves to, not by how it is written`(text: String) throws {
        #expect(!(try #require(IPAddress(numericHost: text)).isPublic))
    }

    @Test(arguments: ["", "localhost", "example.com", "1.2.3.4.5", "256.0.0.1", "12345678901", "1.2.3.4 ", "fe80::g"])
    func `takes nothing else for a number`(text: String) {
        #expect(IPAddress(numericHost: text) == nil)
    }

    @Test func `an address reads as it is usually written`() {
        for text in ["127.0.0.1", "2001:db8::1", "::", "64:ff9b::808:808"] { #expect(IPAddress(text)?.description == text) }
    }
}

@Suite struct `Calls under an address policy` {
    private func request(_ url: String, _ addresses: AddressPolicy) -> OutgoingRequest {
        var request = OutgoingRequest(url: url)
        request.addresses = addresses
        return request
    }

    @Test(arguments: ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::ffff:127.0.0.1]", "[::1]"])
    func `open no connection to this machine, however it is spelt`(host: String) throws {
        let server = try TestServer { _, responder in responder.respond(status: 200) }
        let recorder = Recorder()
        let transport = CurlTransport(server.group.next())
        _ = transport.start(request("http://\(host):\(server.port)/secret?key=1", .publicOnly), recorder)
        #expect(try recorder.end() == [.ended("address_refused")])
        #expect(server.server.connectionCount == 0)
        let error = try recorder.errors.next("the error")
        #expect(!error.reason.contains("secret") && !error.message.contains("key=1"))
    }

    @Test func `use no connection that a call without it has opened`() throws {
        let server = try TestServer { _, responder in responder.respond(status: 200) }
        let transport = CurlTransport(server.group.next())
        let url = "http://127.0.0.1:\(server.port)/"
        let first = Recorder()
        _ = transport.start(request(url, .any), first)
        #expect(try first.end() == [.head(200), .ended(nil)])
        let second = Recorder()
        _ = transport.start(request(url, .publicOnly), second)
        #expect(try second.end() == [.ended("address_refused")])
        let third = Recorder()
        _ = transport.start(request(url, .any), third)
        #expect(try third.end() == [.head(200), .ended(nil)])
    }
}
