// What the log has of an agent's past, and what the agent is: the tabs that are asked for as a whole.

async function ask(path) {
  const answer = await request(path, { cache: "no-store" });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.detail || `the server answers ${answer.status}.`), body);
  return body;
}

/** A tab that is asked for again when the channel says something new, a second after at the soonest. */
class Records {
  constructor(agent) {
    this.agent = agent;
    this.control = new AbortController();
    this.open = new Set();
    this.isAsking = false;
    queueMicrotask(() => this.load());  // Once the tab is whole.
  }

  add() { this.isStale = true; this.soon(); }
  stop() { this.control.abort(); }

  async soon() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    await pause(1000, this.control.signal);
    this.isWaiting = false;
    if (this.isStale) this.load();
  }

  async load() {
    if (this.isAsking || this.control.signal.aborted) return;
    this.isAsking = true;
    this.isStale = false;
    try {
      const nodes = await this.ask();
      if (!this.control.signal.aborted) this.show(nodes);
    } catch (error) {
      if (!this.control.signal.aborted && ![404, 410].includes(error.status)) this.show([make("p", "note bad", `Cannot be read: ${error.message}`)]);
    }
    this.isAsking = false;
  }

  // What was open stays open, and the reader's place is kept.
  show(nodes) {
    const top = log.scrollTop, focused = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    rows.clear(...nodes);
    for (const node of $("rows").querySelectorAll("details[data-key]")) node.open = this.open.has(node.dataset.key);
    for (const node of $("rows").querySelectorAll("details[data-key]")) {
      node.addEventListener("toggle", () => { if (node.open) this.open.add(node.dataset.key); else this.open.delete(node.dataset.key); });
    }
    log.scrollTop = top;
    if (focused) $("rows").querySelector(`[data-key="${CSS.escape(focused)}"] summary`)?.focus({ preventScroll: true });
  }

  more(next, nodes) {
    if (!next) return;
    const button = make("button", "more", "Earlier");
    button.addEventListener("click", () => { this.limit = Math.min(this.limitMax, this.limit * 3); this.load(); });
    if (this.limit < this.limitMax) nodes.push(button);
  }
}

/** Turns as waterfalls: what ran when, how long, how often, and who did what to it. */
class TraceTab extends Records {
  limit = 10;
  limitMax = 200;

  async ask() {
    const trace = await ask(`/v1/agents/${this.agent}/trace?limit=${this.limit}`);
    const nodes = [...trace.turns].reverse().map(turn => this.turn(turn, trace.at));
    if (!nodes.length) return [make("p", "empty", make("strong", "", "No turns yet"), "A turn begins with a message.")];
    this.more(trace.next, nodes);
    return nodes;
  }

  turn(turn, now) {
    const start = new Date(turn.started), end = new Date(turn.ended ?? now), width = Math.max(1, end - start);
    const place = (from, to) => {
      const left = Math.min(99.4, Math.max(0, (new Date(from) - start) / width * 100));
      const bar = make("span", "bar");
      bar.style.left = `${left}%`;
      bar.style.width = `${Math.max(0.6, Math.min(100 - left, (new Date(to ?? end) - new Date(from)) / width * 100))}%`;
      return bar;
    };
    const said = turn.input?.text ?? (turn.input?.data === undefined ? "" : short(turn.input.data));
    const head = make("div", "turn-head",
      make("h2", "", said.slice(0, 160) || `Turn ${shortOffset(turn.turn)}`),
      make("div", "meta", make("span", `is ${turn.state}`, turn.state), ...TraceTab.facts(turn, now).map(fact => make("span", "", fact))));
    const rows = make("div", "falls");
    for (const step of turn.steps ?? []) this.step(rows, step, turn, place, 0);
    for (const control of turn.controls ?? []) if (!control.step) rows.append(this.saidTo(control, turn, place, 0));
    if (turn.steps_omitted) rows.append(make("p", "note", `${turn.steps_omitted} more steps, which the sums count.`));
    if (turn.error) rows.append(make("p", "note bad", problem(turn.error)));
    return make("section", "trace", head, rows);
  }

