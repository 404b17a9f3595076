internal import Glibc
internal import ParleySystem

/// A file in the format of RocksDB's write-ahead logs and manifests, looked at before RocksDB opens it.
///
///     file      blocks of 32 KB, filled with pieces; fewer than 7 bytes at the end of a block are filler
///     piece     u32 masked CRC-32C of type and payload | u16 bytes of payload | u8 type | payload     (little-endian)
///     record    one piece of type 1; or of type 2, any number of type 3, and of type 4
///
/// A crash in the middle of a write leaves a file whose last record was not written as a whole. RocksDB takes for such a cut anything in the last
/// block that does not fit into the file, so that one rotten bit of a length hides every acknowledged record behind it; and it takes for damage what
/// a power cut can also leave: a file that has grown over sectors that were never written. Both are told apart here.
struct RecordFile {
    /// How a file ends.
    enum End: Equatable {
        /// With the last byte of a record.
        case whole
        /// Within a record that begins here, and was never written as a whole.
        case cut(at: Int)
        /// With bytes that were written and have changed, here.
        case damaged(at: Int)
    }

    let path: String
    let byteCount: Int
    private let file: OpenFile

    private static let blockBytes = 32 << 10
    private static let headerBytes = 7
    /// The unit that a disk writes as a whole or not at all.
    private static let sectorBytes = 512
    /// Fewer zeros than this may well be contents.
    private static let zerosMin = 8

    /// - Throws: ``LogError`` with code `data_folder_inaccessible`.
    init(_ path: String) throws(LogError) {
        self.path = path
        file = try OpenFile(path)
        byteCount = try file.byteCount
    }

    /// How the file ends. Cost: reads the file once, without its checksums but those of the last record.
    func end() throws(LogError) -> End {
        var record = 0
        let misfit = try walk { piece in
            if piece.beginsRecord { record = piece.place }
            return true
        }
        // The bytes before a place that makes no sense may also have been written in part only.
        guard let damaged = try firstDamage(from: record) else { return try isComplete(record) ? .whole : .cut(at: record) }
        guard let misfit, misfit.place == damaged.place else { return try judge(damaged, record: record) }
        return try judge(misfit, record: misfit.isWithinRecord ? record : misfit.place)
    }

    /// The first place with a wrong checksum, or that makes no sense. Cost: reads and checks the file.
    func firstDamage() throws(LogError) -> Int? { try firstDamage(from: 0)?.place }

    /// Cuts the file off, and has that durable.
    static func cut(_ path: String, at place: Int) throws(LogError) {
        let fd = open(path, O_WRONLY | O_CLOEXEC)
        defer { if fd >= 0 { close(fd) } }
        guard fd >= 0, ftruncate(fd, place) == 0, fsync(fd) == 0 else {
            throw LogError(.inaccessible, "cannot cut '\(path)' off at byte \(place): \(String(cString: strerror(errno)))")
        }
    }

    // MARK: Judging

    /// Judges a bad place of a record that begins at `record`: was it never written, or has it changed?
    private func judge(_ piece: Piece, record: Int) throws(LogError) -> End {
        // Only the last record can have been in flight: every other was synced before it.
        if try hasRecord(after: piece) || piece.isWholeWithAnotherLength || piece.hasOneBitChanged { return .damaged(at: piece.place) }
        if piece.endsWithFile || piece.isUnwritten { return .cut(at: record) }
        let end = try self.end(ofRecordAt: record)
        if try hasUnwrittenSector(in: record..<end) { return .cut(at: record) }
        return try isTorn(piece, before: end) ? .cut(at: record) : .damaged(at: piece.place)
    }

    /// The end of the record that begins here, by the lengths of its pieces; for an incomplete one, the end of the file.
    private func end(ofRecordAt record: Int) throws(LogError) -> Int {
        var end: Int?
        _ = try walk(blocks: (record / RecordFile.blockBytes)..<blockCount) { piece in
            if piece.place >= record, piece.endsRecord { end = piece.place + RecordFile.headerBytes + piece.byteCount }
            return end == nil
        }
        return end ?? byteCount
    }

    /// Whether nothing was written from some place in the piece on, to the end of the file, whose length had been set before.
    ///
    /// A record may end in zeros of its own: one in which more than a bit has changed is then taken for one that was not written as a whole.
    private func isTorn(_ piece: Piece, before end: Int) throws(LogError) -> Bool {
        let zeros = try startOfZeros()
        guard piece.fits else { return piece.isHeaderTorn && zeros < piece.place + RecordFile.headerBytes }
        return zeros < end && byteCount - zeros >= RecordFile.zerosMin
    }

