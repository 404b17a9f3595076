// Following a channel.

// Follows one channel until another is chosen, resuming by offset whatever happens to the connection.
class Follower {
  constructor({ name, view }) {
    this.name = name;
    this.tab = view;
    this.isPlain = name.startsWith("/");
    this.channel = this.isPlain ? name.slice(1) : `agents/${name}`;
    this.path = "/v1/stream/" + this.channel.split("/").map(encodeURIComponent).join("/");
    this.control = new AbortController();
    this.wake = () => {};
    this.begin();
    this.run();
  }

  begin() {
    this.offset = "-1";
    this.last = "";
    this.isEmpty = this.isMissing = false;
    this.unknown = undefined;
    this.contentType = undefined;
    this.activity = new Activity();
    rows.clear();
    this.view?.stop?.();
    this.view = this.makeView();
    showActivity();
  }

  makeView() {
    if (this.isPlain) return new PlainLog();
    switch (this.tab) {
    case "raw": return new RawLog();
    case "trace": return new TraceTab(this.name);
    case "audit": return new AuditTab(this.name);
    case "about": return new AboutTab(this.name);
    }
    return new Conversation(this.name);
  }

  /** Whether the rows are the channel's entries, with the newest at the end. */
  get isLog() { return !(this.view instanceof Records); }

  stop() { this.control.abort(); this.view.stop?.(); this.wake(); }

  // Something was sent: a channel that was not there may be there now.
  nudge() { this.wake(); }

  async run() {
    let failures = 0;
    this.say("wait", "connecting");
    while (!this.control.signal.aborted) {
      try {
        const answer = await this.ask();
        if (answer.status === 404 || answer.status === 410) {
          this.missing(answer.status === 410, await answer.json().catch(() => ({})));
          await this.rest(3000);
          continue;
        }
        if (!answer.ok) throw new Error((await answer.json()).detail);
        failures = 0;
        if (await this.read(answer.body)) return this.say("", "ended");
        // The server ends a stream now and then, and a proxy at will: the next one begins at the offset.
        await this.rest(100);
      } catch (error) {
        if (this.control.signal.aborted) return;
        failures += 1;
        this.say("bad", navigator.onLine === false ? "offline" : "reconnecting");
        await this.rest(Math.min(5000, 250 * 2 ** failures) * (0.7 + Math.random() * 0.6));
      }
    }
  }

  async ask() {
    const options = { signal: this.control.signal, cache: "no-store" };
    // What a plain channel holds, its head says: events have no type of their own.
    if (this.isPlain && !this.contentType) {
      const head = await request(this.path, { ...options, method: "HEAD" });
      if (!head.ok) return head;
      this.contentType = head.headers.get("Content-Type") ?? "";
      showControls();
    }
    const view = this.isPlain ? "" : `&view=${this.tab === "raw" ? "raw" : "settled"}`;
    return request(`${this.path}?offset=${this.offset}&live=sse${view}`, options);
  }

  say(kind, text) {
    if (follower && follower !== this) return;
    $("link").dataset.kind = kind;
    $("link").textContent = $("link").title = text;
  }

  rest(ms) { return Promise.race([pause(ms, this.control.signal), new Promise(done => { this.wake = done; })]); }

  missing(isDeleted, { code, kinds }) {
    // What was shown is of a channel that is gone; another one of its name begins at its own start.
    if (this.offset !== "-1") this.begin();
    this.isMissing = true;
    this.isDeleted = isDeleted;
    this.unknown = code === "unknown_agent_kind" ? kinds : undefined;
    const isNew = !isDeleted && !this.unknown && !this.isPlain;
    this.say(isNew ? "wait" : "bad", isDeleted ? "deleted" : isNew ? "new" : "not there");
    showActivity();
    if (isDeleted) return this.empty("This agent was deleted", "Its name is not used again by mistake.", this.reviver());
    if (this.unknown) return this.empty(`No agents of kind “${this.name.split("/")[0]}”`, ...Follower.others(kinds, this.name));
    if (this.isPlain) return this.empty(`No channel ${this.name}`, "A program creates it with PUT, a person with `parley create`. It appears here then.", this.namesake());
    this.empty("Nobody here yet", "Say something, and it begins.");
  }

