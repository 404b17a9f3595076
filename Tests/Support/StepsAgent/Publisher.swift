import Parley

/// An agent that asks a person before it publishes, and writes an announcement meanwhile: a console has to show both at once.
struct Publisher: Agent {
    static let kind = "publisher"

    /// The approved publication: nothing else is published.
    struct Publication: Codable, Sendable {
        var title: String
        var body: String
        var audience: [String]
        var notify: Bool
        var version: Double
    }

    let model: any Model
    /// The name of the first step: another name in another process is a changed program.
    let firstStep: String

    func receive(_ title: String, _ turn: Turn, _ state: inout NoState) async throws -> String {
        let changes = try await turn.step(firstStep) { _ in Publisher.changes }
        let draft = try await turn.generate("draft", model, .user("say: " + Publisher.draft)).text
        let publication = Publication(title: title, body: draft, audience: changes.map(\.area), notify: true, version: 2.4)
        let aside = try turn.scope("aside")
        async let announcement = aside.generate("announcement", model, .user("say: " + Publisher.announcement)).text
        let approver: String
        do { approver = try await turn.approval("publish", of: publication, expires: .seconds(86_400)) } catch let denied as ApprovalDenied
        {
            return "Not published: \(denied.by) said no" + (denied.reason.map { " (\($0))." } ?? ".")
        }
        _ = try await turn.step("publish", .atMostOnce) { _ in ["url": "https://example.org/notes/2.4"] }
        _ = try await announcement
        return "Published, as \(approver) approved."
    }

    private struct Change: Codable, Sendable {
        var area: String
        var commits: Int
    }

    private static let changes = [
        Change(area: "storage", commits: 14), Change(area: "console", commits: 9), Change(area: "models", commits: 5),
    ]
    private static let draft =
        "Version 2.4 starts twice as fast and keeps drafts when the connection breaks. Settings moved into one page. Nothing needs to be migrated."
    private static let announcement = """
        Hello everyone! Version 2.4 is on its way. Most of the work went into things that you will notice by not noticing them: \
        a start that takes half as long, drafts that are still there when the train leaves the tunnel, and one page of settings where \
        there used to be five.

        If you run it yourself, there is nothing to migrate: stop the old version, start the new one, and go on where you were. \
        If something looks odd to you, reply to this message. Somebody reads every answer, and the most useful ones usually begin with \
        the words "this may be a stupid question".

        Thank you to the eleven people who sent patches this month, and to everybody who tried the previews and told us what broke.
        """
}
