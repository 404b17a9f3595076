// The list of agents.

const agents = {
  found: [], next: undefined, counts: {}, kinds: undefined, pages: 1, state: "", isAsking: false, isWanted: false, failures: 0,
  hasAnswer: false,

  // Pages until there are as many as are wanted; a search looks through more of them.
  async refresh() {
    if (document.hidden) return;
    if (this.isAsking) { this.isWanted = true; return; }
    this.isAsking = true;
    try {
      const wanted = $("search").value.trim() ? listMax : Math.min(listMax, this.pages * listPage), state = this.state;
      let found = [], after;
      do {
        const query = new URLSearchParams({ limit: Math.min(wanted - found.length, 500), details: "true" });
        if (!found.length) query.set("counts", "true");
        if (state) query.set("state", state);
        if (after) query.set("after", after);
        const answer = await request(`/v1/agents?${query}`, { cache: "no-store" });
        if (!answer.ok) throw new Error(answer.statusText);
        const page = await answer.json();
        found.push(...page.agents);
        if (page.counts) this.counts = page.counts;
        after = page.agents.length ? page.next : undefined;
      } while (after && found.length < wanted);
      // Not everybody may know what kinds there are: then none are shown.
      if (!this.kinds || !follower) this.kinds = await ask("/v1/kinds").then(answer => answer.kinds, () => undefined);
      if (!follower) await home.refresh();
      [this.found, this.next, this.failures, this.hasAnswer] = [found, after, 0, true];
      this.show();
      if (!follower) home.show();
    } catch { this.failures += 1; }
    this.isAsking = false;
    if (this.isWanted) { this.isWanted = false; this.refresh(); }
  },

  // Calm when nothing happens, sparing when nobody answers.
  schedule() { setTimeout(async () => { await this.refresh(); this.schedule(); }, this.failures ? 15_000 : 4_000); },

  show() {
    const sought = $("search").value.trim(), low = sought.toLowerCase();
    // Of the one that is open, its entries tell sooner.
    const known = follower?.last ? follower : null, listed = this.found.find(agent => `${agent.kind}/${agent.id}` === known?.name);
    const items = this.found.map(agent => ({ name: `${agent.kind}/${agent.id}`, state: agent.state, updated: agent.updated ?? "", failed: agent.last_turn?.state === "failed" }))
      .filter(item => item.name.toLowerCase().includes(low) && (!this.state || item.state === this.state))
      .map(item => item.name === known?.name ? { ...item, state: known.activity.state } : item)
      .sort((a, b) => b.updated.localeCompare(a.updated) || a.name.localeCompare(b.name, undefined, { numeric: true }));
    if (isName(sought) && !items.some(item => item.name === sought)) {
      const isKnown = !this.kinds || this.kinds.some(({ kind }) => kind === sought.split("/")[0]);
      items.unshift({ name: sought, state: "", updated: "", label: isKnown ? "open" : "no such kind" });
    }
    // Links stay the same nodes, so that a refresh takes the focus from nobody.
    const old = new Map([...$("list").children].map(node => [node.dataset.name, node])), focused = document.activeElement;
    const nodes = items.map(item => this.item(old.get(item.name), item));
    if (nodes.length !== old.size || nodes.some((node, index) => node !== $("list").children[index])) {
      $("list").replaceChildren(...nodes);
      if ($("list").contains(focused)) focused.focus({ preventScroll: true });
    }
    $("none").textContent = sought || this.state ? "None that match." : "None yet. Type a name such as assistant/me above.";
    $("none").hidden = items.length > 0 || !this.hasAnswer;
    $("more").hidden = !this.next || Boolean(sought) || this.found.length >= listMax;
    this.count();
    this.mark();
  },

  // More than a server counts is said as more.
  count() {
    for (const chip of $("chips").children) {
      const count = chip.value ? this.counts[chip.value] : Object.values(this.counts).reduce((sum, count) => sum + count, 0);
      chip.lastChild.textContent = count === undefined ? "" : count >= 10_000 ? "10,000+" : String(count);
      chip.hidden = Boolean(chip.value) && !count && chip.value !== this.state;
    }
  },

  item(node, { name, state, label, updated, failed }) {
    if (!node) {
      const [kind, id] = name.split("/");
      const link = make("a", "", make("span", "dot"), make("span", "name", make("i", "", kind + "/"), id), make("small"), make("time"));
      link.title = name;
      node = make("li", "", link);
      node.dataset.name = name;
    }
    const link = node.firstChild;
    link.href = hash(name, follower && !follower.isPlain ? follower.tab : "");
    link.dataset.state = state;
    link.classList.toggle("failed", Boolean(failed));
    const [, , word, time] = link.children;
    word.textContent = label || (failed && state === "idle" ? "failed" : state);
    time.textContent = updated ? ago(updated) : "";
    return node;
  },

  mark() {
    for (const node of $("list").children) {
      if (follower?.name === node.dataset.name) node.firstChild.setAttribute("aria-current", "page");
      else node.firstChild.removeAttribute("aria-current");
    }
  },

  move(by) {
    const links = [...$("list").querySelectorAll("a")], at = links.indexOf(document.activeElement);
    const from = at >= 0 ? at + by : Math.max(0, links.findIndex(link => link.hasAttribute("aria-current")));
    links[Math.min(links.length - 1, Math.max(0, from))]?.focus();
  },

  only(state) {
    [this.state, this.pages] = [state, 1];
    for (const chip of $("chips").children) chip.setAttribute("aria-pressed", String(chip.value === state));
    this.show();
    this.refresh();
  },
};
