import ParleyAgents
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `The configuration of models` {
    func problems(_ environment: [String: String]) -> [String] {
        do throws(ModelConfigurationError) {
            _ = try ModelConfiguration(environment: environment)
            return []
        } catch {
            return error.problems
        }
    }

    func providers(_ environment: [String: String]) throws -> ModelProviders {
        ModelProviders(try ModelConfiguration(environment: environment), transport: FakeTransport(), world: ManualWorld())
    }

    static let accepted = #"accepted: <provider>:<model>, where the provider is "openai" or "scripted". Remedy:"#

    @Test func `may be empty, and then has no default model`() throws {
        let configuration = try ModelConfiguration(environment: ["OPENAI_BASE_URL": "", "PARLEY_MODEL": "", "HOME": "/root"])
        #expect(configuration.defaultModel == nil && configuration.apiKey == nil && configuration.continues == nil)
        #expect(configuration.baseURL.description == "https://api.openai.com/v1")
        #expect(
            throws: ModelConfigurationError(problems: [
                "PARLEY_MODEL is not set, and the agent names no model; \(Self.accepted) try \"scripted\", which needs no network, or \"openai:gpt-5-mini\"."
            ])
        ) {
            _ = try providers([:]).make()
        }
    }

    @Test func `is read from the environment`() throws {
        let configuration = try ModelConfiguration(environment: [
            "PARLEY_MODEL": "openai:org/model:tag", "OPENAI_BASE_URL": "http://127.0.0.1:8080/v1/", "PARLEY_MODEL_CONTINUES": "auto",
            "OPENAI_API_KEY": "k",
        ])
        #expect(
            configuration.defaultModel == (try ModelSpec("openai:org/model:tag")) && configuration.continues == .auto
                && configuration.apiKey == "k")
        #expect(configuration.baseURL.text == "http://127.0.0.1:8080/v1")
    }

    @Test func `has bounds for time and calls, which are read from the environment`() throws {
        let usual = try ModelConfiguration(environment: [:])
        #expect(usual.firstByteTimeout == .seconds(600) && usual.callsMax == 256)
        let configuration = try ModelConfiguration(environment: ["PARLEY_MODEL_FIRST_BYTE": "1800", "PARLEY_MODEL_CALLS": "4"])
        #expect(configuration.firstByteTimeout == .seconds(1_800) && configuration.callsMax == 4)
        #expect(
            problems(["PARLEY_MODEL_FIRST_BYTE": "30m", "PARLEY_MODEL_CALLS": "0"]) == [
                #"PARLEY_MODEL_FIRST_BYTE "30m" is out of range; accepted: 1 to 86400 (seconds). Remedy: try "600"."#,
                #"PARLEY_MODEL_CALLS "0" is out of range; accepted: 1 to 10000 (calls at a time). Remedy: try "256"."#,
            ])
    }

    @Test(arguments: [
        ("gpt-5-mini", "has no provider; \(accepted) try \"openai:gpt-5-mini\"."),
        ("opanai:x", "names the unknown provider \"opanai\"; \(accepted) did you mean \"openai\"?"),
        ("llama:x", "names the unknown provider \"llama\"; \(accepted) use \"openai:\" for any server that speaks Chat Completions."),
        (
            "anthropic:x",
            "names the provider \"anthropic\", which this version does not have; \(accepted) use \"openai:\" with a server that speaks Chat Completions."
        ),
        (
            "responses:x",
            "names the provider \"responses\", which this version does not have; \(accepted) use \"openai:\" with a server that speaks Chat Completions."
        ),
        ("openai:", "names no model; \(accepted) try \"openai:gpt-5-mini\"."),
        ("openai:a b", "has white space or control characters in the model's name. Remedy: take them out."),
        ("scripted:rate=fast", "has rate=\"fast\"; accepted: a whole number from 0 to 100000. Remedy: leave it out for 40."),
        ("scripted:token=1", "has the unknown option \"token\"; accepted: tokens, rate, seed, continues. Remedy: did you mean \"tokens\"?"),
        ("scripted:continues=resume", "has continues=\"resume\"; accepted: prefix, no, auto. Remedy: leave it out for prefix."),
    ])
    func `says what is wrong with a model`(text: String, problem: String) {
        #expect(problems(["PARLEY_MODEL": text, "OPENAI_API_KEY": "k"]) == ["PARLEY_MODEL \"\(text)\" \(problem)"])
    }

    @Test(arguments: [
        "api.openai.com/v1", "ftp://x/v1", "http://", "http:///v1", "http://x/v1?a=b", "http://x/v1#a", "http://x y/v1", "http://x:0/v1",
        "http://x:99999", "http://[::1/v1", "http://é/v1",
    ])
    func `says what is wrong with a base URL`(text: String) {
        #expect(
            problems(["OPENAI_BASE_URL": text])
                == [
                    "OPENAI_BASE_URL \"\(text)\" is not a usable address; accepted: an http or https URL without query or fragment. Remedy: try \"https://api.openai.com/v1\"."
                ])
    }

    @Test(arguments: [
        ("http://u:p@host:80/v1//", "http://host:80/v1", "host"), ("HTTPS://Host", "https://Host", "host"),
        ("http://[::1]:8080", "http://[::1]:8080", "[::1]"),
        ("http://a@b@c/x", "http://c/x", "c"),
    ])
    func `shows a base URL without credentials`(text: String, shown: String, host: String) throws {
        let url = try #require(BaseURL(text))
        #expect(url.description == shown && url.host == host)
    }

    @Test func `reports every problem at once, and never the key`() {
        let found = problems([
            "PARLEY_MODEL": "scripted:rate=x,tokens=-1", "PARLEY_MODEL_CONTINUES": "prefx", "OPENAI_BASE_URL": "http://user:pass@x y",
            "OPENAI_API_KEY": "sk-very secret",
        ])
        #expect(
            found == [
                "OPENAI_BASE_URL is not a usable address; accepted: an http or https URL without query or fragment. Remedy: try \"https://api.openai.com/v1\".",
                "OPENAI_API_KEY (14 bytes, not shown) has white space, control or non-ASCII characters. Remedy: copy the key again.",
                "PARLEY_MODEL_CONTINUES \"prefx\" is not known; accepted: prefix, no, auto. Remedy: did you mean \"prefix\"?",
                "PARLEY_MODEL \"scripted:rate=x,tokens=-1\" has rate=\"x\"; accepted: a whole number from 0 to 100000. Remedy: leave it out for 40.",
                "PARLEY_MODEL \"scripted:rate=x,tokens=-1\" has tokens=\"-1\"; accepted: a whole number from 0 to 1000000. Remedy: leave it out for 120.",
            ])
    }

    @Test func `misses the key only where one is needed`() throws {
        let problem =
            "OPENAI_API_KEY is not set, and https://api.openai.com/v1 answers nobody without a key. Remedy: set it, or set OPENAI_BASE_URL to a server of your own, or use \"scripted\", which needs neither."
        #expect(problems(["PARLEY_MODEL": "openai:m"]) == [problem])
        #expect(problems(["PARLEY_MODEL": "openai:m", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"]) == [])
        #expect(problems(["PARLEY_MODEL": "scripted:"]) == [])
        #expect(problems(["PARLEY_MODEL": "scripted"]) == [])
        #expect(throws: ModelConfigurationError(problems: [problem])) { _ = try providers([:]).make(try ModelSpec("openai:m")) }
    }

    @Test func `refuses to resume where it is not possible`() throws {
        #expect(
            problems(["PARLEY_MODEL": "scripted:", "PARLEY_MODEL_CONTINUES": "resume"])
                == [
                    "PARLEY_MODEL_CONTINUES \"resume\" is not possible with the provider \"scripted\"; accepted: prefix, no, auto. Remedy: try \"auto\"."
                ])
        #expect(throws: ModelConfigurationError.self) {
            _ = try providers(["OPENAI_API_KEY": "k"]).make(try ModelSpec("openai:m"), continues: .resume)
        }
    }

    @Test(
        arguments: [
            ("openai:m", nil, nil, Continuation.auto), ("openai:m", "no", nil, .no), ("openai:m", "no", .prefix, .prefix),
            ("scripted:", nil, nil, .prefix), ("scripted:", "no", nil, .no),
            ("scripted:continues=no", "prefix", .prefix, .no),
        ] as [(String, String?, Continuation?, Continuation)])
    func `decides how a model continues`(spec: String, configured: String?, agent: Continuation?, expected: Continuation) throws {
        let providers = try providers(["OPENAI_API_KEY": "k", "PARLEY_MODEL_CONTINUES": configured ?? ""])
        let model = try providers.make(try ModelSpec(spec), continues: agent)
        #expect(model.continues == expected && model.name == spec)
    }

    @Test func `the time to the first token is the agent's, else the configuration's, and errors name where it is set`() throws {
        let providers = try providers(["OPENAI_API_KEY": "k", "PARLEY_MODEL_FIRST_BYTE": "30"])
        func made(_ timeout: Duration?) throws -> ChatCompletionsModel.Configuration? {
            (try providers.make(try ModelSpec("openai:m"), firstByteTimeout: timeout) as? ChatCompletionsModel)?.configuration
        }
        let (usual, own) = (try made(nil), try made(.seconds(5)))
        #expect(usual?.firstByteTimeout == .seconds(30) && usual?.names.firstByte == "PARLEY_MODEL_FIRST_BYTE")
        #expect(own?.firstByteTimeout == .seconds(5) && own?.names.firstByte.hasPrefix("first_token_timeout") == true)
    }
}