    /// The start of the zeros with which the file ends.
    private func startOfZeros() throws(LogError) -> Int {
        for index in (0..<blockCount).reversed() {
            if let last = try block(index).lastIndex(where: { $0 != 0 }) { return index * RecordFile.blockBytes + last + 1 }
        }
        return 0
    }

    private func hasRecord(after piece: Piece) throws(LogError) -> Bool {
        if piece.hasRecordBehind { return true }
        var found = false
        for block in (piece.place / RecordFile.blockBytes + 1)..<max(blockCount, piece.place / RecordFile.blockBytes + 1) {
            _ = try walk(blocks: block..<(block + 1)) { piece in
                found = piece.beginsRecord && piece.isIntact
                return !found
            }
            if found { return true }
        }
        return false
    }

    private func hasUnwrittenSector(in record: Range<Int>) throws(LogError) -> Bool {
        for index in (record.lowerBound / RecordFile.blockBytes)..<blockCount {
            let block = try block(index)
            let place = index * RecordFile.blockBytes
            for sector in stride(from: 0, to: block.count, by: RecordFile.sectorBytes) {
                let start = max(sector, record.lowerBound - place)
                let end = min(sector + RecordFile.sectorBytes, block.count, record.upperBound - place)
                if end - start >= RecordFile.zerosMin && block[start..<end].allSatisfy({ $0 == 0 }) { return true }
            }
        }
        return false
    }

    private func firstDamage(from record: Int) throws(LogError) -> Piece? {
        var damaged: Piece?
        let misfit = try walk(blocks: (record / RecordFile.blockBytes)..<blockCount) { piece in
            if piece.place >= record && !piece.isIntact { damaged = piece }
            return damaged == nil
        }
        return damaged ?? misfit
    }

    /// Whether the record that begins here, the last one, has its last piece.
    private func isComplete(_ record: Int) throws(LogError) -> Bool {
        var isComplete = true
        _ = try walk(blocks: (record / RecordFile.blockBytes)..<blockCount) { piece in
            isComplete = piece.endsRecord
            return true
        }
        return isComplete
    }

    // MARK: Reading

    private var blockCount: Int { (byteCount + RecordFile.blockBytes - 1) / RecordFile.blockBytes }

    private func block(_ index: Int) throws(LogError) -> ArraySlice<UInt8> {
        try file.read(at: index * RecordFile.blockBytes, count: min(RecordFile.blockBytes, byteCount - index * RecordFile.blockBytes))[...]
    }

    /// Visits the pieces in order until `visit` returns false.
    /// - Returns: The first that does not fit, or is none.
    private func walk(blocks: Range<Int>? = nil, _ visit: (Piece) -> Bool) throws(LogError) -> Piece? {
        var isWithinRecord = false
        for index in blocks ?? 0..<blockCount {
            let block = try block(index)
            var rest = block
            while rest.startIndex + RecordFile.headerBytes <= RecordFile.blockBytes, !rest.isEmpty {
                var piece = Piece(rest, place: index * RecordFile.blockBytes + rest.startIndex)
                piece.isWithinRecord = isWithinRecord
                guard piece.fits else { return piece }
                guard visit(piece) else { return nil }
                isWithinRecord = !piece.endsRecord
                rest = rest.dropFirst(RecordFile.headerBytes + piece.byteCount)
            }
        }
        return nil
    }

    /// The bytes at a place, up to the end of its block or of the file.
    private struct Piece {
        let place: Int
        /// Whether the pieces before it want another one.
        var isWithinRecord = false
        private let rest: ArraySlice<UInt8>

        init(_ rest: ArraySlice<UInt8>, place: Int) { (self.rest, self.place) = (rest, place) }

        private func byte(_ index: Int) -> UInt8 { rest[rest.startIndex + index] }

        private var hasHeader: Bool { rest.count >= headerBytes }
        private var type: UInt8 { byte(6) }
        var byteCount: Int { Int(byte(4)) | Int(byte(5)) << 8 }
        private var checksum: UInt32 { (0..<4).reduce(0) { $0 | UInt32(byte($1)) << (8 * UInt32($1)) } }

        var fits: Bool { hasHeader && (1...4).contains(type) && headerBytes + byteCount <= rest.count }
        var beginsRecord: Bool { type == 1 || type == 2 }
        var endsRecord: Bool { type == 1 || type == 4 }

