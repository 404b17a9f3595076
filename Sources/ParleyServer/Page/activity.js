// What the agent does.

// Follows from the entries, so that nobody needs to ask for it.
class Activity {
  constructor() { this.turn = null; this.steps = new Map(); this.stall = this.park = null; this.isClosed = false; }

  take(entry) {
    const step = this.steps.get(entry.step);
    switch (entry.type) {
    case "turn.started": this.turn = entry.turn; this.since = entry.at; this.steps.clear(); this.stall = this.park = null; break;
    case "turn.completed": case "turn.failed": case "turn.interrupted": case "turn.cancelled":
      this.turn = null; this.steps.clear(); this.stall = this.park = null; break;
    case "step.started":
      this.stall = null;
      this.steps.set(entry.step, {
        kind: entry.kind, name: entry.name || entry.step, at: entry.at, attempt: entry.attempt || 1, channel: entry.request?.channel,
      });
      break;
    case "step.completed": this.steps.delete(entry.step); break;
    case "step.failed": if (entry.final || !step) this.steps.delete(entry.step); else step.retryAt = entry.retry_at; break;
    case "approval.requested": if (step) { step.action = entry.action; step.due = entry.expires_at; } break;
    case "timer.set": if (step) step.due = entry.due; break;
    case "supervision": if (entry.action === "resume") this.stall = null; break;
    case "agent.stalled": this.stall = entry; break;
    case "agent.parked": this.park = entry; break;
    case "agent.resumed": this.stall = this.park = null; break;
    case "agent.closed": this.isClosed = true; this.turn = null; break;
    }
  }

  get state() {
    if (this.isClosed) return "closed";
    if (this.stall) return "stalled";
    if (this.park) return "parked";
    if (!this.turn) return "idle";
    const waits = step => ["sleep", "wait", "approval"].includes(step.kind);
    return this.steps.size > 0 && [...this.steps.values()].every(waits) ? "waiting" : "running";
  }

  get isTurnUnderWay() { return this.turn !== null && !this.isHalted && !this.isClosed; }

  // Its turn is open, and no program runs it: a person is needed.
  get isHalted() { return Boolean(this.stall || this.park); }

  // What it does or waits for, and since when.
  get what() {
    if (this.stall) return [this.stall.reason, this.stall.message].filter(Boolean).join(": ");
    if (!this.turn) return "";
    const isWaiting = this.state === "waiting";
    const said = [...this.steps.values()].slice(0, 2).map(step => Activity.describe(step, isWaiting));
    if (this.steps.size > 2) said.push(`${this.steps.size - 2} more`);
    return [`turn ${shortOffset(this.turn)}`, ...(said.length ? said : [`for ${span(Date.now() - new Date(this.since))}`])].join(" · ");
  }

  static describe(step, isWaiting) {
    const since = `since ${clock(step.at)}`, until = step.due ? `, ${countdown(step.due)}` : "", prefix = isWaiting ? "for " : "";
    switch (step.kind) {
    case "approval": return `${prefix}approval of ${step.action || step.name} ${since}${until}`;
    case "sleep": return step.due ? `until ${clock(step.due)}, ${since}` : since;
    case "wait": return (step.channel ? `${prefix}more of ${step.channel} ` : `${prefix}the signal ${step.name} `) + since + until;
    }
    if (step.retryAt && new Date(step.retryAt) > Date.now()) return `${step.name} again in ${span(new Date(step.retryAt) - Date.now())}`;
    const attempt = step.attempt > 1 ? `, attempt ${step.attempt}` : "";
    return `${step.name} for ${span(Math.max(1000, Date.now() - new Date(step.at)))}${attempt}`;
  }
}
