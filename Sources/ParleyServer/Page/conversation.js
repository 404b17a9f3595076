// The conversation.

const rejections = {
  turn_ended: "the turn had already ended", stale_turn: "another turn runs now", stale_offset: "something was said in between",
  busy: "a turn runs, and this agent takes one at a time",
  unknown_approval: "there is no such approval", already_decided: "it was decided before", approval_expired: "it came too late",
  arguments_changed: "the arguments are others now", closing: "the agent ends",
};

class Conversation {
  constructor(agent) {
    this.agent = agent;
    this.steps = new Map();       // Of the running turn, by path.
    this.calls = [];              // Tool calls that the model asked for and that no step has taken up yet.
    this.inputs = new Known();    // Entries without a receipt, by offset.
    this.cards = new Known();     // Approvals, by name.
    this.messages = new Known();  // What began a turn, by offset: to be said again when the turn has failed.
    this.lastText = "";
  }

  add(entry) {
    switch (entry.type) {
    case "receipt": return this.receipt(entry.of, entry);
    case "text": return this.text(entry);
    case "turn.started": this.calls = []; this.lastText = ""; return;
    case "step.started": return this.began(entry);
    case "step.completed": return this.completed(entry);
    case "step.failed": return this.failed(entry);
    case "turn.completed": return this.ended(entry);
    case "turn.failed": this.close(); return this.failedTurn(entry);
    case "turn.interrupted": this.close(); return this.note("Interrupted. What was written is kept.");
    case "turn.cancelled": this.close(); return this.note("Cancelled." + (entry.reason ? ` ${show(entry.reason)}` : ""));
    case "agent.stalled":
      return this.banner(
        `Stalled: ${entry.reason || "no reason given"}`, entry.message, entry.source && `At ${entry.source}.`,
        entry.remedy && `Remedy: ${entry.remedy}.`);
    case "agent.parked":
      return this.banner(`Parked: ${entry.reason}`, entry.message, entry.remedy && `Remedy: ${entry.remedy}.`);
    case "agent.resumed": return this.note("Resumed.");
    case "agent.closed": this.close(); return this.note("The agent has ended.");
    case "approval.requested": return this.cards.set(entry.approval, new ApprovalCard(entry, this.agent));
    case "approval.decided": return this.cards.get(entry.approval)?.decided(entry);
    case "timer.set": return this.steps.get(entry.step)?.row?.until(entry.due);
    case "timer.fired": return;
    case "supervision": return this.supervised(entry);
    case "emit": return this.value(entry.name, entry.data);
    default: return inputTypes.has(entry.type) ? this.input(entry) : this.note(`${entry.type} ${short(entry)}`);
    }
  }

  // MARK: What people say

  input(entry) {
    const receipt = make("span", "receipt", "queued");
    const card = entry.approval && this.cards.get(entry.approval);
    if (card) {
      card.add(entry, receipt);
    } else {
      const text = entry.text ?? entry.reason ?? (entry.data === undefined ? entry.approval ?? entry.name : show(entry.data));
      const said = make("div", "said", entry.type === "message" ? undefined : make("b", "", entry.type), text);
      const meta = make("div", "meta", make("span", "", entry.by), make("span", "", clock(entry.at)), receipt);
      const row = make("div", entry.type === "message" ? "mine" : "mine control", said, meta);
      row.dataset.type = entry.type;
      rows.add(row, String(text ?? "").length + 100);
    }
    this.inputs.set(entry.offset, { receipt, card });
    if (entry.type === "message") this.messages.set(entry.offset, entry);
    if (entry.receipt) this.receipt(entry.offset, entry.receipt);
  }

  receipt(of, { state, reason }) {
    const input = this.inputs.get(of);
    if (!input) return;
    this.inputs.delete(of);
    const why = reason ? `: ${reason}` + (rejections[reason] ? `, ${rejections[reason]}` : "") : "";
    input.receipt.dataset.receipt = state;
    input.receipt.textContent = tame(state + why);
    if (state !== "applied") {
      announce(state + why);
      input.card?.refused();
    }
  }

  // MARK: What the agent writes

  began(entry) {
    const known = this.steps.get(entry.step);
    const step = known || { at: entry.at, parts: new Map() };
    this.steps.set(entry.step, step);
    if (entry.kind === "approval") return;
    if (entry.kind !== "model") {
      step.row ||= this.takenUp(entry) || new StepRow(entry);
      step.row.began(entry);
      return;
    }
    // The model is asked again: what it asked for itself has been answered, done or not.
    this.settleCalls(Conversation.stem(entry.step));
    // Placed now and seen from its first text on: where it stands is the same live and later.
    if (!step.box) rows.add(step.box = make("div", "answer open"));
    step.box.hidden = step.parts.size === 0;
    for (const part of step.parts.values()) part.begin(entry.attempt || 1, entry.continues_at || 0);
  }

  // Calls that no step has taken up by now will not be: the tool is not known, or somebody said no.
  settleCalls(by) {
    this.calls = this.calls.filter(call => {
      const isOver = by === undefined || call.by === by;
      if (isOver) call.row.left("not run");
      return !isOver;
    });
  }

