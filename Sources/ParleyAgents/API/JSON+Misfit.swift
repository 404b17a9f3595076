internal import ParleySystem

extension JSON {
    /// The reason why this value does not decode, in words that are the same on every replay, whatever library decodes: a model is told them, and
    /// they are part of its request's digest.
    ///
    /// - Parameter error: The error that decoding threw. A ``StepFailure`` has its own message; of a `DecodingError` only the place counts, and the
    ///   value there.
    func misfit(_ error: any Error) -> String {
        if let failure = error as? StepFailure { return failure.message }
        guard let (path, type) = (error as? DecodingError)?.place else { return "a value in it does not fit its type" }
        let name = path.reduce("") { name, key in
            key.intValue.map { "\(name)[\($0)]" } ?? (name.isEmpty ? "" : name + ".") + key.stringValue
        }
        let subject = name.isEmpty ? "it" : "'\(name)'"
        guard let found = value(at: path[...]) else { return "\(subject) is missing" }
        // A number where a number is expected is out of range, or not whole: libraries differ in which of them they say.
        guard let expected = type.flatMap(JSON.word), !(found.isNumber && expected.contains("number")) else {
            return "\(subject) is \(found.kindName) that does not fit"
        }
        return "\(subject) is \(found.kindName); expected \(expected)"
    }

    private func value(at path: ArraySlice<any CodingKey>) -> JSON? {
        guard let key = path.first else { return self }
        let below =
            key.intValue.flatMap { index in array.flatMap { $0.indices.contains(index) ? $0[index] : nil } } ?? self[key.stringValue]
        return below?.value(at: path.dropFirst())
    }

    /// The name of a type's values in messages.
    private static func word(_ type: Any.Type) -> String? {
        switch type {
        case is String.Type: "a string"
        case is Bool.Type: "a boolean"
        case is any FixedWidthInteger.Type: "a whole number"
        case is any BinaryFloatingPoint.Type: "a number"
        default:
            switch String(describing: type).prefix(6) {
            case "Dictio": "an object"
            case "Array<": "an array"
            default: nil
            }
        }
    }
}

extension DecodingError {
    /// The place of the error, and the expected type there, as far as every library reports it.
    fileprivate var place: (path: [any CodingKey], type: Any.Type?)? {
        switch self {
        case .keyNotFound(let key, let context): (context.codingPath + [key], nil)
        case .typeMismatch(let type, let context), .valueNotFound(let type, let context): (context.codingPath, type)
        // A number out of range, among others: whether that has a place depends on the library's version.
        case .dataCorrupted: nil
        @unknown default: nil
        }
    }
}
