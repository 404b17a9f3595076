import ParleySystem
import Testing

@testable import ParleyChannels

@Suite struct `The members of an entry` {
    private func members(_ text: String) -> EntryMembers { Bytes(text.utf8).withUnsafeBytes { EntryMembers($0) } }

    @Test func `become values when they are asked for`() {
        let entry = members(#""by":"ann","text":"h\u00e9","data":{"a":[1,{"b":null}]},"if_turn":"0a""#)
        #expect(entry["by"] == "ann" && entry["text"] == "hé" && entry["data"] == ["a": [1, ["b": .null]]])
        #expect(entry["a"] == nil && entry["b"] == nil)
        #expect(entry.json["if_turn"] == "0a")
        #expect(EntryMembers()["by"] == nil && EntryMembers(.null)["by"] == nil)
    }

    @Test(arguments: [
        #"[[],{},[[]] , { "a" : [ ] } ]"#, #"{"a":1,"b":-0,"c":1e2,"d":12345678901234567890,"e":0.1,"f":123456789012345678901234567890}"#,
        #""\u0041\n\/\"\\ \ud83d\ude00 \ud800 \u0001""#, "[true,false,null]", #"{"\u0061":{"b c":"d"}}"#, "  7 ",
        #"{"a":1,"b":{"x":1,"x":2},"a":3}"#,
    ])
    func `say data as its value would be written`(data: String) throws {
        #expect(members("\"by\":\"ann\",\"data\":\(data)").messageText == (try JSON.parse(data)).text)
    }

    @Test func `say their text before their data`() {
        #expect(members(#""text":"a","data":[]"#).messageText == "a")
        #expect(members(#""text":7,"data":[ 1, 2 ]"#).messageText == "[1,2]")
        #expect(members(#""by":"ann""#).messageText == nil)
    }
}
