/// Loads Parley and its peers, in turns, and prints what it saw. The scripts of Benchmarks/ start the servers and call it.
@main
struct Main {
    static func main() {
        let words = CommandLine.arguments.dropFirst()
        let options = Options(words.dropFirst())
        switch words.first {
        case "appends": Appends(options).run()
        case "latency": Latency(options).run()
        case "steps": StepsBenchmark(options).run()
        case "tokens": Tokens(options).run()
        case "interrupts": Interrupts(options).run()
        case "waiting": Waiting(options).run()
        case "catchup": Catchup(options).run()
        case "fanout": Fanout(options).run()
        case "stalled": Stalled(options).run()
        case "idle": Idle(options).run()
        case "cold": Cold(options).run()
        default: fail("expected one of: appends, latency, steps, tokens, interrupts, waiting, catchup, fanout, stalled, idle, cold")
        }
    }
}
