import Foundation
import ParleySystem
import Testing

@testable import ParleyLog

@Suite struct `The data folder` {
    private let folder = TemporaryFolder()
    private var path: String { "\(folder.path)/a/data" }

    private func refusal(_ path: String, format: Int = DataFolder.format) -> LogError? {
        do {
            _ = try DataFolder(path, format: format)
            return nil
        } catch { return error }
    }

    @Test func `a folder that is missing is created, with those above it, for its owner only`() throws {
        let data = try DataFolder(path)
        #expect(try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int == 0o700)
        #expect(try String(contentsOfFile: "\(path)/FORMAT", encoding: .utf8) == "parley data format 1\n")
        #expect(Set(DataFolder.entries(path)) == ["FORMAT", "LOCK", "log"])
        #expect(data.logPath == "\(path)/log")
    }

    @Test func `a relative path works`() throws {
        // Relative to the working directory, which tests share: climb to the root and come down again.
        let climb = String(repeating: "../", count: FileManager.default.currentDirectoryPath.split(separator: "/").count)
        _ = try DataFolder(climb + path.dropFirst())
        #expect(DataFolder.entries(path).contains("FORMAT"))
    }

    @Test func `a second process is told that the folder is in use, and what to do`() throws {
        try withExtendedLifetime(try DataFolder(path)) {
            let error = try #require(refusal(path))
            #expect(error.code == .locked)
            #expect(error.message == "another process has '\(path)' open. Stop it, or give this one a folder of its own with --data")
        }
        #expect(refusal(path) == nil, "the lock goes with the process that held it")
    }

    @Test func `the log keeps the folder locked`() throws {
        let log = try RocksLog(DataFolder(path))
        #expect(refusal(path)?.code == .locked)
        log.close()
    }

    @Test func `a folder of a newer version is refused, naming both versions, and left alone`() throws {
        _ = try DataFolder(path, format: 7)
        let error = try #require(refusal(path))
        #expect(error.code == .newerFormat)
        #expect(
            error.message
                == "'\(path)' has data format 7, and this version of parley reads formats up to 1. "
                + "Run the version that wrote it, or a newer one"
        )
        #expect(try String(contentsOfFile: "\(path)/FORMAT", encoding: .utf8) == "parley data format 7\n")
        #expect(refusal(path, format: 8) == nil)
    }

    @Test(arguments: ["", "parley data format", "parley data format zero\n", "parley data format 0\n", "something else\n"])
    func `a format file that makes no sense is damage`(text: String) throws {
        _ = try DataFolder(path)
        try text.write(toFile: "\(path)/FORMAT", atomically: false, encoding: .utf8)
        let error = try #require(refusal(path))
        #expect(error.code == .damaged)
        #expect(error.message.contains("\(path)/FORMAT"))
    }

    @Test func `a folder that holds something else is refused and left alone`() throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try "mine".write(toFile: "\(path)/letter.txt", atomically: false, encoding: .utf8)
        let error = try #require(refusal(path))
        #expect(error.code == .inaccessible)
        #expect(
            error.message == "'\(path)' is not empty and not a data folder of parley (it holds letter.txt). Name an empty or a new folder")
        #expect(DataFolder.entries(path) == ["letter.txt"])
    }

    @Test(arguments: [["log.tmp"], ["log"], ["log", "signing-keys"], ["files", "log", "signing-keys", "FORMAT.new"]])
    func `a backup that was interrupted is called that`(names: [String]) throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        for name in names { try FileManager.default.createDirectory(atPath: "\(path)/\(name)", withIntermediateDirectories: true) }
        let error = try #require(refusal(path))
        #expect(error.code == .inaccessible)
        #expect(
            error.message.contains("no file FORMAT): most likely a backup that was interrupted. Make the backup again"), "\(error.message)")
        #expect(Set(DataFolder.entries(path)) == Set(names))
    }

    @Test(arguments: [["LOCK"], ["LOCK", "FORMAT.new"], ["lost+found"]])
    func `what a first start that was killed left behind does not count as something else`(names: [String]) throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        for name in names { try "half".write(toFile: "\(path)/\(name)", atomically: false, encoding: .utf8) }
        _ = try DataFolder(path)
        #expect(try String(contentsOfFile: "\(path)/FORMAT", encoding: .utf8) == "parley data format 1\n")
    }

    @Test func `a path below a file is refused with the system's reason`() throws {
        try "a file".write(toFile: "\(folder.path)/file", atomically: false, encoding: .utf8)
        for path in ["\(folder.path)/file", "\(folder.path)/file/data"] {
            let error = try #require(refusal(path))
            #expect(error.code == .inaccessible)
            #expect(error.message.contains("'\(path)': Not a directory"))
        }
    }

    @Test func `a folder that cannot be created is refused with the system's reason`() throws {
        let error = try #require(refusal("/proc/parley/data"))
        #expect(error.code == .inaccessible)
        #expect(error.message.contains("/proc/parley"))
    }
}
