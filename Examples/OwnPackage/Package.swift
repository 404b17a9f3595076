// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "counter",
    // In a package of your own: the folder of your copy of Parley.
    dependencies: [.package(name: "parley", path: "../..")],
    targets: [.executableTarget(name: "counter", dependencies: [.product(name: "Parley", package: "parley")])]
)