  /** The kinds there are, each as a link to the agent of the same id. */
  static others(kinds, name) {
    if (!kinds?.length) return ["This server has no kinds of agents: it was started without a folder of them."];
    const [asked, id] = name.split("/"), link = kind => {
      const node = make("a", "", kind);
      node.href = hash(`${kind}/${id}`);
      return node;
    };
    const links = kinds.slice(0, 20).map(link), meant = nearest(asked, kinds);
    return [...(meant ? ["Did you mean ", link(meant), "? "] : []), "This server has ", ...links.flatMap((link, index) => index ? [", ", link] : [link]), "."];
  }

  /** The agent that was meant, perhaps: its address has no slash before it. */
  namesake() {
    const name = this.name.slice(1), link = make("a", "", `Open the agent ${name}`);
    link.href = hash(name);
    if (!isName(name)) return undefined;
    // Not everybody may know the kinds: then it may be one.
    const offers = make("span", "offers"), isKind = ask("/v1/kinds").then(({ kinds }) => kinds.some(({ kind }) => kind === name.split("/")[0]), () => true);
    isKind.then(is => { if (is) offers.append(link); });
    return offers;
  }

  reviver() {
    const button = make("button", "anew", "Make it anew");
    button.addEventListener("click", async () => {
      button.disabled = true;
      const answer = await request(this.path, { method: "PUT", headers: { "Content-Type": "application/json" } });
      if (!answer.ok) $("problem").textContent = (await answer.json().catch(() => ({}))).detail ?? `The server answers ${answer.status}.`;
      this.nudge();
    });
    return make("span", "offers", button);
  }

  empty(title, ...content) {
    if (this.emptyTitle !== title || !this.isEmpty) rows.clear(make("p", "empty", make("strong", "", title), ...content));
    [this.isEmpty, this.emptyTitle] = [true, title];
  }

  // Returns whether the channel has ended.
  async read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    this.pending = undefined;
    for (;;) {
      const { done, value } = await this.next(reader);
      if (done) return false;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const event = this.event(rest.slice(0, end));
        rest = rest.slice(end + 2);
        if (this.control.signal.aborted) return false;
        if (event.name === "data") this.isPlain ? this.pending = event.data : this.take(event.data);
        if (event.name === "control") {
          // Messages have no offsets of their own: they count once it is known where they lead.
          if (this.pending !== undefined) this.take(this.pending);
          this.pending = undefined;
          if (this.moved(JSON.parse(event.data))) return true;
        }
      }
    }
  }

  // The server says something every 15 seconds: a connection that is silent for longer is dead, whatever the network says.
  async next(reader) {
    const watch = setTimeout(() => reader.cancel().catch(() => {}), 40_000);
    try { return await reader.read(); } finally { clearTimeout(watch); }
  }

  take(data) {
    const entries = this.isPlain && !this.isJSON ? [data] : parse(data);
    if (this.isEmpty) { rows.clear(); this.isEmpty = false; }
    if (this.isLog) rows.change(() => this.addAll(entries)); else this.addAll(entries);
    showActivity();
  }

  addAll(entries) {
    for (const entry of entries) {
      if (!this.isPlain) {
        // What comes again after a break is known already.
        if (entry.offset <= this.last) continue;
        this.last = entry.offset;
        this.activity.take(entry);
      }
      this.view.add(entry);
    }
  }

  get isJSON() { return /json/.test(this.contentType ?? ""); }

  moved(control) {
    this.isMissing = this.isDeleted = false;
    this.unknown = undefined;
    this.offset = control.streamNextOffset;
    if (control.upToDate) {
      this.say("live", "live");
      if (this.isLog && (!$("rows").firstChild || this.isEmpty)) this.empty("Nothing said yet", this.isPlain ? "" : "Say something, and it begins.");
      showActivity();
    }
    if (control.streamClosed && this.isPlain) { this.activity.isClosed = true; showActivity(); }
    return control.streamClosed === true;
  }

  event(block) {
    const event = { name: "", data: "" }, lines = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("event:")) event.name = line.slice(6).trim();
      else if (line.startsWith("data:")) lines.push(line.slice(line[5] === " " ? 6 : 5));
    }
    event.data = lines.join("\n");
    return event;
  }
}
