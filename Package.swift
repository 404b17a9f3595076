// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .treatAllWarnings(as: .error),
]

/// A target of ours: the same settings everywhere, dependencies in one direction only (ARCHITECTURE.md, "Modules").
func module(_ name: String, _ dependencies: [Target.Dependency], resources: [Resource]? = nil) -> Target {
    .target(name: name, dependencies: dependencies, resources: resources, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
    .testTarget(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: settings)
}

/// The parts of the console, which the server puts together: see `PageRoute`.
let page =
    ["page.html", "page.css"].map { "Page/" + $0 }
    + [
        "values", "markdown", "rows", "activity", "conversation", "steps", "log", "records", "follower", "saying", "agents", "home", "page",
    ].map { "Page/\($0).js" }

let package = Package(
    name: "parley",
    products: [
        .executable(name: "parley", targets: ["ParleyCommand"]),
        .library(name: "Parley", targets: ["Parley"]),
    ],
    targets: [
        .systemLibrary(name: "CUV", pkgConfig: "libuv", providers: [.apt(["libuv1-dev"])]),
        .systemLibrary(name: "CRocksDB", pkgConfig: "rocksdb", providers: [.apt(["librocksdb-dev"])]),
        .systemLibrary(name: "CCurl", pkgConfig: "libcurl", providers: [.apt(["libcurl4-openssl-dev"])]),
        .systemLibrary(name: "CYAML", pkgConfig: "yaml-0.1", providers: [.apt(["libyaml-dev"])]),
        .systemLibrary(name: "CWslay", providers: [.apt(["libwslay-dev"])]),
        .systemLibrary(name: "CJemalloc", pkgConfig: "jemalloc", providers: [.apt(["libjemalloc-dev"])]),
        .systemLibrary(name: "COpenSSL", pkgConfig: "openssl", providers: [.apt(["libssl-dev"])]),

        module("ParleySystem", ["CUV", "COpenSSL", "CJemalloc"]),
        module("ParleyHTTP", ["ParleySystem", "CUV", "CCurl", "CWslay", "COpenSSL"]),
        module("ParleyLog", ["ParleySystem", "CRocksDB"]),
        module("ParleyChannels", ["ParleyLog", "ParleySystem"]),
        module("ParleyWebhooks", ["ParleyChannels", "ParleyLog", "ParleyHTTP", "ParleySystem"]),
        module("ParleyAgents", ["ParleyChannels", "ParleyLog", "ParleySystem"]),
        module("ParleyModels", ["ParleyAgents", "ParleyHTTP", "ParleySystem", "CYAML"]),
        module(
            "ParleyServer",
            ["ParleyModels", "ParleyAgents", "ParleyWebhooks", "ParleyChannels", "ParleyLog", "ParleyHTTP", "ParleySystem"],
            resources: (page + ["Client/parley.js", "Client/parley.d.ts"]).map { .embedInCode($0) }),
        module("Parley", ["ParleyServer", "ParleyModels", "ParleyAgents", "ParleyWebhooks"]),
        .executableTarget(
            name: "ParleyCommand", dependencies: ["Parley", "ParleyServer", "ParleyHTTP", "ParleySystem"], swiftSettings: settings),
        module(
            "ParleyTesting",
            ["ParleyModels", "ParleyAgents", "ParleyWebhooks", "ParleyChannels", "ParleyLog", "ParleyHTTP", "ParleySystem"]),

        .executableTarget(name: "greeter", dependencies: ["Parley"], path: "Examples/Greeter", swiftSettings: settings),
        .executableTarget(name: "reporter", dependencies: ["Parley"], path: "Examples/Reporter", swiftSettings: settings),
        .executableTarget(name: "steps-agent", dependencies: ["Parley"], path: "Tests/Support/StepsAgent", swiftSettings: settings),
        .executableTarget(
            name: "parley-simulate", dependencies: ["ParleyTesting"], path: "Tests/Support/Simulate", swiftSettings: settings),

        // Benchmarks/run.sh: what loads the servers, and the agents it loads Parley with.
        .systemLibrary(name: "CEpoll", path: "Benchmarks/CEpoll"),
        .executableTarget(name: "parley-load", dependencies: ["CEpoll"], path: "Benchmarks/Load", swiftSettings: settings),
        .executableTarget(
            name: "parley-bench-agents", dependencies: ["Parley", "ParleySystem"], path: "Benchmarks/Agents", swiftSettings: settings),

        tests("ParleySystemTests", ["ParleySystem"]),
        tests("ParleyHTTPTests", ["ParleyHTTP", "ParleyTesting", "ParleySystem"]),
        tests("ParleyLogTests", ["ParleyLog", "ParleyTesting", "ParleySystem"]),
        tests("ParleyChannelsTests", ["ParleyChannels", "ParleyTesting", "ParleyLog", "ParleySystem"]),
        tests(
            "ParleyWebhooksTests",
            ["ParleyWebhooks", "ParleyAgents", "ParleyChannels", "ParleyTesting", "ParleyLog", "ParleyHTTP", "ParleySystem"]),
        tests("ParleyAgentsTests", ["ParleyAgents", "ParleyModels", "ParleyChannels", "ParleyTesting", "ParleyLog", "ParleySystem"]),
        tests(
            "ParleyModelsTests", ["ParleyModels", "ParleyAgents", "ParleyTesting", "ParleyHTTP", "ParleySystem"], exclude: ["Upstreams"]),
        tests(
            "ParleyServerTests",
            [
                "ParleyServer", "ParleyAgents", "ParleyModels", "ParleyWebhooks", "ParleyChannels", "ParleyTesting", "ParleyLog", "ParleyHTTP",
                "ParleySystem",
            ]),
        // Runs the executables as they are: it depends on them so that they are built.
        tests(
            "ParleyEndToEndTests", ["ParleyTesting", "ParleyHTTP", "ParleySystem", "ParleyCommand", "reporter", "steps-agent"],
            exclude: ["Golden"]),
    ]
)

// Tests/Fuzz/run.sh: its main program is libFuzzer's, which only a build with `--sanitize fuzzer` has.
if Context.environment["PARLEY_FUZZ"] != nil {
    package.targets.append(
        .executableTarget(
            name: "parley-fuzz",
            dependencies: ["ParleyServer", "ParleyAgents", "ParleyWebhooks", "ParleyChannels", "ParleyHTTP", "ParleySystem"],
            path: "Tests/Fuzz", exclude: ["Corpus", "dictionary.txt", "run.sh"], swiftSettings: settings))
}
