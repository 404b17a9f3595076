internal import Glibc
internal import ParleyHTTP
internal import ParleySystem

/// A folder whose files the server serves without a key, for `--public`: web pages that talk to the node they come from.
///
/// A path is opened segment by segment, below the folder as it was when the server started. Nothing that begins with a dot is served, nothing
/// that is no regular file, and no symbolic link is followed, so that no name leads out of the folder.
package final class PublicFolder: Sendable {
    let path: String
    private let descriptor: Int32

    /// - Throws: The system's reason why the folder cannot be opened.
    package init(_ path: String) throws(PublicFolderError) {
        self.path = path
        descriptor = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw PublicFolderError(path: path, reason: String(cString: strerror(errno))) }
    }

    deinit { close(descriptor) }

    enum Found {
        case file(PublicFile)
        /// A folder that was asked for without a slash at its end.
        case folder
    }

    /// Finds the file at the path of a URL; `nil` when there is none to be served. Blocks on the disk.
    func find(_ path: ArraySlice<UInt8>) -> Found? {
        guard let names = PublicFolder.segments(path) else { return nil }
        let isFolder = names.last == ""
        var place = dup(descriptor)
        for name in isFolder ? names.dropLast() + ["index.html"] : names[...] {
            let next = openat(place, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
            close(place)
            guard next >= 0 else { return nil }
            place = next
        }
        guard let file = PublicFile(place, name: isFolder ? "index.html" : names.last!) else {
            defer { close(place) }
            return !isFolder && PublicFolder.isFolder(place) ? .folder : nil
        }
        return .file(file)
    }

    /// The names on the way, the last one empty for a folder; `nil` where one is not to be served.
    private static func segments(_ path: ArraySlice<UInt8>) -> [String]? {
        // Split before it is decoded: a slash that is encoded is part of a name, and no name has one.
        let parts = path.dropFirst().split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
        var names: [String] = []
        for (index, part) in parts.enumerated() {
            guard let name = PercentEncoding.decode(part), name.utf8.count <= 255 else { return nil }
            let isLast = index == parts.count - 1
            guard !name.isEmpty || isLast, !name.utf8.starts(with: ".".utf8), !name.utf8.contains(where: { $0 == 0 || $0 == 0x2f }) else {
                return nil
            }
            names.append(name)
        }
        return names.isEmpty ? nil : names
    }

    private static func isFolder(_ descriptor: Int32) -> Bool {
        var status = Glibc.stat()
        return fstat(descriptor, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }
}

/// Why a folder cannot be served.
package struct PublicFolderError: Error, CustomStringConvertible {
    package let path: String
    package let reason: String
    package var description: String {
        "--public is '\(path)', which cannot be opened: \(reason). Name a folder that this process can read."
    }
}

/// An open file of a ``PublicFolder``. Belongs to one request.
final class PublicFile: @unchecked Sendable {  // Guard: used by one piece of work at a time.
    let byteCount: Int
    let tag: String
    let contentType: String
    private let descriptor: Int32

    /// Takes the descriptor, unless it is not that of a regular file: then returns `nil`.
    init?(_ descriptor: Int32, name: String) {
        var status = Glibc.stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        self.descriptor = descriptor
        byteCount = Int(status.st_size)
        let changed = UInt64(status.st_mtim.tv_sec) &* 1_000_000_000 &+ UInt64(status.st_mtim.tv_nsec)
        tag = "\"\(String(status.st_ino, radix: 16))-\(String(status.st_size, radix: 16))-\(String(changed, radix: 16))\""
        contentType = PublicFile.contentType(name)
    }

    deinit { close(descriptor) }

    /// The next bytes, at most `count`; empty at the end. Blocks on the disk.
    func read(_ count: Int) -> Bytes? {
        var failed = false
        let bytes = Bytes(unsafeUninitializedCapacity: count) { buffer, filled in
            let result = Glibc.read(descriptor, buffer.baseAddress, count)
            failed = result < 0
            filled = max(0, result)
        }
        return failed ? nil : bytes
    }

    private static let types = [
        "html": "text/html; charset=utf-8", "htm": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8", "mjs": "text/javascript; charset=utf-8", "json": "application/json",
        "map": "application/json", "txt": "text/plain; charset=utf-8", "md": "text/markdown; charset=utf-8",
        "xml": "application/xml", "svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg",
        "gif": "image/gif", "webp": "image/webp", "avif": "image/avif", "ico": "image/x-icon", "woff": "font/woff", "woff2": "font/woff2",
        "wasm": "application/wasm", "pdf": "application/pdf", "mp3": "audio/mpeg", "mp4": "video/mp4", "webm": "video/webm",
        "webmanifest": "application/manifest+json",
    ]

    /// The type by the end of the name; anything else is bytes, which browsers save instead of showing.
    private static func contentType(_ name: String) -> String {
        guard let dot = name.lastIndex(of: ".") else { return ContentTypeText.bytes }
        return types[name[name.index(after: dot)...].lowercased()] ?? ContentTypeText.bytes
    }
}
