// Steps and approvals as rows of the conversation.

// A step that is no text: one line, with arguments and result behind it.
class StepRow {
  constructor(entry) {
    this.brief = make("span", "brief");
    this.took = make("span", "took");
    this.facts = make("dl");
    this.node = make("details", "step", make("summary", "", make("code", "", entry.name || entry.step), this.brief, this.took), this.facts);
    this.node.dataset.kind = entry.kind;
    this.takeArguments(entry);
    this.is("open", entry.kind === "tool" ? "asked for" : "");
    rows.add(this.node, 300);
  }

  is(state, text) { this.node.dataset.is = state; this.took.textContent = text; }

  fact(name, value) {
    const text = show(value);
    this.facts.append(make("dt", "", name), make("dd", "", make("pre", "", text)));
    if (this.node.parentNode) rows.weigh(this.node, text.length);
  }

  takeArguments(entry) {
    const given = opened(entry.arguments ?? entry.request?.arguments);
    if (given === undefined || this.hasArguments) return;
    this.hasArguments = true;
    this.brief.textContent = short(given);
    this.fact("Arguments", given);
  }

  began(entry) {
    this.at = this.at || entry.at;
    this.takeArguments(entry);
    if (entry.step !== entry.name) this.node.title = entry.step;
    this.is(["sleep", "wait"].includes(entry.kind) ? "waiting" : "open", entry.attempt > 1 ? `attempt ${entry.attempt}` : "");
  }

  until(due) { this.took.textContent = `until ${clock(due)}`; }

  done(entry) {
    if (entry.result !== undefined && entry.result !== null) {
      this.fact("Result", entry.result);
      if (!this.brief.textContent) this.brief.textContent = short(entry.result);
    }
    this.is("done", span(new Date(entry.at) - new Date(this.at)));
  }

  failed(entry) {
    this.fact("Error", problem(entry.error));
    if (entry.retry_at) return this.is("open", "failed, will be tried again");
    this.brief.textContent = problem(entry.error);
    this.is("failed", "failed");
  }

  left(text) { if (["open", "waiting"].includes(this.node.dataset.is)) this.is("left", text); }
}

// A question to a person: exactly what is to be done, until when, and what became of it.
class ApprovalCard {
  constructor(entry, agent) {
    this.entry = entry;
    this.agent = agent;
    this.until = make("span", "until", entry.expires_at ? countdown(entry.expires_at) : "no time limit");
    if (entry.expires_at) this.until.dataset.until = entry.expires_at;
    this.reason = make("input");
    this.reason.placeholder = "Reason (optional)";
    this.reason.setAttribute("aria-label", "Reason");
    this.approve = make("button", "main approve", "Approve");
    this.deny = make("button", "risky deny", "Deny");
    this.approve.addEventListener("click", () => this.decide("approve"));
    this.deny.addEventListener("click", () => this.decide("deny"));
    this.controls = make("div", "decide", this.reason, this.deny, this.approve);
    this.verdict = make("p", "verdict");
    this.verdict.hidden = true;
    this.entries = make("div", "said-so");
    this.action = make("code", "", unhidden(entry.action || entry.approval));
    const text = pretty(entry.args), args = make("pre", "args", text);
    args.tabIndex = 0;
    args.setAttribute("role", "region");
    args.setAttribute("aria-label", "Arguments as JSON");
    const given = ApprovalCard.given(entry.args);
    const exact = given ? make("details", "exact", make("summary", "", "As JSON"), args) : args;
    this.title = make("h2", "", "Approve ", this.action, "?");
    const ask = make("div", "ask", this.title, this.until), digest = make("p", "digest", `SHA-256 ${entry.args_sha256}`);
    this.asked = [given, exact, digest].filter(Boolean);
    this.node = make("section", "approval", ask, ...this.asked, this.controls, this.verdict, this.entries);
    this.node.setAttribute("aria-label", `Approval of ${unhidden(String(entry.action))}`);
    this.node.dataset.decision = "open";
    this.node.dataset.approval = entry.approval;
    rows.add(this.node, text.length + 500);
    announce(`Asks for approval of ${unhidden(String(entry.action))}`);
  }

  /** The arguments by name, texts as texts; `undefined` where there are none to be named. */
  static given(args) {
    if (typeof args !== "object" || args === null || Array.isArray(args) || !Object.keys(args).length) return undefined;
    return make("dl", "given", ...Object.entries(args).flatMap(([name, value]) => {
      const isText = typeof value === "string";
      const kind = isText ? `text, ${[...value].length} characters` : value === null ? "null" : Array.isArray(value) ? "list" : typeof value;
      const shown = make("pre", isText ? "as-text" : "", ...isText ? marked(value) : [ApprovalCard.compact(value)]);
      return [make("dt", "", make("code", "", unhidden(name)), make("small", "", kind)), make("dd", "", shown)];
    }));
  }

  static compact(value) {
    const line = unhidden(JSON.stringify(value));
    return line.length <= 72 ? line : pretty(value);
  }

  get isOpen() { return this.node.dataset.decision === "open"; }

  enable(isEnabled) { for (const control of [this.reason, this.approve, this.deny]) control.disabled = !isEnabled; }

  async decide(type) {
    this.enable(false);
    this.say(type === "approve" ? "Approving…" : "Denying…");
    const entry = { type, approval: this.entry.approval, args_sha256: this.entry.args_sha256 };
    if (this.reason.value.trim()) entry.reason = this.reason.value.trim();
    try {
      await append(this.agent, entry);
      this.say("Sent, and not decided yet.");
    } catch (error) {
      this.say(`Not sent: ${error.message}`);
      this.enable(this.isOpen);
    }
  }

  say(text) { if (this.isOpen) { this.verdict.textContent = text; this.verdict.hidden = !text; } }

  // A decision that somebody sent, with the receipt that says what became of it.
  add(entry, receipt) {
    const what = make("span", "", `${entry.by} sent ${entry.type}` + (entry.reason ? `: ${show(entry.reason)}` : ""));
    this.entries.append(make("div", "meta", what, make("span", "", clock(entry.at)), receipt));
  }

  // A decision was rejected; unless another one counted, the question is still open.
  refused() { if (this.isOpen) { this.say(""); this.enable(true); } }

  decided(entry) {
    this.end(entry.decision, [
      { approved: "Approved", denied: "Denied", expired: "Expired: nobody decided in time" }[entry.decision] || entry.decision,
      entry.decided_by && `by ${entry.decided_by}`, `at ${clock(entry.at)}`, entry.reason && `· ${show(entry.reason)}`,
    ].filter(Boolean).join(" "));
  }

  left() { if (this.isOpen) this.end("left", "The turn ended before anybody decided."); }

  end(decision, text) {
    this.say(text);
    this.node.dataset.decision = decision;
    this.title.replaceChildren(this.action);
    this.controls.replaceWith(this.verdict);
    this.until.remove();
    // What was asked makes room for what follows, and is a click away.
    const asked = make("details", "asked", make("summary", "", "What was asked"));
    this.verdict.after(asked);
    asked.append(...this.asked);
    announce(text);
  }
}
