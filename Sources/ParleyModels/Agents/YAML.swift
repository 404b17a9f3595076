internal import CYAML
internal import ParleySystem

/// A value of a YAML document and its line.
///
/// Scalars stay text: the field that holds `no` or `12` decides its meaning, so `continues: no` is not a boolean by accident.
indirect enum YAML: Sendable, Equatable {
    case scalar(String, line: Int)
    case sequence([YAML], line: Int)
    case mapping([Pair], line: Int)

    struct Pair: Sendable, Equatable {
        var name: String
        var line: Int
        var value: YAML
    }

    var line: Int {
        switch self {
        case .scalar(_, let line), .sequence(_, let line), .mapping(_, let line): line
        }
    }

    var kindName: String {
        switch self {
        case .scalar: "a plain value"
        case .sequence: "a list"
        case .mapping: "a mapping"
        }
    }
}

/// Why a text is not YAML of the kind that is taken here, and where.
struct YAMLError: Error, Sendable, Equatable {
    /// Counted from 1.
    var line: Int
    /// A predicate: `is not YAML: ...`.
    var problem: String
    var remedy: String
}

extension YAML {
    private static let depthMax = 16
    private static let nodesMax = 10_000

    /// Parses one document by libyaml; an empty text is an empty mapping.
    ///
    /// Anchors, aliases and tags are refused: aliases let a short text represent an endless one, and settings have no use for any of the three.
    ///
    /// - Throws: ``YAMLError`` naming the line: not YAML, a refused feature, too deep or too many values.
    static func parse(_ text: String) throws(YAMLError) -> YAML {
        let events = EventReader(Bytes(text.utf8))
        try events.skipStart()
        guard let root = try events.document() else { return .mapping([], line: 1) }
        return root
    }

    /// The events of libyaml's parser, which it owns. It stays on one thread, for the length of one call.
    private final class EventReader {
        private let parser = UnsafeMutablePointer<yaml_parser_t>.allocate(capacity: 1)
        private let input: UnsafeMutableBufferPointer<UInt8>
        private var nodes = 0

        private struct Event {
            var type: yaml_event_type_t
            var line: Int
            var text = ""
            var isSpecial = false
        }

        init(_ bytes: Bytes) {
            // The parser keeps the address of its input, so the bytes get one that stays.
            input = .allocate(capacity: bytes.count)
            _ = input.initialize(from: bytes)
            let status = yaml_parser_initialize(parser)
            precondition(status == 1, "yaml_parser_initialize failed: out of memory")
            yaml_parser_set_encoding(parser, YAML_UTF8_ENCODING)
            yaml_parser_set_input_string(parser, input.baseAddress, input.count)
        }

        deinit {
            yaml_parser_delete(parser)
            parser.deallocate()
            input.deallocate()
        }

        func skipStart() throws(YAMLError) { _ = try next() }

        /// The only document; `nil` when there is none.
        func document() throws(YAMLError) -> YAML? {
            guard try next().type == YAML_DOCUMENT_START_EVENT else { return nil }
            let root = try node(try next(), depth: 0)
            _ = try next()
            let end = try next()
            guard end.type == YAML_STREAM_END_EVENT else {
                throw YAMLError(line: end.line, problem: "begins a second document", remedy: "keep one.")
            }
            return root
        }

        private func node(_ event: Event, depth: Int) throws(YAMLError) -> YAML {
            nodes += 1
            guard depth < YAML.depthMax, nodes <= YAML.nodesMax else {
                throw YAMLError(
                    line: event.line, problem: "is nested deeper than \(YAML.depthMax) or has more than \(YAML.nodesMax) values",
                    remedy: "make it simpler.")
            }
            guard event.type != YAML_ALIAS_EVENT, !event.isSpecial else {
                throw YAMLError(
                    line: event.line, problem: "uses an anchor, an alias or a tag",
                    remedy: "write the value out, in quotes if it begins with & * or !.")
            }
            switch event.type {
            case YAML_SEQUENCE_START_EVENT: return .sequence(try elements(depth: depth), line: event.line)
            case YAML_MAPPING_START_EVENT: return .mapping(try pairs(depth: depth), line: event.line)
            default: return .scalar(event.text, line: event.line)
            }
        }

        private func elements(depth: Int) throws(YAMLError) -> [YAML] {
            var elements: [YAML] = []
            while true {
                let event = try next()
                guard event.type != YAML_SEQUENCE_END_EVENT else { return elements }
                elements.append(try node(event, depth: depth + 1))
            }
        }

        private func pairs(depth: Int) throws(YAMLError) -> [Pair] {
            var pairs: [Pair] = []
            while true {
                let event = try next()
                guard event.type != YAML_MAPPING_END_EVENT else { return pairs }
                guard case .scalar(let name, let line) = try node(event, depth: depth + 1) else {
                    throw YAMLError(line: event.line, problem: "has a list or a mapping as a name", remedy: "begin the line with `name:`.")
                }
                pairs.append(Pair(name: name, line: line, value: try node(try next(), depth: depth + 1)))
            }
        }

        private func next() throws(YAMLError) -> Event {
            var raw = yaml_event_t()
            guard yaml_parser_parse(parser, &raw) == 1 else { throw failure() }
            defer { yaml_event_delete(&raw) }
            var event = Event(type: raw.type, line: raw.start_mark.line + 1)
            switch raw.type {
            case YAML_SCALAR_EVENT:
                let scalar = raw.data.scalar
                event.text = String(decoding: UnsafeBufferPointer(start: scalar.value, count: scalar.length), as: UTF8.self)
                event.isSpecial = scalar.anchor != nil || scalar.tag != nil
            case YAML_SEQUENCE_START_EVENT:
                event.isSpecial = raw.data.sequence_start.anchor != nil || raw.data.sequence_start.tag != nil
            case YAML_MAPPING_START_EVENT:
                event.isSpecial = raw.data.mapping_start.anchor != nil || raw.data.mapping_start.tag != nil
            default: break
            }
            return event
        }

        private func failure() -> YAMLError {
            let reason = parser.pointee.problem.map { String(cString: $0) } ?? "unknown problem"
            let isReader = parser.pointee.error == YAML_READER_ERROR
            let line = isReader ? lineOfOffset(parser.pointee.problem_offset) : parser.pointee.problem_mark.line + 1
            // libyaml does not always say that it is a tab, which looks like spaces.
            if !isReader, reason.contains("tab character") || character(at: parser.pointee.problem_mark.index) == "\t" {
                return YAMLError(line: line, problem: "is not YAML: a tab is where only spaces may be", remedy: "indent with spaces.")
            }
            return YAMLError(
                line: line, problem: "is not YAML: \(reason)", remedy: "write `name: value`, and put values with `:` or `#` in quotes.")
        }

        private func character(at index: Int) -> Unicode.Scalar? {
            String(decoding: input, as: UTF8.self).unicodeScalars.dropFirst(index).first
        }

        /// The reader knows no lines: it stops at a byte.
        private func lineOfOffset(_ offset: Int) -> Int {
            input.prefix(max(0, offset)).count { $0 == UInt8(ascii: "\n") } + 1
        }
    }
}
