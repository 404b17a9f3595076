// What there is, what waits for a person, and what went wrong.

// Failures that this browser has been told to leave out: of each agent the turn, so that the next one shows again.
const dismissed = {
  key: "parley-dismissed", max: 500,
  get all() { try { return JSON.parse(localStorage.getItem(this.key)) ?? {}; } catch { return {}; } },
  has({ agent, last_turn: turn }) { return this.all[agent] === turn.turn; },
  add({ agent, last_turn: turn }) {
    const { [agent]: _, ...others } = this.all, kept = Object.entries(others).slice(1 - this.max);
    try { localStorage.setItem(this.key, JSON.stringify(Object.fromEntries([...kept, [agent, turn.turn]]))); } catch { }
  },
};

const home = {
  waiting: [], halted: [], channels: [], hasMoreChannels: false,

  async refresh() {
    const list = state => ask(`/v1/agents?state=${state}&limit=500&details=true`).then(answer => answer.agents);
    const [waiting, running, stalled, parked, streams] = await Promise.all(
      [...["waiting", "running", "stalled", "parked"].map(list), ask("/v1/streams?agents=false&limit=50")]);
    // A turn may ask for something and do something else meanwhile.
    this.waiting = [...waiting, ...running].filter(agent => agent.waiting_for?.some(({ kind }) => kind === "approval"));
    this.halted = [...stalled, ...parked];
    [this.channels, this.hasMoreChannels] = [streams.streams, Boolean(streams.next)];
  },

  show() {
    const failed = agents.found.filter(agent => agent.state === "idle" && agent.last_turn?.state === "failed" && !dismissed.has(agent));
    const asking = new Set(this.waiting.map(({ agent }) => agent));
    const running = agents.found.filter(({ agent, state }) => state === "running" && !asking.has(agent));
    const nodes = [
      this.section("Waits for you", this.newest(this.waiting).map(agent => this.approval(agent)), "Nothing waits for a person."),
      this.section("Stalled or parked", this.newest(this.halted).map(agent => this.halt(agent))),
      this.section("Failed", this.newest(failed).map(agent => this.failure(agent))),
      this.section("Runs now", this.newest(running).slice(0, 20).map(agent => this.card(agent))),
      agents.kinds && this.section("Kinds of agents", agents.kinds.map(kind => this.kind(kind)), "This server has none: declare one in ./agents/<kind>.md."),
      this.section("Channels without an agent", this.channels.map(channel => this.channel(channel))),
    ];
    const page = make("div", "home", ...nodes.filter(Boolean));
    if (this.shown?.isConnected && this.shown.isEqualNode(page)) return;
    const focused = document.activeElement?.closest?.(".home a, .home button")?.dataset.key;
    const top = log.scrollTop;
    rows.clear(this.shown = page);
    log.scrollTop = top;
    if (focused) page.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  },

  newest: list => [...list].sort((a, b) => (b.updated ?? "").localeCompare(a.updated ?? "")),

  section(title, cards, none) {
    if (!cards.length && !none) return undefined;
    const head = make("h2", "", title, cards.length ? make("small", "", String(cards.length)) : undefined);
    return make("section", "", head, cards.length ? make("div", "cards", ...cards) : make("p", "note", none));
  },

  card({ kind, id, state, updated }, ...more) {
    const link = make("a", "card", make("span", "who", make("span", "dot"), make("span", "name", make("i", "", kind + "/"), id), updated && make("time", "", ago(updated))),
      ...more.filter(Boolean).map(text => make("span", "says", text)));
    link.href = hash(`${kind}/${id}`);
    link.dataset.state = state;
    link.dataset.key = `${kind}/${id}`;
    return link;
  },

  approval(agent) {
    return this.card({ ...agent, state: "waiting" }, ...agent.waiting_for.filter(({ kind }) => kind === "approval")
      .map(({ name, due }) => `Approve ${unhidden(String(name))}?` + (due ? ` · by ${clock(due)}` : "")));
  },

  halt(agent) { return this.card(agent, `${agent.state}: ${String(agent.reason ?? "").replaceAll("_", " ")}, since ${clock(agent.since)}`); },

  failure(agent) {
    const card = this.card(agent, problem(agent.last_turn.error).slice(0, 300));
    card.classList.add("failed");
    const dismiss = make("button", "tiny", "Dismiss");
    dismiss.dataset.key = `dismiss ${agent.kind}/${agent.id}`;
    dismiss.setAttribute("aria-label", `Dismiss the failure of ${agent.kind}/${agent.id}`);
    dismiss.addEventListener("click", () => { dismissed.add(agent); this.show(); });
    return make("div", "dismissible", card, dismiss);
  },

  kind({ kind, model, tools, source, problem: wrong }) {
    const begin = make("button", "", "New"), facts = [source === "file" ? model || "no model" : "in Swift", tools?.length && tools.join(", "), wrong].filter(Boolean);
    begin.dataset.key = `new ${kind}`;
    begin.setAttribute("aria-label", `New ${kind}`);
    begin.addEventListener("click", () => go(`${kind}/${randomID().slice(0, 8)}`));
    return make("div", "card kind", make("span", "who", make("span", "name", kind)), make("span", "says", facts.join(" · ")), begin);
  },

  channel({ name, content_type: type, closed }) {
    const link = make("a", "card", make("span", "who", make("span", "name", "/" + name)), make("span", "says", type + (closed ? ", closed" : "")));
    link.href = hash("/" + name);
    link.dataset.key = "/" + name;
    return link;
  },
};
