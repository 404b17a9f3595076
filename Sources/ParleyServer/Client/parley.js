// The client of a Parley server, for browsers and node 20: one file, no dependencies. Types: parley.d.ts beside it.
//
//     import { Parley, TextView } from "/parley.js";
//     const parley = new Parley(), text = new TextView();
//     await parley.send("assistant/me", "Tell me about the sea.");
//     for await (const entry of parley.follow("agents/assistant/me")) show(text.add(entry).text);
//
// What is followed continues by itself after any break, from the last offset that arrived: no entry is missed, none comes twice.

/** What the server refused: an RFC 9457 problem. `code` is for programs, the message for people. */
export class ParleyError extends Error {
  /** @param {Partial<import("./parley.d.ts").Problem>} problem */
  constructor(problem) {
    super(problem.detail || problem.title || `the server answers ${problem.status}`);
    this.name = "ParleyError";
    this.status = problem.status || 0;
    this.code = problem.code || "unknown";
    this.problem = problem;
  }

  /** Whether the same may succeed later, without a change of what is asked. */
  get isTransient() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500 && this.status !== 501;
  }
}

const socketSubprotocol = "parley.v1";
const pauseMinMs = 200, pauseMaxMs = 15_000;
/** A stream that is silent for longer is dead: the server says something every 15 s. */
const silenceMs = 45_000;
const socketSilenceMs = 75_000;
/** So many sockets in a row that never opened mean that something between does not let them through. */
const socketFailuresMax = 2;
const socketRetryMs = 300_000;
/** A server that asks for more patience is asked again all the same. */
const retryAfterMaxMs = 60_000;
/** A channel that is not there yet is looked for at least every 1.6 s. */
const awaitedAttempts = 3;
/** Entries received and not yet taken: behind that the stream waits. */
const queuedMax = 4_096;

/** Follows, and talks to, the channels of a server. One object serves a whole page: what it follows shares one WebSocket. */
export class Parley {
  #socket;
  #socketFailures = 0;
  #socketRetryAt = 0;
  /** Waiters to be woken when the device is back. */
  #waiting = new Set();
  /** Which channels are waited for, by what is to be called when something is appended to them from here. */
  #awaited = new Map();
  #wake = () => { for (const wake of [...this.#waiting]) wake(); };

