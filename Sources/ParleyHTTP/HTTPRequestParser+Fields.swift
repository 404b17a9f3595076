/// The meaning of a head's fields for the connection and for the body.
extension HTTPRequestParser {
    /// Decides where the body ends and whether the connection stays. Ambiguity is an error, never a choice.
    mutating func finishHead() throws(HTTPParseError) {
        var hostCount = 0
        var hasTransferEncoding = false
        var closes = false
        var keeps = false
        for index in head.fields.indices {
            trimEnd(ofField: index)
            let field = head.fields[index]
            switch field.name.count {
            case 4 where head.matches(field.name, "host"):
                hostCount += 1
                try checkHost(field.value)
            case 6 where head.matches(field.name, "expect"):
                guard head.matches(field.value, "100-continue") else {
                    throw HTTPParseError(417, "expectation_failed", "Expect asks for something other than 100-continue")
                }
                head.expectsContinue = true
            case 10 where head.matches(field.name, "connection"):
                try readConnection(field.value, closes: &closes, keeps: &keeps)
            case 14 where head.matches(field.name, "content-length"):
                guard head.contentLength == nil else { throw .bad("there is more than one Content-Length") }
                head.contentLength = try readLength(field.value)
            case 17 where head.matches(field.name, "transfer-encoding"):
                guard !hasTransferEncoding else { throw .bad("there is more than one Transfer-Encoding") }
                hasTransferEncoding = true
                try readTransferEncoding(field.value)
            default: break
            }
        }
        if hasTransferEncoding {
            guard head.contentLength == nil else { throw .bad("there is both a Content-Length and a Transfer-Encoding") }
            guard head.minorVersion == 1 else { throw .bad("HTTP/1.0 knows no Transfer-Encoding") }
        }
        guard hostCount == 1 || (hostCount == 0 && head.minorVersion == 0) else {
            throw .bad(hostCount == 0 ? "the Host field is missing" : "there is more than one Host")
        }
        if let authority = head.targetAuthority {
            guard !authority.isEmpty, head.bytes[authority].allSatisfy(HTTPGrammar.isHost) else {
                throw .bad("the request target's host is not a host")
            }
        }
        if head.minorVersion == 0 { head.expectsContinue = false }  // RFC 9110, section 10.1.1
        head.keepsAlive = !closes && (keeps || head.minorVersion == 1)
    }

    private mutating func trimEnd(ofField index: Int) {
        let value = head.fields[index].value
        var end = value.upperBound
        while end > value.lowerBound, HTTPGrammar.isBlank(head.bytes[Int(end) - 1]) { end -= 1 }
        head.fields[index].value = value.lowerBound..<end
    }

    private func bytes(_ range: Range<Int32>) -> ArraySlice<UInt8> { head.bytes[Int(range.lowerBound)..<Int(range.upperBound)] }

    /// A host may be empty.
    private func checkHost(_ value: Range<Int32>) throws(HTTPParseError) {
        guard bytes(value).allSatisfy(HTTPGrammar.isHost) else { throw .bad("the Host is not a host") }
    }

    private func readLength(_ value: Range<Int32>) throws(HTTPParseError) -> Int {
        guard !value.isEmpty else { throw .bad("the Content-Length is empty") }
        var length = 0
        for byte in bytes(value) {
            guard (0x30...0x39).contains(byte) else { throw .bad("the Content-Length is not a number of digits only") }
            let (tenfold, overflowsTenfold) = length.multipliedReportingOverflow(by: 10)
            let (sum, overflows) = tenfold.addingReportingOverflow(Int(byte - 0x30))
            guard !overflowsTenfold, !overflows else { throw .bad("the Content-Length does not fit into 63 bits") }
            length = sum
        }
        return length
    }

    private mutating func readTransferEncoding(_ value: Range<Int32>) throws(HTTPParseError) {
        guard head.matches(value, "chunked") else {
            throw HTTPParseError(501, "unsupported_transfer_coding", "the Transfer-Encoding is not exactly \"chunked\"")
        }
        head.isChunked = true
    }

    /// `Connection` is a list of tokens; empty elements are allowed, anything else is not.
    private func readConnection(_ value: Range<Int32>, closes: inout Bool, keeps: inout Bool) throws(HTTPParseError) {
        for element in bytes(value).split(separator: UInt8(ascii: ","), omittingEmptySubsequences: true) {
            var start = element.startIndex
            var end = element.endIndex
            while start < end, HTTPGrammar.isBlank(element[start]) { start += 1 }
            while start < end, HTTPGrammar.isBlank(element[end - 1]) { end -= 1 }
            guard element[start..<end].allSatisfy(HTTPGrammar.isToken) else { throw .bad("the Connection field is not a list of tokens") }
            let option = Int32(start)..<Int32(end)
            if head.matches(option, "close") { closes = true }
            if head.matches(option, "keep-alive") { keeps = true }
        }
    }
}
