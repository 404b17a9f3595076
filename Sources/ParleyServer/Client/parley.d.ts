// The types of parley.js, the client of a Parley server.

export interface Problem {
  type: string;
  title: string;
  status: number;
  /** A stable word for programs. */
  code: string;
  /** The field, the value, what is accepted and the remedy. */
  detail: string;
  [field: string]: unknown;
}

/** What the server refused, or (`status` 0) that it could not be reached. */
export class ParleyError extends Error {
  constructor(problem: Partial<Problem>);
  readonly status: number;
  readonly code: string;
  readonly problem: Partial<Problem>;
  /** Whether the same may succeed later. */
  readonly isTransient: boolean;
  /** For how long the server asked to be left alone. */
  readonly retryAfterMs?: number;
}

export interface ParleyOptions {
  /** The server; by default the page's own. Needed in node. */
  url?: string | URL;
  /** A key or token, sent as `Authorization: Bearer`; for a WebSocket, which cannot send it, exchanged for a ticket each time. */
  token?: string;
  /** `auto` (default): a WebSocket where there is one and it gets through, else streams. */
  transport?: "auto" | "socket" | "stream";
  fetch?: typeof fetch;
  /** Another WebSocket than the global one. */
  WebSocket?: unknown;
}

/** An entry of an agent's channel; docs/protocol.md says what stands in it. Of a plain channel: whatever was appended. */
export interface Entry {
  offset: string;
  at: string;
  type: string;
  id: string;
  by?: string;
  turn?: string;
  step?: string;
  attempt?: number;
  [field: string]: any;
}

/** Of all options `null` and `undefined` are as good as none. */
export interface FollowOptions {
  /** `-1` (default) for the start, `now` for the tail, or an offset as it was given. */
  offset?: string | null | undefined;
  /** Of an agent's channel: `settled` leaves out what was superseded and folds receipts. Default `raw`. */
  view?: "raw" | "settled";
  /**
   * Whether a channel that is not there yet is waited for, instead of thrown as `channel_not_found`. By default an agent is, from `-1` and
   * `now` on.
   */
  wait?: boolean;
  onEphemeral?: (event: Ephemeral) => void;
  signal?: AbortSignal;
}

export interface TreeOptions extends Omit<FollowOptions, "offset"> {
  /** As it was given; without one from the start. */
  cursor?: string | null | undefined;
}

/**
 * Told once in place of a channel's entries: the tree goes on without it. `refused`: there is no room for it (`tree_full`,
 * `too_many_channels`); follow it by itself. `failed`: it could not be read, or may not be; when it is a matter of time, its entries come
 * on the next connection. No entry has this type.
 */
export interface TreeChannelEnded {
  channel: string;
  type: "ended";
  reason: "refused" | "failed";
  error: Problem;
  offset?: undefined;
}

/** What is followed; iterate over it once. */
export interface Follow<E = Entry> extends AsyncIterable<E> {
  /**
   * Where a reader that has seen all entries taken so far goes on. Of an agent's channel that is behind the entry taken last; of others and
   * of trees it moves on piece by piece, so that what was taken of a piece in part comes again.
   */
  readonly offset: string;
  /** The same for a tree. */
  readonly cursor: string | undefined;
  /** Whether all there was has been taken. */
  readonly isUpToDate: boolean;
  /** Why it ended; `failed` is the end of a tree whose last channel failed, which was told in its place. */
  readonly reason: "closed" | "deleted" | "unfollowed" | "failed" | undefined;
  /** Returns what takes the listener away again. */
  onEphemeral(listener: (event: Ephemeral) => void): () => void;
  close(): void;
}

/** Never stored; `by` and `at` are the server's word. */
export interface Ephemeral {
  channel: string;
  type: "typing" | "presence" | "progress";
  by: string;
  at: string;
  [field: string]: any;
}

export interface AppendOptions {
  /** By default a new one: a retry of this call appends nothing twice. Give your own to make it once over restarts. */
  key?: string;
  signal?: AbortSignal;
  /** For how long a server that cannot be reached is tried again, in milliseconds; by default a minute. */
  patience?: number;
}

export interface SayOptions extends AppendOptions {
  /** A label, which the entry's receipt repeats. */
  id?: string;
  /** It counts only while this turn runs. */
  ifTurn?: string;
  /** It counts only as the very next entry after this one. */
  ifOffset?: string;
}

export interface Appended {
  /** Of the last entry. */
  offset: string;
  /** Of each; missing for a plain channel without a WebSocket. */
  offsets?: string[];
  /** It was there already, by its key. */
  replayed: boolean;
}

export class Parley {
  constructor(options?: ParleyOptions);
  follow<E = Entry>(channel: string, options?: FollowOptions): Follow<E>;
  /** An agent and all its descendants. Needs a WebSocket. */
  tree(channel: string, options?: TreeOptions): Follow<(Entry & { channel: string }) | TreeChannelEnded>;
  append(channel: string, entries: object | object[], options?: AppendOptions): Promise<Appended>;
  /** `agent` is `assistant/me` or `agents/assistant/me`; what is no text is sent as `data`. */
  send(agent: string, text: string | object, options?: SayOptions): Promise<Appended>;
  steer(agent: string, text: string | object, options?: SayOptions): Promise<Appended>;
  interrupt(agent: string, text?: string, options?: SayOptions): Promise<Appended>;
  cancel(agent: string, reason?: string, options?: SayOptions): Promise<Appended>;
  approve(agent: string, approval: string | Entry, options?: SayOptions): Promise<Appended>;
  deny(agent: string, approval: string | Entry, reason?: string, options?: SayOptions): Promise<Appended>;
  /** Whether it was told: that needs a WebSocket. */
  ephemeral(channel: string, event: { type: "typing" | "presence" | "progress"; [field: string]: unknown }): Promise<boolean>;
  /** The text that entries add up to. */
  text(entries: Iterable<object>): string;
  close(): void;
}

export interface TextPartView {
  channel?: string;
  turn: string;
  step: string;
  part: "text" | "reasoning";
  attempt: number;
  text: string;
  /** The step has its result: the text is final. */
  isComplete: boolean;
}

/** Text put together by the rules of docs/protocol.md, entry by entry. */
export class TextView {
  add(entry: object): this;
  readonly parts: TextPartView[];
  readonly text: string;
}
