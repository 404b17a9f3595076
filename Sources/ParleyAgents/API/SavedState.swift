internal import ParleySystem

/// An agent's state as it is stored after a turn.
///
/// A property that is `nil` is encoded as a missing member, as is one that did not exist when the state was saved. To tell them apart, the stored
/// state names the properties that its type had and that were `nil`:
///
///     {"count": 2, "$absent": {"note": null, "limits": {"daily": null}}}
///
/// There, `note` and `limits.daily` are `nil`; anything else that is missing gets its default. The member is left out when it would be empty.
enum SavedState {
    private static let absent = "$absent"

    static func encode<State: AgentState>(_ state: State) throws -> JSON {
        let encoded = try JSON(encoding: state)
        guard case .object(let members) = encoded, let names = try encoded.absentMembers(of: JSON(encoding: State())) else {
            return encoded
        }
        return .object(members + [JSON.Member(absent, names)])
    }

    /// The stored state with the defaults of what was added to its type since.
    static func complete<State: AgentState>(_ saved: JSON, _ defaults: State) throws -> JSON {
        guard case .object(let members) = saved else { return saved }
        let state = JSON.object(members.filter { $0.name != absent })
        return state.laid(over: try JSON(encoding: defaults), except: saved[absent])
    }
}

extension JSON {
    /// The names of members that `base` has and this value has not, as an object; `nil` when it has all.
    fileprivate func absentMembers(of base: JSON) -> JSON? {
        guard case .object = self, case .object(let members) = base else { return nil }
        let names = members.compactMap { member -> Member? in
            guard let own = self[member.name] else { return Member(member.name, .null) }
            return own.absentMembers(of: member.value).map { Member(member.name, $0) }
        }
        return names.isEmpty ? nil : .object(names)
    }

    /// This value, with what its objects lack taken from `base`, unless `absent` names it.
    fileprivate func laid(over base: JSON, except absent: JSON?) -> JSON {
        guard case .object(var members) = self, case .object(let defaults) = base else { return self }
        for index in members.indices {
            let name = members[index].name
            if let below = base[name] { members[index].value = members[index].value.laid(over: below, except: absent?[name]) }
        }
        for member in defaults where self[member.name] == nil && absent?[member.name] == nil { members.append(member) }
        return .object(members)
    }
}