        /// Whether it would continue where the file ends, and its block does not.
        var endsWithFile: Bool {
            guard hasHeader else { return true }
            return headerBytes + byteCount > rest.count && headerBytes + byteCount <= blockBytes - rest.startIndex
        }

        var isUnwritten: Bool { rest.prefix(headerBytes).allSatisfy { $0 == 0 } }

        /// Whether the last byte of the header was never written.
        var isHeaderTorn: Bool { hasHeader && type == 0 }

        /// The bytes that the checksum covers.
        private var checked: ArraySlice<UInt8> { rest.dropFirst(6).prefix(1 + byteCount) }

        var isIntact: Bool { fits && CRC32C(of: checked).masked == checksum }

        /// Whether the checksum is right but for one bit, of it or of what it is of.
        var hasOneBitChanged: Bool {
            guard fits else { return false }
            let sum = CRC32C(of: checked)
            return (0..<32).contains { checksum ^ 1 << UInt32($0) == sum.masked }
                || sum.differsByOneBit(from: checksum, count: checked.count)
        }

        /// Whether the checksum matches the bytes here, up to another end.
        var isWholeWithAnotherLength: Bool {
            guard hasHeader else { return false }
            var sum = CRC32C()
            for (count, byte) in rest.dropFirst(6).enumerated() {
                sum.add(byte)
                if sum.masked == checksum && count != byteCount { return true }
            }
            return false
        }

        /// Whether a record begins anywhere behind it in its block.
        var hasRecordBehind: Bool {
            rest.indices.dropFirst().contains { start in
                let other = Piece(rest[start...], place: 0)
                return other.fits && other.beginsRecord && other.byteCount > 0 && other.isIntact
            }
        }
    }
}

/// The checksum of RocksDB's records, bit by bit reflected, by the polynomial of Castagnoli (RFC 3720, appendix B.4).
private struct CRC32C {
    private var state: UInt32 = ~0

    private static let table: [UInt32] = (0..<256).map { byte in
        (0..<8).reduce(UInt32(byte)) { sum, _ in sum & 1 == 0 ? sum >> 1 : sum >> 1 ^ 0x82F6_3B78 }
    }

    mutating func add(_ byte: UInt8) { state = CRC32C.table[Int(UInt8(truncatingIfNeeded: state) ^ byte)] ^ state >> 8 }

    init() {}

    init(of bytes: some Sequence<UInt8>) { for byte in bytes { add(byte) } }

    private static let mask: UInt32 = 0xA282_EAD8

    /// As RocksDB stores it.
    var masked: UInt32 {
        let sum = ~state
        return (sum >> 15 | sum << 17) &+ CRC32C.mask
    }

    /// Whether it would be what is stored, had one bit of the `count` bytes been another: each bit changes the sum in its own way.
    func differsByOneBit(from stored: UInt32, count: Int) -> Bool {
        let rotated = stored &- CRC32C.mask
        let difference = state ^ ~(rotated << 15 | rotated >> 17)
        var changes = (0..<8).map { CRC32C.table[1 << $0] }
        for _ in 0..<count {
            if changes.contains(difference) { return true }
            for bit in 0..<8 { changes[bit] = CRC32C.table[Int(UInt8(truncatingIfNeeded: changes[bit]))] ^ changes[bit] >> 8 }
        }
        return false
    }
}

/// A file that is read at any place, and closed with this value.
private final class OpenFile {
    private let path: String
    private let descriptor: CInt

    init(_ path: String) throws(LogError) {
        self.path = path
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("open") }
    }

    deinit { close(descriptor) }

    var byteCount: Int {
        get throws(LogError) {
            let end = lseek(descriptor, 0, SEEK_END)
            guard end >= 0 else { throw failure("measure") }
            return end
        }
    }

    /// - Returns: fewer bytes only where the file ends.
    func read(at place: Int, count: Int) throws(LogError) -> Bytes {
        var bytes = Bytes(repeating: 0, count: count)
        var filled = 0
        while filled < count {
            let read = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress! + filled, count - filled, place + filled) }
            guard read >= 0 || errno == EINTR else { throw failure("read") }
            if read == 0 { break }
            filled += max(0, read)
        }
        return Bytes(bytes.prefix(filled))
    }

    private func failure(_ what: String) -> LogError {
        LogError(.inaccessible, "cannot \(what) '\(path)': \(String(cString: strerror(errno)))")
    }
}