  static facts(turn, now) {
    const { totals = {} } = turn, facts = [clock(turn.started)];
    facts.push(span(turn.duration_ms ?? new Date(now) - new Date(turn.started)));
    if (turn.queued_ms > 50) facts.push(`queued ${span(turn.queued_ms)}`);
    if (totals.output_tokens || totals.input_tokens) facts.push(`${totals.input_tokens ?? 0} tokens in, ${totals.output_tokens ?? 0} out`);
    if (totals.recovered_tokens) facts.push(`${totals.recovered_tokens} recovered`);
    if (totals.model_ms) facts.push(`model ${span(totals.model_ms)}`);
    if (totals.waiting_ms) facts.push(`waiting ${span(totals.waiting_ms)}`);
    for (const restart of turn.restarts ?? []) facts.push(`resumed after ${restart.cause} at ${clock(restart.at)}`);
    if (turn.input?.by) facts.push(`by ${turn.input.by}`);
    return facts;
  }

  step(rows, step, turn, place, depth) {
    const label = make("span", "label", make("code", "", step.step.split("/").at(-1)));
    label.style.paddingLeft = `${depth * 1.1}rem`;
    const lane = make("span", "lane", place(step.started, step.ended));
    lane.firstChild.classList.add(step.kind, step.state);
    for (const attempt of (step.attempts ?? []).slice(1)) {
      const mark = place(attempt.started, attempt.started);
      mark.className = "attempt";
      lane.append(mark);
    }
    const took = step.duration_ms === undefined ? "open" : span(step.duration_ms);
    const row = make("details", "fall", make("summary", "", label, lane, make("span", "took", took)), this.details(step));
    row.dataset.key = `${turn.turn} ${step.step}`;
    row.dataset.state = step.state;
    rows.append(row);
    for (const control of turn.controls ?? []) if (control.step === step.step) rows.append(this.saidTo(control, turn, place, depth + 1));
    for (const child of step.steps ?? []) this.step(rows, child, turn, place, depth + 1);
  }

  details(step) {
    const facts = make("dl"), fact = (name, value) => {
      if (value !== undefined && value !== null && value !== "") facts.append(make("dt", "", name), make("dd", "", show(value)));
    };
    fact("Kind", step.kind === "scope" ? "scope, which only holds steps" : step.kind + (step.compensation ? ", compensation" : ""));
    fact("State", step.state);
    fact("Model", step.model);
    fact("Follows", step.channel);
    if (step.input_tokens !== undefined || step.output_tokens !== undefined) {
      fact("Tokens", `${step.input_tokens ?? 0} in, ${step.output_tokens ?? 0} out` + (step.recovered_tokens ? `, ${step.recovered_tokens} recovered` : ""));
    }
    fact("Finished", step.finish_reason);
    fact("Not run", step.calls_not_run?.map(({ name, result }) => `${name}: ${result}`).join("; "));
    fact("Until", step.state === "open" ? step.due && clock(step.due) : undefined);
    if (step.attempts?.length > 1) fact("Attempts", step.attempts.map(({ attempt, state, error }) => `${attempt}: ${error?.code ?? state}`).join(", "));
    fact("Error", step.error && problem(step.error));
    const { approval } = step;
    if (approval) {
      fact("Approval", [approval.state, approval.decided?.by && `by ${approval.decided.by}`, approval.executed?.step && `then ${approval.executed.step}`]
        .filter(Boolean).join(", "));
    }
    return facts;
  }

  saidTo(control, turn, place, depth) {
    const label = make("span", "label", make("span", "", control.type ?? "entry"));
    label.style.paddingLeft = `${depth * 1.1}rem`;
    const lane = make("span", "lane");
    if (control.at) { lane.append(place(control.at, control.at)); lane.firstChild.className = "said-at"; }
    const text = [control.by, control.state + (control.refused ? `: ${control.refused}` : ""), control.text ?? control.reason ?? control.name]
      .filter(Boolean).join(" · ");
    lane.append(make("span", "words", text));
    return make("div", "fall control", label, lane);
  }
}

/** Who said and decided what, newest first. */
class AuditTab extends Records {
  limit = 50;
  limitMax = 1000;

  async ask() {
    const audit = await ask(`/v1/agents/${this.agent}/audit?limit=${this.limit}`);
    const nodes = [...audit.records].reverse().map(record => this.record(record));
    if (!nodes.length) return [make("p", "empty", make("strong", "", "Nothing yet"), "What people send and decide is listed here.")];
    this.more(audit.next, nodes);
    return nodes;
  }

