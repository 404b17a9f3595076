// Rows on the screen.

// Follows the end while the reader is there, and keeps a bounded number of rows and characters.
const log = $("log");
const rows = {
  count: 0, characters: 0, isSettling: false,
  get isAtEnd() { return log.scrollHeight - log.scrollTop - log.clientHeight < 80; },
  // Laid out once a frame, however many entries come in it.
  change(work) {
    if (!this.isSettling) {
      this.isSettling = true;
      const follows = this.isAtEnd;
      requestAnimationFrame(() => {
        this.isSettling = false;
        Prose.layOut();
        if (follows) this.toEnd(); else $("latest").hidden = false;
      });
    }
    work();
    while (this.count > rowsMax || this.characters > charactersMax && this.count > 1) this.drop();
  },
  add(row, characters = 100) {
    $("rows").append(row);
    this.count += 1;
    this.weigh(row, characters);
  },
  // What has been dropped does not count any more, even if it is still being written.
  weigh(row, characters) {
    if (row.parentNode !== $("rows")) return;
    row.weight = (row.weight || 0) + characters;
    this.characters += characters;
  },
  remove(row) {
    if (row.parentNode !== $("rows")) return;
    row.remove();
    this.count -= 1;
    this.characters -= row.weight || 0;
  },
  drop() {
    this.remove($("rows").firstElementChild);
    $("earlier").hidden = false;
  },
  clear(...content) {
    $("rows").replaceChildren(...content);
    [this.count, this.characters] = [0, 0];
    $("earlier").hidden = $("latest").hidden = true;
  },
  toEnd() { log.scrollTop = log.scrollHeight; $("latest").hidden = true; },
};

// What is looked up by offset or name later; the oldest is forgotten, so that an endless channel takes no endless memory.
class Known extends Map {
  set(key, value) {
    super.set(key, value);
    if (this.size > rowsMax) this.delete(this.keys().next().value);
    return this;
  }
}

// The text of one part of a step, put together by the rules of convergence. Positions are UTF-8 bytes.
class StepText {
  constructor(node) { this.node = node; this.attempt = 0; this.bytes = 0; this.sealed = false; }
  static encoder = new TextEncoder();
  static decoder = new TextDecoder();
  cut(at) {
    if (at >= this.bytes) return;
    this.node.data = StepText.decoder.decode(StepText.encoder.encode(this.node.data).slice(0, at));
    this.bytes = at;
  }
  begin(attempt, from) {
    if (this.sealed || attempt <= this.attempt) return;
    if (this.attempt > 0) this.cut(from);
    this.attempt = attempt;
  }
  add(entry) {
    const attempt = entry.attempt || 1;
    if (this.sealed || attempt < this.attempt) return;
    if (attempt > this.attempt) this.begin(attempt, entry.continues_at || 0);
    this.cut(entry.index);
    this.node.appendData(even(entry.delta));
    this.bytes = entry.index + StepText.encoder.encode(entry.delta).length;
  }
  seal(text) {
    this.sealed = true;
    if (typeof text === "string" && this.node.data !== even(text)) this.node.data = even(text);
  }
}
