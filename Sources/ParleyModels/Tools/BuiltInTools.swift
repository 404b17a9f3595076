package import ParleyAgents
package import ParleySystem

/// The tools that every node has, for agents declared in files to choose from by name.
package struct BuiltInTools: Sendable {
    private let files: AgentFiles
    private let world: any World

    /// - Parameter folder: The root for `write_file`: below it each agent has a folder of its own.
    package init(folder: String, world: any World) {
        files = AgentFiles(folder: folder)
        self.world = world
    }

    package static let names = ["current_time", "write_file"]

    /// How long a call waits for a person before it counts as refused.
    package static let approvalExpires = Duration.seconds(7 * 86_400)

    /// The tool called `name`, which is one of ``names``.
    package func make(_ name: String) -> Tool {
        switch name {
        case "current_time": currentTime
        case "write_file": writeFile
        default: preconditionFailure("the tool '\(name)' is not built in")
        }
    }

    /// Removes the files of the agent with this channel.
    /// - Throws: `StepFailure` with the system's reason.
    package func removeFiles(of channel: String) throws { try files.remove(for: channel) }

    private struct NoArguments: Decodable, Sendable {}

    private var currentTime: Tool {
        let world = world
        return Tool("current_time", "The date and time now, in UTC (RFC 3339).", parameters: ["type": "object", "properties": [:]]) {
            (_: NoArguments, _) in world.now.description
        }
    }

    /// Decoded before a person is asked: a file that could not be written is refused here, and the model is told.
    private struct File: Decodable, Sendable {
        var path: String
        var text: String

        private enum CodingKeys: String, CodingKey { case path, text }

        init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            (path, text) = (try values.decode(String.self, forKey: .path), try values.decode(String.self, forKey: .text))
            try AgentFiles.check(path, bytes: text.utf8.count)
        }
    }

    private var writeFile: Tool {
        let files = files
        let text: JSON = ["type": "string", "description": "The whole content of the file."]
        let path: JSON = ["type": "string", "description": "Where, relative to your own folder, e.g. notes/today.md."]
        return Tool(
            "write_file", "Writes a text file into your own folder, in place of what it held. A person is asked first.",
            parameters: ["type": "object", "properties": ["path": path, "text": text], "required": ["path", "text"]],
            approval: .required(expires: BuiltInTools.approvalExpires)
        ) { (file: File, context) in
            try files.write(Bytes(file.text.utf8), to: file.path, for: context.channel)
            return "wrote \(file.text.utf8.count) bytes to \(file.path)"
        }
    }
}
