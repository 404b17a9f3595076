internal import ParleySystem

/// The arguments of a model's call, parsed once: the value that a person is shown, that is hashed and that the tool runs with is this one.
enum ToolArguments {
    /// - Throws: ``StepFailure`` `invalid_arguments` for arguments that are not a JSON object, or one that two readers could read in two ways; the
    ///   model is told.
    static func parse(_ text: String, isApproved: Bool) throws -> JSON {
        let arguments: JSON
        do {
            arguments = try JSON.parse(Bytes((text.isEmpty ? "{}" : text).utf8), uniqueNames: true)
        } catch  where error.problem.hasSuffix("is given twice") {
            throw failure("the arguments are refused: \(error.problem). Give each member once")
        } catch {
            throw failure("the arguments are not a JSON object")
        }
        guard arguments.members != nil else { throw failure("the arguments are not a JSON object") }
        if isApproved { try requireExactNumbers(arguments) }
        return arguments
    }

    /// Refuses numbers that a reader with doubles, such as the page on which a person approves, shows as others than they are.
    static func requireExactNumbers(_ arguments: JSON) throws {
        guard let (path, number) = inexactNumber(arguments, "") else { return }
        throw failure(
            "the arguments are refused: \(path.isEmpty ? "the number" : "'\(path)'") is \(number.prefix(64)), which has more digits than a double "
                + "holds, so that it could be approved as another number. Give it as a string")
    }

    private static func inexactNumber(_ value: JSON, _ path: String) -> (path: String, number: String)? {
        switch value {
        case .array(let elements):
            return elements.enumerated().lazy.compactMap { inexactNumber($1, "\(path)[\($0)]") }.first
        case .object(let members):
            return members.lazy.compactMap { inexactNumber($0.value, path.isEmpty ? $0.name : "\(path).\($0.name)") }.first
        default: return value.isExactAsDouble ? nil : (path, value.text)
        }
    }

    private static func failure(_ message: String) -> StepFailure {
        StepFailure(code: "invalid_arguments", message: message, retryable: false)
    }
}
