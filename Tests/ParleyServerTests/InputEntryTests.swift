import Foundation
import ParleyAgents
import ParleyChannels
import ParleySystem
import Testing

@Suite struct `Entries from clients` {
    @Test(arguments: [
        #"{"type":"message","text":"a"}"#, #"{"type":"message","data":null}"#, #"{"type":"message","data":{"a":[1]},"id":"x"}"#,
        #"{"type":"steer","text":""}"#, #"{"type":"interrupt"}"#, #"{"type":"interrupt","reason":"r","text":"t"}"#, #"{"type":"cancel"}"#,
        #"{"type":"approve","approval":"1/x","args_sha256":"f"}"#, #"{"type":"deny","approval":"1/x"}"#,
        #"{"type":"signal","name":"n","data":1}"#,
        #"{"type":"close"}"#, #"{"type":"message","text":"a","if_turn":"0000000000000001"}"#,
        #"{"type":"cancel","if_offset":"0000000000000000"}"#,
    ])
    func `are taken`(_ text: String) throws { _ = try InputEntry(Bytes(text.utf8), principal: "me") }

    @Test(arguments: [
        ("{}", "invalid_entry"), ("[]", "invalid_entry"), ("1", "invalid_entry"), (#"{"type":1}"#, "invalid_entry"),
        (#"{"type":"x"}"#, "unknown_entry_type"),
        (#"{"type":"turn.started"}"#, "unknown_entry_type"), (#"{"type":"text"}"#, "unknown_entry_type"),
        (#"{"type":"receipt"}"#, "unknown_entry_type"),
        (#"{"type":"Message","text":"a"}"#, "unknown_entry_type"), (#"{"type":"message"}"#, "invalid_entry"),
        (#"{"type":"message","text":1}"#, "invalid_entry"),
        (#"{"type":"steer"}"#, "invalid_entry"), (#"{"type":"approve"}"#, "invalid_entry"),
        (#"{"type":"deny","approval":1}"#, "invalid_entry"),
        (#"{"type":"interrupt","text":null}"#, "invalid_entry"), (#"{"type":"interrupt","text":1}"#, "invalid_entry"),
        (#"{"type":"approve","approval":"1/x","args_sha256":null}"#, "invalid_entry"),
        (#"{"type":"signal"}"#, "invalid_entry"), (#"{"type":"close","id":1}"#, "invalid_entry"),
        (#"{"type":"close","id":""}"#, "invalid_entry"),
        (#"{"type":"message","text":"a"} x"#, "invalid_entry"),
        (#"{"type":"cancel","if_turn":1}"#, "invalid_entry"), (#"{"type":"cancel","if_offset":"x"}"#, "invalid_entry"),
        (#"{"type":"cancel","if_offset":null}"#, "invalid_entry"),
    ])
    func `are refused`(_ text: String, _ code: String) {
        #expect { try InputEntry(Bytes(text.utf8), principal: "me") } throws: { ($0 as? ChannelError)?.code == code }
    }

    @Test func `an unknown type names those there are`() {
        #expect { try InputEntry(Bytes(#"{"type":"x"}"#.utf8), principal: "me") } throws: { error in
            ["message", "steer", "interrupt", "cancel", "approve", "deny", "signal", "close"].allSatisfy { "\(error)".contains($0) }
        }
    }

    @Test(arguments: [
        (#"{"type":"message","type":"cancel","text":"a"}"#, "type"), (#"{"type":"message","text":"evil","text":"safe"}"#, "text"),
        (#"{"type":"message","text":"evil","t\u0065xt":"safe"}"#, "text"),
        (#"{"type":"message","data":{"a":[{"path":1,"p\u0061th":2}]}}"#, "path"),
        (#"{"type":"approve","approval":"1/x","approval":"1/y"}"#, "approval"), (#"{"type":"cancel","by":1,"by":2}"#, "by"),
    ])
    func `that have a member twice are refused, naming it`(_ text: String, _ name: String) {
        #expect { try InputEntry(Bytes(text.utf8), principal: "me") } throws: { error in
            (error as? ChannelError)?.code == "invalid_entry" && "\(error)".contains("'\(name)'")
        }
    }

    @Test func `members are kept as they came, in order, and stamps are not the client's`() throws {
        let text = #"{ "z" : 1.0 ,"offset":1, "\u0074ype":"message","at":2,"text":"\u00e4 / \/","by":[3], "a" : { "b" : [ ] } }"#
        let entry = try InputEntry.prepare(Bytes(text.utf8), principal: "a \"b\"")
        guard case .members(let members, let hasID) = entry.content else { throw TestFailure("no members") }
        #expect(members.text == #""by":"a \"b\"","z":1.0,"text":"\u00e4 / \/","a":{ "b" : [ ] }"#)
        #expect(!hasID)
        #expect(entry.kind == .message)
    }

    @Test(arguments: InputEntry.stampedMembers.sorted())
    func `what the server says of an entry, its sender does not`(_ name: String) throws {
        for spelling in [name, "\\u00" + hexadecimal([name.utf8.first!]) + name.dropFirst()] {
            for value in ["\"x\"", #"{"state":"applied"}"#, "[1]", "null"] {
                let text = #"{"type":"message","\#(spelling)":\#(value),"text":"a"}"#
                let entry = try InputEntry.prepare(Bytes(text.utf8), principal: "me")
                guard case .members(let members, _) = entry.content else { throw TestFailure("no members") }
                #expect(members.text == #""by":"me","text":"a""#)
            }
        }
    }

    @Test func `all that the server stamps is in the protocol's list`() throws {
        let protocolText = try String(contentsOf: documents.appending(path: "protocol.md"), encoding: .utf8)
        for name in InputEntry.stampedMembers.union(["type"]) { #expect(protocolText.contains("`\(name)`"), "\(name)") }
    }

    /// `docs` of this package.
    private var documents: URL {
        URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().appending(path: "docs")
    }

    @Test func `the limit counts the stamps`() throws {
        func entry(_ count: Int) throws -> NewEntry {
            try InputEntry.prepare(Bytes(#"{"type":"message","text":"\#(String(repeating: "x", count: count))"}"#.utf8), principal: "p")
        }
        func wireBytes(_ count: Int) throws -> Int {
            var frame = Bytes()
            try entry(count).write(to: &frame, at: Timestamp(milliseconds: 0))
            var wire = Bytes()
            frame.withUnsafeBytes { bytes in
                _ = Frame.walk(bytes, first: 1) { offset, frame in
                    frame.writeJSON(offset: offset, owner: "o", to: &wire)
                    return true
                }
            }
            return wire.count
        }
        let room = InputEntry.bytesMax - (try wireBytes(1) - 1)
        #expect(try wireBytes(room) == InputEntry.bytesMax)
        #expect { try entry(room + 1) } throws: { ($0 as? ChannelError)?.code == "entry_too_large" }
    }
}