  /** @param {import("./parley.d.ts").ParleyOptions} [options] */
  constructor(options) {
    const { url, token, transport = "auto", fetch: fetching, WebSocket: sockets } = given(options);
    const base = url ?? (typeof location === "object" ? location.origin : undefined);
    if (!base) throw new TypeError("url is missing; expected the server's, such as http://127.0.0.1:4437");
    if (!["auto", "socket", "stream"].includes(transport)) {
      throw new TypeError(`transport is '${transport}'; expected auto, socket or stream`);
    }
    this.url = String(base).replace(/\/+$/, "");
    this.token = token;
    this.transport = transport;
    this.fetch = fetching ?? ((...given) => globalThis.fetch(...given));
    this.WebSocket = sockets ?? globalThis.WebSocket;
    if (transport === "socket" && !this.WebSocket) throw new TypeError("transport is 'socket', but there is no WebSocket here; give one");
    const target = globalThis.addEventListener ? globalThis : undefined;
    target?.addEventListener("online", this.#wake);
    target?.addEventListener("pageshow", this.#wake);
    globalThis.document?.addEventListener?.("visibilitychange", () => { if (!document.hidden) this.#wake(); });
  }

  // Following

  /**
   * Follows a channel, entry by entry, until it ends, is unfollowed, or the server refuses. An agent may be followed before its first message.
   * @param {string} channel
   * @param {import("./parley.d.ts").FollowOptions} [options]
   */
  follow(channel, options) { return new Follow(this, { op: "follow", channel, offset: "-1", ...given(options) }); }

  /**
   * Follows an agent and all its descendants, those started later, too. Entries come with the `channel` they are from; one that is not
   * followed is told of by `{type: "ended", channel, reason, error}`.
   * @param {string} channel
   * @param {import("./parley.d.ts").TreeOptions} [options]
   */
  tree(channel, options) { return new Follow(this, { op: "tree", channel, ...given(options) }); }

  // Saying

  /**
   * Appends entries, once, however often it has to be tried.
   * @param {string} channel
   * @param {object | object[]} entries
   * @param {import("./parley.d.ts").AppendOptions} [options]
   * @returns {Promise<import("./parley.d.ts").Appended>}
   */
  async append(channel, entries, options) {
    const { key = randomKey(), signal, patience = 60_000 } = given(options);
    const list = Array.isArray(entries) ? entries : [entries];
    const until = Date.now() + patience;
    for (let attempt = 0; ; attempt++) {
      try {
        // The same bytes both ways, so that the key counts for both.
        const link = this.link();
        const appended = await (link
          ? link.ask({ op: "append", channel, entries: list, key }, signal)
          : this.#post(channel, JSON.stringify(list), key, signal));
        for (const [wake, awaited] of this.#awaited) if (awaited === channel) wake();
        return appended;
      } catch (error) {
        if (signal?.aborted) throw signal.reason;
        if (isFinal(error) || Date.now() > until) throw error;
        await this.pause(attempt, signal, error.retryAfterMs);
      }
    }
  }

  /** Sends a message to an agent: `assistant/me` or `agents/assistant/me`. */
  send(agent, text, options) { return this.#say(agent, { type: "message", ...said(text) }, options); }
  /** Joins the turn that runs before its next model call. */
  steer(agent, text, options) { return this.#say(agent, { type: "steer", ...said(text) }, options); }
  /** Ends what the turn does now and keeps the partial; with `text` it goes on with that. */
  interrupt(agent, text, options) { return this.#say(agent, { type: "interrupt", ...(text === undefined ? {} : { text }) }, options); }
  /** Ends the turn. */
  cancel(agent, reason, options) { return this.#say(agent, { type: "cancel", ...(reason === undefined ? {} : { reason }) }, options); }
  /** Lets the turn go on with what an `approval.requested` asks for. */
  approve(agent, approval, options) { return this.#say(agent, { type: "approve", ...decided(approval) }, options); }
  /** Refuses it. */
  deny(agent, approval, reason, options) {
    return this.#say(agent, { type: "deny", ...decided(approval), ...(reason === undefined ? {} : { reason }) }, options);
  }

  #say(agent, entry, saying) {
    const { id, ifTurn, ifOffset, ...options } = given(saying);
    const conditions = { ...(id && { id }), ...(ifTurn && { if_turn: ifTurn }), ...(ifOffset && { if_offset: ifOffset }) };
    return this.append(agentChannel(agent), { ...entry, ...conditions }, options);
  }

  /**
   * Tells whoever follows the channel at this moment; never stored. Needs a WebSocket: without one it does nothing and says so.
   * @returns {Promise<boolean>}
   */
  async ephemeral(channel, event) {
    try {
      await this.link()?.ask({ op: "ephemeral", channel, event });
      return this.link() !== undefined;
    } catch (error) {
      if (isFinal(error)) throw error;
      return false;  // What is only for this moment is not sent later.
    }
  }

  /**
   * What entries say, by the rules for text: each reader that follows them shows the same, wherever it started. While entries come, a
   * `TextView` does the same piece by piece.
   * @param {Iterable<object>} entries
   */
  text(entries) {
    const view = new TextView();
    for (const entry of entries) view.add(entry);
    return view.text;
  }

  /** Closes the WebSocket and ends all that is followed. */
  close() {
    this.isClosed = true;
    this.#socket?.close();
    this.#wake();
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.removeEventListener?.("pageshow", this.#wake);
  }

  // Transports

  /**
   * The WebSocket for all that goes over one; `undefined` where there is none, or none gets through.
   * @param {boolean} [isNeeded] Nothing else would do.
   */
  link(isNeeded = this.transport === "socket") {
    if (!this.WebSocket || this.isClosed || this.transport === "stream") return undefined;
    if (this.#socket && !this.#socket.isClosed) return this.#socket;
    if (!isNeeded && this.#socketFailures >= socketFailuresMax && Date.now() < this.#socketRetryAt) return undefined;
    const done = (hasOpened, error) => {
      if (error?.status === 401) return;  // Says nothing of what gets through.
      this.#socketFailures = hasOpened ? 0 : isFinal(error) ? socketFailuresMax : this.#socketFailures + 1;
      this.#socketRetryAt = Date.now() + socketRetryMs;
    };
    return this.#socket = new Link(this, done);
  }

  /**
   * Where the WebSocket is. A browser's WebSocket sends no `Authorization`, and a token does not belong into a URL: it is exchanged for a
   * ticket that is good for one connection.
   */
  async socketURL() {
    const url = this.url.replace(/^http/, "ws") + "/v1/socket";
    if (!this.token) return url;
    const answer = await this.fetch(`${this.url}/v1/tickets`, {
      method: "POST", body: '{"socket":true}', headers: this.headers({ "Content-Type": "application/json" }),
    });
    if (!answer.ok) throw await problemOf(answer);
    return `${url}?ticket=${encodeURIComponent((await answer.json()).ticket)}`;
  }

  /** Why a WebSocket did not open, which it does not say itself. Without an upgrade the same place does: 426 where only that is missing. */
  async socketRefusal() {
    const answer = await this.fetch(`${this.url}/v1/socket`, { headers: this.headers(), cache: "no-store" });
    return answer.ok || answer.status === 426 ? undefined : problemOf(answer);
  }

  /**
   * What the end of a link is to one who used it. Where a stream would do, too, that one is left to say what is refused: there may only be
   * no tickets.
   */
  breakOf(error, isSocketNeeded = this.transport === "socket") {
    const isTold = error instanceof ParleyError && (isSocketNeeded || error.isTransient || error.status === 401);
    return isTold ? error : new ParleyError({ status: 0, code: "disconnected", detail: "the connection broke" });
  }

  headers(more = {}) { return this.token ? { Authorization: `Bearer ${this.token}`, ...more } : more; }

  streamURL(channel, query = "") { return `${this.url}/v1/stream/${channel.split("/").map(encodeURIComponent).join("/")}${query}`; }

  async #post(channel, body, key, signal) {
    const isAgent = channel.startsWith("agents/");
    const answer = await this.fetch(isAgent ? `${this.url}/v1/${channel}` : this.streamURL(channel), {
      method: "POST", body, signal, headers: this.headers({ "Content-Type": "application/json", "Idempotency-Key": key }),
    });
    if (!answer.ok) throw await problemOf(answer);
    const replayed = answer.headers.get("Idempotent-Replayed") === "true";
    const next = answer.headers.get("Stream-Next-Offset");
    if (!isAgent) return { offset: next, replayed };
    const offsets = (await answer.json()).entries.map(entry => entry.offset);
    return { offset: offsets.at(-1), offsets, replayed };
  }

  /**
   * Waits before the next try: longer each time, not at the same moment as everybody else, and not once the device is back.
   * @param {number} [leastMs] What the server asked for.
   */
  pause(attempt, signal, leastMs = 0) {
    const most = Math.min(pauseMaxMs, pauseMinMs * 2 ** Math.min(attempt, 10));
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const done = () => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        signal?.removeEventListener("abort", done);
        if (signal?.aborted) reject(signal.reason); else resolve();
      };
      const timer = setTimeout(done, leastMs + most / 2 + Math.random() * most / 2);
      this.#waiting.add(done);
      signal?.addEventListener("abort", done);
    });
  }

  /** Waits for a channel that is not there yet: until something is appended to it from here, or it is time to look again. */
  async awaitChannel(channel, attempt, signal) {
    const control = new AbortController(), wake = () => control.abort();
    this.#awaited.set(wake, channel);
    signal.addEventListener("abort", wake);
    await this.pause(Math.min(attempt, awaitedAttempts), control.signal).catch(() => {});
    signal.removeEventListener("abort", wake);
    this.#awaited.delete(wake);
  }

  /** Calls `wake` when the device comes back; returns what takes that back. */
  onWake(wake) {
    this.#waiting.add(wake);
    return () => this.#waiting.delete(wake);
  }
}

// Following

/** What follows a channel or a tree: iterate over it once. */
class Follow {
  #parley; #options; #queue = [];
  #wakeReader; #wakeWriter; #failure; #isOver = false; #hasBegun = false;
  #abort = new AbortController();
  #listeners = new Set();
  /** Where to go on after a break: behind what has been received, taken or not. */
  #received;
  /** The server has let it in. */
  #hasFollowed = false;
  /** Errors of a tree's channels that failed, by name, until they are followed again. */
  #failed = new Map();
  #isAgent;

  /** A channel that is not there yet is waited for. */
  #waits;

  constructor(parley, { signal, onEphemeral, wait, ...options }) {
    this.#parley = parley;
    this.#options = options;
    this.#isAgent = options.op === "follow" && options.channel.startsWith("agents/");
    this.#waits = wait ?? (this.#isAgent && ["-1", "now"].includes(options.offset));
    /** Where a reader that has seen all entries taken so far goes on. */
    this.offset = options.offset;
    /** The same for a tree. */
    this.cursor = options.cursor;
    this.#received = options.op === "tree" ? options.cursor : options.offset;
    /** Whether all there was has been taken. */
    this.isUpToDate = false;
    /** Why it ended: `closed`, `deleted`, `unfollowed`; a tree also `failed`, when the last of its channels has and all was told. */
    this.reason = undefined;
    if (onEphemeral) this.#listeners.add(onEphemeral);
    if (signal) {
      if (signal.aborted) this.close(); else signal.addEventListener("abort", () => this.close(), { once: true });
    }
  }

  /** Calls `listener` with what is told to whoever is there at this moment. */
  onEphemeral(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Stops following. Idempotent. */
  close() {
    this.#isOver = true;
    this.reason ??= "unfollowed";
    this.#queue = [];
    this.#abort.abort();
    this.#wakeReader?.();
    this.#wakeWriter?.();
  }

  async *[Symbol.asyncIterator]() {
    if (!this.#hasBegun) {
      this.#hasBegun = true;
      this.#run();
    }
    try {
      while (true) {
        while (this.#queue.length) {
          const { entries, offset, cursor, channel, isUpToDate } = this.#queue[0];
          const arrived = () => { [this.offset, this.cursor] = [offset, cursor]; };
          for (const [index, entry] of entries.entries()) {
            if (this.#isAgent) this.offset = entry.offset;
            if (index === entries.length - 1) arrived();
            yield this.#options.op === "tree" ? { ...entry, channel } : entry;  // Where it is from is not the entry's to say.
            if (!this.#queue.length) return;
          }
          arrived();
          this.#queue.shift();
          this.isUpToDate = isUpToDate && !this.#queue.length;
          this.#wakeWriter?.();
        }
        if (this.#failure) throw this.#failure;
        if (this.#isOver) return;
        await new Promise(resolve => { this.#wakeReader = resolve; });
        this.#wakeReader = undefined;
      }
    } finally {
      this.close();
    }
  }

  async #run() {
    for (let attempt = 0; !this.#isOver && !this.#parley.isClosed;) {
      const before = this.#received;
      try {
        const link = this.#parley.link(this.#isSocketNeeded);
        if (link) await this.#overSocket(link); else await this.#overStream();
        if (this.#received !== before) attempt = 0; else await this.#parley.pause(attempt++, this.#abort.signal);
      } catch (error) {
        if (this.#isOver) break;
        // It went while no connection was there to tell.
        if (this.#hasFollowed && this.#options.op === "follow" && deletedCodes.includes(error.code)) {
          this.reason = "deleted";
          break;
        }
        if (this.#waits && !this.#hasFollowed && error.code === "channel_not_found") {
          await this.#parley.awaitChannel(this.#options.channel, attempt++, this.#abort.signal);
          continue;
        }
        if (isFinal(error)) {
          this.#failure = error;
          break;
        }
        if (this.#received !== before) attempt = 0;
        this.isUpToDate = false;
        await this.#parley.pause(attempt++, this.#abort.signal, error.retryAfterMs).catch(() => {});
      }
    }
    this.#isOver = true;
    this.#wakeReader?.();
  }

  get #isSocketNeeded() { return this.#options.op === "tree" || this.#parley.transport === "socket"; }

  /** A piece of the channel, whole: what it says and where it leads come together. */
  #take(piece) {
    if (this.#isOver) return;
    this.#hasFollowed = true;
    this.#received = this.#options.op === "tree" ? piece.cursor : piece.offset;
    this.#queue.push(piece);
    this.#wakeReader?.();
  }

  #told(event) { for (const listener of this.#listeners) listener(event); }

  get #isFull() { return this.#queue.length > 1 && this.#queue.reduce((sum, piece) => sum + piece.entries.length, 0) > queuedMax; }

  /** Over the shared WebSocket, until this has ended or the socket has. */
  #overSocket(link) {
    const { op, channel, view } = this.#options;
    return new Promise((resolve, reject) => {
      const place = op === "tree" ? { cursor: this.#received } : { offset: this.#received };
      const stop = link.follow({ op, channel, view, ...place }, {
        message: message => {
          if (message.error && !message.ended) return settle(reject, new ParleyError(message.error));
          if (message.ephemeral) return this.#told({ ...message.ephemeral, channel: message.channel });
          if (message.ended) return this.#ended(message, settle, resolve, reject);
          this.#failed.delete(message.channel);
          this.#take({
            entries: message.entries, offset: message.offset, cursor: message.cursor, channel: message.channel,
            isUpToDate: message.up_to_date,
          });
          // Too far ahead of the reader: come again from here when it has caught up.
          if (this.#isFull) {
            stop();
            this.#whenTaken().then(() => settle(resolve));
          }
        },
        broken: error => settle(reject, this.#parley.breakOf(error, this.#isSocketNeeded)),
      });
      const settle = (how, value) => {
        this.#abort.signal.removeEventListener("abort", aborted);
        how(value);
      };
      const aborted = () => {
        stop();
        settle(resolve);
      };
      this.#abort.signal.addEventListener("abort", aborted);
    });
  }

  #ended(message, settle, resolve, reject) {
    const { channel, reason, error } = message;
    if (channel !== undefined && this.#options.op === "tree") {
      // One that fails on each new connection is told of once.
      const entries = error && !this.#failed.has(channel) ? [{ type: "ended", reason, error }] : [];
      if (reason === "failed") this.#failed.set(channel, new ParleyError(error ?? { status: 500 }));
      return this.#take({ entries, offset: undefined, cursor: message.cursor ?? this.#received, channel, isUpToDate: false });
    }
    // A tree's end has no error of its own, and its channels' have been told: it is worth another try while one of them may come back.
    const failures = [...this.#failed.values()];
    if (reason === "failed" && !(failures.length && failures.every(isFinal))) {
      return settle(reject, new ParleyError(error ?? failures.find(failure => failure.isTransient)?.problem ?? { status: 500 }));
    }
    this.reason = message.reason;
    this.#isOver = true;
    settle(resolve);
  }

  async #whenTaken() {
    while (this.#queue.length && !this.#isOver) await new Promise(resolve => { this.#wakeWriter = resolve; });
  }

  /** Over server-sent events, until the stream ends. Works wherever `fetch` does, with a token, too. */
  async #overStream() {
    if (this.#options.op === "tree") {
      throw new ParleyError({ status: 501, code: "needs_socket", detail: "a tree is followed over a WebSocket, and there is none here" });
    }
    const { channel, view } = this.#options;
    const query = new URLSearchParams({ offset: this.#received, live: "sse", ...(view && { view }) });
    const broken = new AbortController();
    const give = () => broken.abort();
    this.#abort.signal.addEventListener("abort", give);
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(give, silenceMs);
    };
    // After sleep a connection may be dead without a sign of it; one that was silent for longer than a heartbeat is not waited for.
    let last = Date.now();
    const takeBack = this.#parley.onWake(() => { if (Date.now() - last > 20_000) give(); });
    try {
      heard();
      const answer = await this.#parley.fetch(this.#parley.streamURL(channel, `?${query}`), {
        headers: this.#parley.headers({ Accept: "text/event-stream" }), cache: "no-store", signal: broken.signal,
      });
      if (!answer.ok) throw await problemOf(answer);
      const reader = answer.body.getReader();
      const events = new EventParser();
      let entries = [];
      while (true) {
        const { done, value } = await reader.read();
        if (done) return;
        heard();
        last = Date.now();
        for (const { name, data } of events.feed(value)) {
          if (name === "ephemeral") this.#told({ ...JSON.parse(data), channel });
          if (name === "data") entries = JSON.parse(data);
          if (name !== "control") continue;
          const control = JSON.parse(data);
          this.#take({ entries, offset: control.streamNextOffset, channel, isUpToDate: control.upToDate === true });
          entries = [];
          if (control.streamClosed) {
            this.reason = "closed";
            this.#isOver = true;
            return;
          }
        }
        if (this.#isFull) await this.#whenTaken();
      }
    } finally {
      clearTimeout(silence);
      takeBack();
      this.#abort.signal.removeEventListener("abort", give);
      broken.abort();
    }
  }
}

/** One WebSocket and what goes over it. It lives once: after a break there is a new one. */
class Link {
  #socket; #next = 1; #waiting = new Map(); #queue = []; #silence; #done; #hasOpened = false; #takeBack; #parley; #idle;

  constructor(parley, done) {
    this.#parley = parley;
    this.#done = done;
    this.isClosed = false;
    // A policy of the page may forbid it; a server may know no tickets, or refuse.
    this.#open().catch(error => this.#broken(error));
    this.#silence = setTimeout(() => this.close(), 10_000);
    // After sleep a dead connection looks like a quiet one: a question that is not answered soon tells.
    this.#takeBack = parley.onWake(() => this.#probe());
  }

  async #open() {
    const url = await this.#parley.socketURL();
    if (this.isClosed) return;
    if (await this.#opens(url) || this.isClosed) return;
    this.#broken(await this.#parley.socketRefusal());
  }

  /** Whether it opens. */
  #opens(url) {
    return new Promise(resolve => {
      const socket = this.#socket = new this.#parley.WebSocket(url, [socketSubprotocol]);
      socket.onopen = () => {
        this.#hasOpened = true;
        this.#done(true);
        for (const message of this.#queue) socket.send(message);
        this.#queue = [];
        this.#heard();
        resolve(true);
      };
      socket.onmessage = ({ data }) => {
        this.#heard();
        this.#received(JSON.parse(data));
      };
      const ended = () => { if (this.#hasOpened) this.#broken(); else resolve(false); };
      socket.onclose = ended;
      socket.onerror = ended;  // Node 20 says no `close` behind it.
    });
  }

  follow(message, listener) {
    const ref = this.#next++;
    clearTimeout(this.#idle);
    this.#waiting.set(ref, listener);
    this.#send({ ...message, ref });
    return () => {
      if (this.#waiting.delete(ref)) this.#send({ op: "unfollow", ref });
      this.#closeIfIdle();
    };
  }

  /** Sends a message and returns its answer. */
  ask(message, signal) {
    return new Promise((resolve, reject) => {
      const ref = this.#next++;
      clearTimeout(this.#idle);
      const settle = (how, value) => {
        clearTimeout(timer);
        this.#waiting.delete(ref);
        signal?.removeEventListener("abort", aborted);
        this.#closeIfIdle();
        how(value);
      };
      const aborted = () => settle(reject, signal.reason);
      const broken = error => settle(reject, this.#parley.breakOf(error));
      const timer = setTimeout(() => this.close(), 30_000);
      signal?.addEventListener("abort", aborted);
      this.#waiting.set(ref, {
        broken,
        message: answer => answer.error
          ? settle(reject, new ParleyError(answer.error))
          : settle(resolve, { offset: answer.offsets?.at(-1), offsets: answer.offsets, replayed: answer.replayed === true }),
      });
      this.#send({ ...message, ref });
    });
  }

  close() {
    this.#socket?.close();
    this.#broken();  // A dead connection says so late.
  }

  #send(message) {
    if (this.isClosed) return;
    const text = JSON.stringify(message);
    if (this.#hasOpened) this.#socket.send(text); else this.#queue.push(text);
  }

  #received(message) {
    // The server stops, or lets the connections spread anew: it is about to close, and all continues elsewhere.
    if (message.resume) return;
    const listener = this.#waiting.get(message.ref);
    // Refused, or over (and not only one of a tree): nothing comes under that reference any more.
    if (message.ended ? !message.channel : message.error) {
      this.#waiting.delete(message.ref);
      this.#closeIfIdle();
    }
    listener?.message(message);
  }

  #heard() {
    clearTimeout(this.#silence);
    // The server's pings are not shown here: a quiet socket is asked now and then.
    this.#silence = setTimeout(() => this.#probe(), socketSilenceMs);
  }

  #probe() {
    if (this.isClosed || !this.#hasOpened) return;
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.close(), 5_000);
    this.#send({ op: "unfollow", ref: 0 });  // Follows nothing, so it is answered with a refusal: a sign of life.
  }

  /** A socket that nobody needs is not kept, so that a program of node can end. */
  #closeIfIdle() {
    clearTimeout(this.#idle);
    if (this.#waiting.size || this.isClosed) return;
    this.#idle = setTimeout(() => this.close(), 1_000);
    this.#idle.unref?.();
  }

  /** @param {Error} [error] Why it never opened, as far as that is known. */
  #broken(error) {
    if (this.isClosed) return;
    this.isClosed = true;
    clearTimeout(this.#silence);
    clearTimeout(this.#idle);
    this.#takeBack();
    if (!this.#hasOpened) this.#done(false, error);
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const listener of waiting) listener.broken(error);
  }
}

/** Server-sent events out of bytes, however they are cut. */
class EventParser {
  #decoder = new TextDecoder(); #rest = "";

  *feed(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    for (let end; (end = this.#rest.indexOf("\n\n")) >= 0;) {
      const block = this.#rest.slice(0, end);
      this.#rest = this.#rest.slice(end + 2);
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
      if (data.length) yield { name, data: data.join("\n") };
    }
  }
}

// Text

const encoder = new TextEncoder(), decoder = new TextDecoder();

/**
 * Text that is put together by the rules: that of a higher attempt replaces that of a lower one for the same turn, step and part, from
 * `continues_at` on where it is given, else all of it; the text of `step.completed` replaces whatever was there.
 */
export class TextView {
  #parts = new Map();

  /** Takes an entry of any type. */
  add(entry) {
    const { channel, turn, step, type } = entry;
    if (turn === undefined || step === undefined) return this;
    if (type === "text") {
      this.#part(channel, turn, step, entry.part).add(entry);
    } else if (type === "step.started" && entry.attempt > 1) {
      for (const part of this.#partsOf(channel, turn, step)) part.begin(entry.attempt, entry.continues_at ?? 0);
    } else if (type === "step.completed" && typeof entry.text === "string") {
      this.#part(channel, turn, step, "text").seal(entry.text);
    }
    return this;
  }

  /** Each part in the order in which it was first seen. */
  get parts() { return [...this.#parts.values()].map(part => part.shown); }

  /** The text of all steps, without what the model thought aloud; steps are separated by an empty line. */
  get text() { return this.parts.filter(({ part, text }) => part === "text" && text).map(({ text }) => text).join("\n\n"); }

  #part(channel, turn, step, part) {
    const name = JSON.stringify([channel, turn, step, part]);
    if (!this.#parts.has(name)) this.#parts.set(name, new TextPart(channel, turn, step, part));
    return this.#parts.get(name);
  }

  #partsOf(channel, turn, step) {
    return [...this.#parts.values()].filter(part => part.channel === channel && part.turn === turn && part.step === step);
  }
}

class TextPart {
  #text = "";
  /** Where the text begins, and how long it is: bytes of UTF-8, as `index` counts. */
  #start; #count = 0;

  constructor(channel, turn, step, part) {
    Object.assign(this, { channel, turn, step, part, attempt: 0, isSealed: false });
  }

  get shown() {
    const { channel, turn, step, part, attempt, isSealed } = this;
    return { ...(channel !== undefined && { channel }), turn, step, part, attempt, text: this.#text, isComplete: isSealed };
  }

  begin(attempt, from) {
    if (this.isSealed || attempt <= this.attempt) return;
    if (this.attempt > 0) this.#cut(from);
    this.attempt = attempt;
  }

  add({ attempt = 1, index = 0, delta = "", continues_at = 0 }) {
    if (this.isSealed || attempt < this.attempt) return;
    this.begin(attempt, continues_at);
    if (this.#count === 0) this.#start = index;
    // Entries that are given twice, or overlap, change nothing.
    if (index < this.#start + this.#count) this.#cut(index);
    this.#text += delta;
    this.#count += encoder.encode(delta).length;
  }

  seal(text) {
    this.#text = text;
    this.isSealed = true;
  }

  /** Drops what stands at the byte `from` and behind it. */
  #cut(from) {
    const keep = Math.max(0, Math.min(this.#count, from - (this.#start ?? 0)));
    this.#text = decoder.decode(encoder.encode(this.#text).subarray(0, keep));
    this.#count = keep;
  }
}

// Small things

/** The options that are given: `null` and `undefined`, as what was never saved is read, are none. */
function given(options) { return Object.fromEntries(Object.entries(options ?? {}).filter(([, value]) => value != null)); }

/** Whether asking again is of no use. */
function isFinal(error) { return error instanceof ParleyError && !error.isTransient; }

/** How a channel that was there, and was deleted, is refused: an agent, one that has forks, any other. */
const deletedCodes = ["agent_deleted", "channel_gone", "channel_not_found"];

function said(value) { return typeof value === "string" ? { text: value } : { data: value }; }

/** An approval by its name, or the `approval.requested` itself: then for exactly these arguments. */
function decided(approval) {
  return typeof approval === "string" ? { approval } : { approval: approval.approval, args_sha256: approval.args_sha256 };
}

function agentChannel(agent) { return agent.startsWith("agents/") ? agent : `agents/${agent}`; }

function randomKey() {
  if (globalThis.crypto?.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

async function problemOf(answer) {
  const problem = await answer.json().catch(() => ({}));
  const error = new ParleyError({ ...problem, status: answer.status });
  error.retryAfterMs = Math.min(retryAfterMaxMs, Number(answer.headers.get("Retry-After")) * 1_000 || 0);
  return error;
}
