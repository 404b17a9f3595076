import ParleySystem
import Testing

@testable import ParleyWebhooks

@Suite struct `The health of receivers` {
    private let start = Timestamp(milliseconds: 1_000_000)
    private func at(_ seconds: Int) -> Timestamp { start.advanced(by: .seconds(seconds)) }

    @Test func `is told when it begins to fail and when it is back, and not in between`() {
        var health = ReceiverHealth()
        #expect(health.delivered("a") == nil)
        #expect(health.failed("a", at(0)) == .fails)
        for second in 1..<500 { #expect(health.failed("a", at(second)) == nil) }
        #expect(health.failed("b", at(500)) == .fails, "each for itself")
        #expect(health.delivered("a") == .answersAgain(afterFailures: 500))
        #expect(health.delivered("a") == nil)
        #expect(health.failed("a", at(600)) == .fails)
    }

    @Test func `of one that fails every other time is told once a minute`() {
        var health = ReceiverHealth()
        var reports = 0
        for second in 0..<600 {
            if health.failed("a", at(second)) != nil { reports += 1 }
            if health.delivered("a") != nil { reports += 1 }
        }
        #expect(reports == 20)
    }

    @Test func `of more than can be remembered is not told`() {
        var health = ReceiverHealth()
        let told = (0..<5_000).filter { health.failed("r\($0)", at(0)) != nil }
        #expect(told.count == ReceiverHealth.receiversMax)
        #expect(health.failed("new", at(61)) == nil)
        #expect(health.failed("new", at(8_000)) == .fails, "the others have not been asked for long")
    }
}