  // The path of a step without the number of its occurrence: a model that is asked again has the next number.
  static stem(step) { return step.replace(/#\d+$/, ""); }

  // The row of the call that a tool's step answers, if a model asked for it.
  takenUp(entry) {
    if (entry.kind !== "tool") return undefined;
    const id = entry.request?.call, index = this.calls.findIndex(call => call.name === entry.name && (!id || call.id === id));
    return index < 0 ? undefined : this.calls.splice(index, 1)[0].row;
  }

  part(step, name) {
    let part = step.parts.get(name);
    if (part) return part;
    if (!step.box) rows.add(step.box = make("div", "answer open"));
    step.box.hidden = false;
    const prose = new Prose();
    if (name === "text") step.box.append(prose.node);
    else step.box.prepend(make("details", "thinking", make("summary", "", "Thinking"), prose.node));
    part = new StepText(prose);
    step.parts.set(name, part);
    return part;
  }

  text(entry) {
    // It only says that the text is over.
    if (!entry.delta) return;
    const step = this.steps.get(entry.step) || { at: entry.at, parts: new Map() };
    this.steps.set(entry.step, step);
    this.part(step, entry.part || "text").add(entry);
    rows.weigh(step.box, entry.delta.length);
  }

  completed(entry) {
    const step = this.steps.get(entry.step) || { at: entry.at, parts: new Map() };
    this.steps.delete(entry.step);
    if (step.row) return step.row.done(entry);
    if (typeof entry.text !== "string") return;
    this.lastText = entry.text;
    const isNew = step.parts.size === 0;
    if (entry.text || !isNew) {
      this.part(step, "text");
      if (isNew) rows.weigh(step.box, entry.text.length);
      for (const [name, part] of step.parts) part.seal(name === "text" ? entry.text : undefined);
      const facts = Conversation.facts(entry, step.at).map(fact => make("span", "", fact));
      step.box.append(make("div", "meta", ...facts, ...Conversation.offers(step.parts.get("text").node)));
      step.box.classList.remove("open");
    } else {
      if (step.box) rows.remove(step.box);
    }
    for (const { id, name, arguments: given } of entry.tool_calls || []) {
      this.calls.push({ id, name, by: Conversation.stem(entry.step), row: new StepRow({ kind: "tool", name, arguments: given }) });
    }
  }

  /** What can be done with an answer. */
  static offers(prose) {
    const source = make("button", "tiny source-of", "Source"), copy = make("button", "tiny", "Copy");
    source.setAttribute("aria-pressed", "false");
    source.addEventListener("click", () => {
      prose.showSource(!prose.isSource);
      source.setAttribute("aria-pressed", String(prose.isSource));
    });
    copy.addEventListener("click", () => copyText(prose.source, copy));
    return [source, copy];
  }

  static facts(entry, began) {
    const facts = [clock(entry.at), span(new Date(entry.at) - new Date(began))];
    if (entry.usage?.output_tokens) facts.push(`${entry.usage.output_tokens} tokens`);
    if (entry.recovered_tokens) facts.push(`${entry.recovered_tokens} saved before a restart`);
    if (entry.steered?.length) facts.push(`steered`);
    const reason = entry.finish_reason;
    if (reason && !["stop", "tool_calls"].includes(reason)) facts.push(reason === "length" ? "cut at its length limit" : reason);
    return facts;
  }

  failed(entry) {
    const step = this.steps.get(entry.step);
    const again = entry.retry_at ? `; tried again ${span(new Date(entry.retry_at) - new Date(entry.at))} later` : "";
    if (entry.final !== false && !entry.retry_at) this.steps.delete(entry.step);
    if (step?.row) return step.row.failed(entry);
    if (step?.box && !again) step.box.classList.remove("open");
    // An approval's end is on its card, and a cancelled turn says so itself.
    if (["approval_denied", "approval_expired", "cancelled", "interrupted"].includes(entry.error?.code)) return;
    this.note(`${entry.step} failed: ${problem(entry.error)}${again}`, "bad");
  }

  ended(entry) {
    this.close();
    const output = entry.output;
    if (output === undefined || output === null || output === this.lastText) return;
    if (typeof output === "string") this.answer(output);
    else if (output.text !== this.lastText || !this.lastText) this.value("Output", output);
  }

  answer(text) {
    const prose = new Prose();
    prose.appendData(even(text));
    rows.add(make("div", "answer", prose.node, make("div", "meta", ...Conversation.offers(prose))), text.length);
  }

  failedTurn(entry) {
    const row = this.banner("The turn failed", problem(entry.error)), input = this.messages.get(entry.turn);
    if (!input) return;
    const again = make("button", "retry", "Try again");
    again.addEventListener("click", async () => {
      again.disabled = true;
      const { text, data } = input;
      try {
        await append(this.agent, text === undefined ? { type: "message", data } : { type: "message", text });
      } catch (error) {
        again.disabled = false;
        $("problem").textContent = `Not sent: ${error.message}`;
      }
    });
    row.append(make("div", "offers", again));
  }

  // The turn is over, and everything that was open in it.
  close() {
    for (const step of this.steps.values()) {
      step.box?.classList.remove("open");
      if (step.box && step.parts.size === 0) rows.remove(step.box);
      step.row?.left("not finished");
    }
    this.settleCalls();
    this.steps.clear();
    for (const card of this.cards.values()) card.left();
  }

  value(name, value) {
    const text = pretty(value);
    rows.add(make("div", "output", make("div", "meta", name), make("pre", "", typeof value === "string" ? value : text)), text.length);
  }

  supervised({ cause, action, restarts, reason, remedy }) {
    // A turn's cancelling is told by the entry before it and by its end.
    if (action === "cancel" || action === "park") return;
    const why = String(cause).replaceAll("_", " ") + (reason ? `: ${show(reason)}` : "") + (remedy ? `. Remedy: ${remedy}` : "");
    this.note(action === "resume" ? `Taken up again: ${why}, restart ${restarts}.` : `${action}: ${why}`);
  }

  note(text, kind) { rows.add(make("div", kind === "bad" ? "note bad" : "note", text), text.length); }

  banner(title, ...lines) {
    const row = make("div", "banner", make("strong", "", title), ...lines.filter(Boolean).map(line => make("p", "", line)));
    row.setAttribute("role", "alert");
    rows.add(row, 500);
    return row;
  }
}
