import Foundation
import ParleySystem

/// A target for hostile bytes. Each reads its input in some way and traps where the program contradicts itself or an older program.
enum FuzzTarget: String, CaseIterable {
    case request, socket, events, json, messages, text, names, tokens, stored

    func run(_ input: UnsafeRawBufferPointer) {
        switch self {
        case .request: fuzzRequest(input)
        case .socket: fuzzSocket(input)
        case .events: fuzzEvents(input)
        case .json: fuzzJSON(Bytes(input))
        case .messages: fuzzMessages(Bytes(input))
        case .text: fuzzText(Bytes(input))
        case .names: fuzzNames(Bytes(input))
        case .tokens: fuzzTokens(Bytes(input))
        case .stored: fuzzStored(Bytes(input))
        }
    }
}

/// The entry point for libFuzzer's main program; `PARLEY_FUZZ` names the target.
@_cdecl("LLVMFuzzerTestOneInput")
func testOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    target.run(UnsafeRawBufferPointer(start: bytes, count: count))
    return 0
}

private let target = {
    let name = ProcessInfo.processInfo.environment["PARLEY_FUZZ"] ?? ""
    guard let target = FuzzTarget(rawValue: name) else {
        fatalError("PARLEY_FUZZ is '\(name)'; expected one of \(FuzzTarget.allCases.map(\.rawValue))")
    }
    return target
}()

/// Ends the run, which keeps the input. A release build's own traps say nothing.
func contradiction(_ what: String, file: StaticString = #file, line: UInt = #line) -> Never {
    FileHandle.standardError.write(Data("\(file):\(line): contradiction: \(what)\n".utf8))
    abort()
}

func require(_ condition: Bool, _ what: @autoclosure () -> String = "", file: StaticString = #file, line: UInt = #line) {
    if !condition { contradiction(what(), file: file, line: line) }
}

/// Compares the results of two ways to the same thing.
func same<Value: Equatable>(_ a: Value, _ b: Value, _ what: @autoclosure () -> String, file: StaticString = #file, line: UInt = #line) {
    require(a == b, "\(what()): \(a) is not \(b)", file: file, line: line)
}

/// Calls `visit` with pieces of the input: the whole, then byte by byte, then at places that the input itself decides.
///
/// - Returns: the results of `read` for each of the three; they must be equal.
func readInPieces<Result: Equatable>(
    _ input: UnsafeRawBufferPointer, _ read: (_ pieces: [UnsafeRawBufferPointer]) -> Result
) -> Result {
    func pieces(_ ends: [Int]) -> [UnsafeRawBufferPointer] {
        var start = 0
        return (ends + [input.count]).map { end in
            defer { start = end }
            return copied(input[start..<end])
        }
    }
    // Each piece lies in memory of its own, so that a read beyond its end is seen by the address sanitizer.
    func copied(_ slice: Slice<UnsafeRawBufferPointer>) -> UnsafeRawBufferPointer {
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: slice.count, alignment: 1)
        copy.copyBytes(from: slice)
        return UnsafeRawBufferPointer(copy)
    }
    func result(_ ends: [Int]) -> Result {
        let pieces = pieces(ends)
        defer { pieces.forEach { $0.deallocate() } }
        return read(pieces)
    }
    let whole = result([])
    var random = SplitMix64(seed: input.reduce(0) { $0 &* 31 &+ UInt64($1) })
    let cuts = (0..<4).map { _ in Int.random(in: 0...input.count, using: &random) }.sorted()
    same(whole, result(cuts), "whole, and cut at \(cuts)")
    if input.count <= 512 { same(whole, result(Array(0..<input.count)), "whole, and byte by byte") }
    return whole
}
