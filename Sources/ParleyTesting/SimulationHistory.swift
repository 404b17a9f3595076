package import ParleyChannels
package import ParleySystem

/// The events of a simulated run and what every client saw of it: the evidence that ``SimulationChecker`` judges, and nothing but values.
package struct SimulationHistory: Sendable {
    /// One life of a channel: a name that is deleted and recreated is another one.
    package struct Life: Hashable, Sendable, CustomStringConvertible {
        package var name: String
        package var id: ChannelID

        package init(name: String, id: ChannelID) {
            self.name = name
            self.id = id
        }

        package var description: String { "\(name) (\(id.partition)/\(id.number))" }
    }

    /// An entry in wire form.
    package struct Entry: Sendable, Equatable {
        package var offset: UInt64
        package var body: JSON

        package init(_ offset: UInt64, _ body: JSON) {
            self.offset = offset
            self.body = body
        }

        /// - Parameter owner: The name of the agent's channel.
        init(_ offset: UInt64, _ frame: Frame, owner: String = "") {
            var bytes = Bytes()
            frame.writeJSON(offset: offset, owner: owner, to: &bytes)
            self.init(offset, (try? JSON.parse(bytes)) ?? .null)
        }
    }

    /// A request of a client, however often it was sent.
    package struct Request: Sendable {
        package var id: String
        package var channel: String
        /// The members, at least, that each of its entries must have; empty when it appends nothing.
        package var entries: [JSON] = []
        /// For a message: the program of its turn.
        package var program: SimulationProgram?

        package init(id: String, channel: String, entries: [JSON] = [], program: SimulationProgram? = nil) {
            self.id = id
            self.channel = channel
            self.entries = entries
            self.program = program
        }
    }

    /// A request that was answered with success.
    package struct Answer: Sendable {
        package var request: String
        /// `nil` when the channel was gone again by the time of the answer.
        package var life: Life?
        package var offsets: [UInt64]

        package init(request: String, life: Life?, offsets: [UInt64]) {
            self.request = request
            self.life = life
            self.offsets = offsets
        }
    }

    /// An entry that a reader was shown.
    package struct Sighting: Sendable {
        package var reader: Int
        package var life: Life
        package var entry: Entry

        package init(reader: Int, life: Life, entry: Entry) {
            self.reader = reader
            self.life = life
            self.entry = entry
        }
    }

    /// A body of a step that began to run.
    package struct BodyRun: Sendable {
        /// The turn, by the request whose message began it and its first random number; and the path of the step.
        package var request: String
        package var step: String
        package var isAtMostOnce: Bool
        /// Whether the step's result was durable by then.
        package var wasRecorded: Bool

        package init(request: String, step: String, isAtMostOnce: Bool, wasRecorded: Bool) {
            self.request = request
            self.step = step
            self.isAtMostOnce = isAtMostOnce
            self.wasRecorded = wasRecorded
        }
    }

    /// The text that a model was asked to continue from, and the text it generated.
    package struct ModelCall: Sendable {
        package var key: String
        package var continuing: String
        package var generated = ""
        package var tokens = 0
        package var isFinished = false
        /// The messages of its request, each with its role in front, and the time.
        package var messages: [String]
        package var at: Timestamp

        package init(key: String, continuing: String, messages: [String] = [], at: Timestamp = Timestamp(milliseconds: 0)) {
            self.key = key
            self.continuing = continuing
            self.messages = messages
            self.at = at
        }
    }

    /// A turn's memory of the turns before it, each time that it ran.
    package struct Recollection: Sendable {
        /// As in ``BodyRun``.
        package var request: String
        package var messages: [String]

        package init(request: String, messages: [String]) {
            self.request = request
            self.messages = messages
        }
    }

    /// The log, by channel.
    package var entries: [Life: [Entry]] = [:]
    package var requests: [Request] = []
    package var answers: [Answer] = []
    package var sightings: [Sighting] = []
    package var bodyRuns: [BodyRun] = []
    package var modelCalls: [ModelCall] = []
    package var recollections: [Recollection] = []
    /// Every entry that streams which are followed ever had, by life: also of those that were deleted.
    package var followed: [ChannelID: [Entry]] = [:]
    /// When processes began: nothing is decided while there is none.
    package var starts: [Timestamp] = []
    /// Whether the turns wait for people as long as it takes, and a machine may be busy, but no clock is set.
    package var isPatient = false
    /// Whether a process had programs that ask for another step than the journal has.
    package var mayStall = false
    /// Lives that a deletion may have ended.
    package var mayBeGone: Set<String> = []
    /// Rows that should not be there when everything is quiet.
    package var leftovers: [String] = []
    /// How many agents there was room for in memory at a time.
    package var places = Int.max
    package var crashes = 0

    package init() {}
}

extension SimulationHistory.Entry {
    package var type: String { body["type"]?.string ?? "data" }
    var turn: UInt64? { body["turn"]?.string.flatMap { Offset(token: $0)?.value } }
    var step: String { body["step"]?.string ?? "" }
    var attempt: Int64 { body["attempt"]?.integer ?? 0 }
    package var text: String { "\(offset): \(body.text)" }
    /// As a message shows it: the text of an entry can be long.
    var short: String { "\(offset): " + String(body.text.prefix(240)) }
}