  record(record) {
    const isApproval = record.type === "approval", by = record.by ?? record.decided?.by ?? "";
    const what = isApproval ? record.action ?? record.approval : record.text ?? record.reason ?? record.name ?? (record.data === undefined ? "" : short(record.data));
    const receipt = record.receipt ?? {}, state = isApproval ? record.state : receipt.state ?? "undecided";
    const refused = receipt.reason ?? record.refused;
    const row = make("details", "audit",
      make("summary", "", make("time", "", clock(record.at ?? record.requested?.at)), make("b", "", record.type), make("span", "by", by),
        make("span", "brief", String(what ?? "").slice(0, 300)), make("span", `is ${state}`, state + (refused ? `: ${refused}` : ""))),
      make("pre", "", pretty(record)));
    row.dataset.key = record.offset ?? record.approval;
    return row;
  }
}

/** What the agent is: its state, what decides its answers, and how to be rid of it. */
class AboutTab extends Records {
  async ask() {
    const base = `/v1/agents/${this.agent}`;
    const [status, state, definition] = await Promise.all([ask(base), ask(`${base}/state`), ask(`${base}/definition`)]);
    return [this.status(status), this.state(state), this.definition(definition), this.actions(status)];
  }

  section(title, ...content) { return make("section", "about", make("h2", "", title), ...content); }

  facts(pairs) {
    const list = make("dl", "facts");
    for (const [name, value] of pairs) if (value !== undefined && value !== null && value !== "") list.append(make("dt", "", name), make("dd", "", String(value)));
    return list;
  }

  status(status) {
    const waits = (status.waiting_for ?? []).map(({ step, kind, name = step, since, due, match }) =>
      `${kind} ${name}${match ? ` with ${short(match)}` : ""} since ${clock(since)}` + (due ? `, ${countdown(due)}` : "")).join("; ");
    return this.section("Now", this.facts([
      ["State", status.state], ["Reason", status.reason], ["Why", status.message], ["What helps", status.remedy], ["Since", status.since && clock(status.since)],
      ["Waits for", waits], ["Messages that wait", status.queued?.ahead], ["Entries undecided", status.undecided], ["Restarts of the turn", status.restarts],
      ["Created", clock(status.created)], ["In memory", status.in_memory ? "yes" : "no, only on disk"], ["Offset", status.tail_offset],
    ]));
  }

  state({ state: saved }) {
    // What is said of the state is not the state.
    const { $absent, ...state } = saved ?? {}, isNone = !Object.keys(state).length;
    const pre = make("pre", "boxed", isNone ? "" : pretty(state));
    pre.tabIndex = 0;
    return this.section("Saved state", isNone ? make("p", "note", "None: what it knows is its conversation.") : pre);
  }

  definition({ known, declared, concurrent, sha256, definition, turn }) {
    if (!known) return this.section("Definition", make("p", "note bad", "This server has no such kind any more: nothing answers for this agent."));
    if (!declared) return this.section("Definition", make("p", "note", "A program in Swift."), this.facts([["Messages meanwhile", concurrent]]));
    const { instructions, model, tools, options, context } = definition;
    const prose = make("pre", "boxed", ...marked(instructions));
    prose.tabIndex = 0;
    const nodes = [
      this.facts([
        ["Model", model || "none"], ["Tools", (tools ?? []).map(tool => tool.name).join(", ") || "none"], ["Messages meanwhile", concurrent],
        ["Context", context && `${context} characters`], ["Options", options && Object.keys(options).length ? short(options) : undefined], ["SHA-256", sha256],
      ]),
      make("h3", "", "Instructions"), prose,
    ];
    if (turn) nodes.push(make("p", "note", `The newest turn began with another one, ${turn.sha256.slice(0, 12)}, and keeps it.`));
    return this.section("Definition", ...nodes);
  }

  actions(status) {
    const remove = make("button", "risky delete", "Delete this agent…"), follow = make("button", "", "Copy as curl");
    follow.addEventListener("click", () => copyText(curl.follow(`agents/${this.agent}`), follow));
    remove.addEventListener("click", () => confirmDelete(`agents/${this.agent}`, status));
    return this.section("Follow or delete", make("div", "offers", follow, remove));
  }
}
