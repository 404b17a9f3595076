internal import Glibc

/// What the calling thread does once the piece of work that it is in is done: for threads that run many short pieces, one after another, those
/// of event loops and lanes.
///
/// It may block for as long as a disk takes, and what follows from it is done before the thread looks for other work.
package final class EndOfWork {
    /// Something to be done at the end of a piece of work.
    package protocol Task: AnyObject {
        /// On the thread that added it.
        func workEnded()
    }

    private var tasks: [any Task] = []

    // A thread has one for as long as it lives; threads of other kinds have none.
    private static let key: pthread_key_t = {
        var key = pthread_key_t()
        precondition(pthread_key_create(&key) { Unmanaged<EndOfWork>.fromOpaque($0!).release() } == 0, "pthread_key_create failed")
        return key
    }()

    /// From here on the calling thread calls ``perform()`` after each piece of its work. Call it once for a thread.
    static func begin() -> EndOfWork {
        let end = EndOfWork()
        pthread_setspecific(key, Unmanaged.passRetained(end).toOpaque())  // Released when the thread ends.
        return end
    }

    private init() {}

    /// Has `task` called, once, however often it is added.
    /// - Returns: false when the calling thread does nothing at the end of its work: nothing was added.
    package static func add(_ task: any Task) -> Bool {
        guard let pointer = pthread_getspecific(key) else { return false }
        let end = Unmanaged<EndOfWork>.fromOpaque(pointer).takeUnretainedValue()
        if !end.tasks.contains(where: { $0 === task }) { end.tasks.append(task) }
        return true
    }

    /// Does what was added.
    /// - Returns: whether there was anything.
    func perform() -> Bool {
        guard !tasks.isEmpty else { return false }
        let due = tasks
        tasks.removeAll(keepingCapacity: true)
        for task in due { task.workEnded() }
        return true
    }
}
