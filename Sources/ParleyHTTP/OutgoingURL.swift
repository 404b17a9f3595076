internal import CCurl

/// The parts of a URL as libcurl reads them, so that a check sees what is called, not what another parser makes of the text.
package struct OutgoingURL: Sendable {
    /// `http` or `https`.
    package let scheme: String
    /// Without the brackets of an IPv6 address.
    package let host: String
    /// Scheme, host and, where it is not the usual one, port: the part that may be logged.
    package let origin: String
    package let hasCredentials: Bool
    package let hasFragment: Bool

    /// Whether it leads to this machine: a proxy, which is another, would look for it at its own place.
    package var isLoopback: Bool {
        let name = String((host.hasSuffix(".") ? host.dropLast() : host[...]).lowercased())
        return name == "localhost" || name.hasSuffix(".localhost") || IPAddress(numericHost: name)?.isLoopback == true
    }

    /// - Throws: ``OutgoingError`` with code `invalid_url`, which does not repeat the URL.
    package init(_ text: String) throws(OutgoingError) {
        guard text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw OutgoingError(code: "invalid_url", message: "it has a space, a control character or one outside ASCII")
        }
        let handle = curl_url()
        defer { curl_url_cleanup(handle) }
        let status = curl_url_set(handle, CURLUPART_URL, text, 0)
        guard status == CURLUE_OK else {
            throw OutgoingError(code: "invalid_url", message: String(cString: curl_url_strerror(status)).lowercased())
        }
        func part(_ part: CURLUPart, _ flags: Int32 = 0) -> String? {
            var value: UnsafeMutablePointer<CChar>?
            guard curl_url_get(handle, part, &value, UInt32(flags)) == CURLUE_OK, let value else { return nil }
            defer { curl_free(value) }
            return String(cString: value)
        }
        guard let scheme = part(CURLUPART_SCHEME), ["http", "https"].contains(scheme), let host = part(CURLUPART_HOST), !host.isEmpty else {
            throw OutgoingError(code: "invalid_url", message: "the scheme is neither http nor https, or there is no host")
        }
        self.scheme = scheme
        self.host = host.hasPrefix("[") ? String(host.dropFirst().dropLast()) : host
        origin = "\(scheme)://\(host)" + (part(CURLUPART_PORT).map { ":\($0)" } ?? "")
        hasCredentials = part(CURLUPART_USER) != nil || part(CURLUPART_PASSWORD) != nil
        hasFragment = part(CURLUPART_FRAGMENT) != nil
    }
}
