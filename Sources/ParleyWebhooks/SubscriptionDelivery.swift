package import ParleyChannels
package import ParleyHTTP
package import ParleySystem
internal import Synchronization

/// Tells the webhooks of subscriptions of their wakes: one POST each, whose outcome goes back to the subscription, which decides on retries.
package final class SubscriptionDelivery: SubscriptionNotifier {
    package let keys: SigningKeys
    /// Whether receivers on this machine may be called.
    package let allowsLoopback: Bool
    package let subscriptions: Subscriptions
    private let world: any World
    private let transport: any OutgoingTransport
    private let state = Mutex(State())

    private struct State {
        /// By subscription: the latest wake counts, an older one is superseded.
        var waiting: [TextKey: (notification: SubscriptionNotification, receiver: String)] = [:]
        var turns = ReceiverTurns()
        var calls: [TextKey: (wakeID: String, receiver: String, call: WebhookCall?)] = [:]
        var health = ReceiverHealth()
        var isStopped = false

        mutating func removeCall(_ id: TextKey) -> WebhookCall? {
            guard let entry = calls.removeValue(forKey: id) else { return nil }
            turns.ended(for: entry.receiver)
            return entry.call
        }

        /// The wake to deliver next, from now on in flight.
        mutating func next() -> SubscriptionNotification? {
            while let (id, receiver) = turns.next() {
                // Recreated meanwhile, the subscription may have another receiver, where it waits as well.
                if let entry = waiting[TextKey(id)], entry.receiver == receiver {
                    waiting[TextKey(id)] = nil
                    calls[TextKey(id)] = (entry.notification.wake.id, receiver, nil)
                    return entry.notification
                }
                turns.ended(for: receiver)
            }
            return nil
        }
    }

    package init(
        _ subscriptions: Subscriptions, keys: SigningKeys, allowsLoopback: Bool, world: any World, transport: any OutgoingTransport
    ) {
        (self.subscriptions, self.keys, self.allowsLoopback) = (subscriptions, keys, allowsLoopback)
        (self.world, self.transport) = (world, transport)
        subscriptions.notify(self)
    }

    /// How many calls are in flight.
    package var inFlightCount: Int { state.withLock { $0.calls.count } }

    /// Begins no call any more; its wake is due again at the next start.
    package func drain() {
        state.withLock { state in
            state.isStopped = true
            state.waiting = [:]
            state.turns.dropWaiting()
        }
    }

    package func stop() {
        drain()
        for entry in state.withLock({ Array($0.calls.values) }) { entry.call?.cancel() }
    }

    package func deliver(_ notification: SubscriptionNotification) {
        let (id, receiver) = (notification.subscription.id, SubscriptionDelivery.host(of: notification))
        let old: WebhookCall? = state.withLock { state in
            guard !state.isStopped else { return nil }
            let before = state.waiting.updateValue((notification, receiver), forKey: TextKey(id))
            if before?.receiver != receiver { state.turns.add(id, for: receiver) }
            // A receiver that has not answered by now is told of the new wake instead.
            return state.removeCall(TextKey(id))
        }
        old?.cancel()
        world.perform(lane: lane(id)) { [weak self] in self?.beginNext() }
    }

    private func lane(_ id: String) -> UInt64 { UInt64(Placement.partition(of: id)) }

    private func beginNext() {
        while let next = state.withLock({ $0.next() }) { send(next) }
    }

    private func send(_ notification: SubscriptionNotification) {
        let (id, wakeID) = (notification.subscription.id, notification.wake.id)
        let url: SubscriptionURL
        do { url = try SubscriptionURL(notification.subscription.configuration.webhookURL ?? "", allowsLoopback: allowsLoopback) } catch {
            // It was accepted when the server listened elsewhere.
            return ended(notification, .failed(reason: "\(error)", retryAfter: nil), answer: [])
        }
        let body = SubscriptionDelivery.body(notification)
        let answer = Mutex(Bytes())
        let call = WebhookCall(
            transport, world, url: url.text, headers: [("Webhook-Signature", keys.signature(of: body, at: world.now))], body: body,
            addresses: url.addresses, answer: { bytes in answer.withLock { $0 = bytes } }
        ) { [weak self] outcome in
            self?.ended(notification, outcome, answer: answer.withLock { $0 })
        }
        let isWanted = state.withLock { state in
            guard state.calls[TextKey(id)]?.wakeID == wakeID else { return false }
            state.calls[TextKey(id)]!.call = call
            return true
        }
        // Over already, or another wake has taken its place before this call was known.
        if !isWanted { call.cancel() }
    }

    private func ended(_ notification: SubscriptionNotification, _ outcome: WebhookCall.Outcome, answer: Bytes) {
        let (id, wakeID) = (notification.subscription.id, notification.wake.id)
        state.withLock { state in
            if state.calls[TextKey(id)]?.wakeID == wakeID { _ = state.removeCall(TextKey(id)) }
        }
        switch outcome {
        case .delivered:
            let origin = SubscriptionDelivery.origin(of: notification)
            let report = state.withLock { $0.health.delivered(SubscriptionDelivery.receiver(of: notification)) }
            if case .answersAgain(let count)? = report {
                Diagnostics.log(.info, "subscriptions' webhook answers again", ["receiver": origin, "failed_attempts": count])
            }
            let isDone = (try? JSON.parse(answer))?["done"]?.bool == true
            let acks = notification.streams.map { SubscriptionAck(stream: $0.path, offset: $0.tail) }
            subscriptions.request(.delivered(wakeID: wakeID, done: isDone ? acks : nil), of: id)
        case .gone: fail(notification, "status 410")
        case .failed(let reason, _): fail(notification, reason)
        }
        world.perform(lane: lane(id)) { [weak self] in self?.beginNext() }
    }

    private func fail(_ notification: SubscriptionNotification, _ reason: String) {
        let (subscription, now) = (notification.subscription, world.now)
        let report = state.withLock { $0.health.failed(SubscriptionDelivery.receiver(of: notification), now) }
        if report == .fails {
            let origin = SubscriptionDelivery.origin(of: notification)
            Diagnostics.log(
                .warning, "subscription's webhook fails", ["subscription": subscription.id, "receiver": origin, "reason": reason])
        }
        subscriptions.request(.failed(wakeID: notification.wake.id), of: subscription.id)
    }

    /// The value that tells receivers apart; never to be logged, it may hold a secret.
    private static func receiver(of notification: SubscriptionNotification) -> String {
        notification.subscription.configuration.webhookURL ?? ""
    }

    private static func origin(of notification: SubscriptionNotification) -> String {
        (try? SubscriptionURL(receiver(of: notification), allowsLoopback: true))?.origin ?? ""
    }

    /// Whose share of the calls a wake counts against: however the URL is written, and whatever its path, it is the same machine that is slow.
    private static func host(of notification: SubscriptionNotification) -> String {
        let origin = origin(of: notification)
        return URLOrigin(origin).map { "\($0.authority.host):\($0.authority.port(of: $0.scheme))" } ?? origin
    }

    /// The body of PROTOCOL.md, section 7.1.
    private static func body(_ notification: SubscriptionNotification) -> Bytes {
        let subscription = notification.subscription
        let id = PercentEncoding.encode(subscription.id)
        return JSON.object([
            .init("subscription_id", .string(subscription.id)), .init("wake_id", .string(notification.wake.id)),
            .init("generation", .integer(Int64(subscription.generation))), .init("streams", .array(notification.streams.map(\.json))),
            .init("callback_url", .string("\(subscription.root)__ds/subscriptions/\(id)/callback")),
            .init("callback_token", .string(notification.token)),
        ]).bytes
    }
}

extension SubscriptionStream {
    /// As wakes and claims say it.
    package var json: JSON {
        [
            "path": .string(path), "link_type": .string(link.typeName), "acked_offset": .string(Offset(link.acked).token),
            "tail_offset": .string(Offset(tail).token), "has_pending": .bool(isPending),
        ]
    }
}
