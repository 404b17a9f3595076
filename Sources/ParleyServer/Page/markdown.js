// Markdown as nodes. Nothing is ever parsed as HTML: what is not Markdown is text.

const markdown = {
  /** Nested deeper than this, it is text. */
  depthMax: 6,
  /** What is more of a table than that is text. */
  columnsMax: 40, rowsMax: 500,

  /** The blocks of a text, each with where it begins and its node: the last one may still change when text is added. */
  blocks(source, depth = 0) {
    const lines = source.split("\n"), blocks = [];
    let at = 0, line = 0;
    const offsets = lines.map(text => { const from = at; at += text.length + 1; return from; });
    while (line < lines.length) {
      if (!lines[line].trim()) { line += 1; continue; }
      const { end, node } = this.block(lines, line, depth);
      blocks.push({ from: offsets[line], node });
      line = end;
    }
    return blocks;
  },

  render(source, depth = 0) { return this.blocks(source, depth).map(block => block.node); },

  block(lines, from, depth) {
    const line = lines[from];
    const fence = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(line);
    if (fence) return this.fence(lines, from, fence);
    const heading = /^ {0,3}(#{1,6})[ \t]+(.*)$/.exec(line);
    if (heading) return { end: from + 1, node: make(`h${Math.min(6, heading[1].length + 1)}`, "", ...this.inline(this.title(heading[2]))) };
    if (/^ {0,3}([-*_])( *\1){2,}\s*$/.test(line)) return { end: from + 1, node: make("hr") };
    if (/^ {0,3}>/.test(line) && depth < this.depthMax) return this.quote(lines, from, depth);
    if (this.item(line) && depth < this.depthMax) return this.list(lines, from, depth);
    if (line.includes("|") && this.isRule(lines[from + 1])) return this.table(lines, from);
    let end = from + 1;
    while (end < lines.length && !this.interrupts(lines, end)) end += 1;
    return { end, node: make("p", "", ...this.inline(lines.slice(from, end).join("\n"))) };
  },

  // Without the signs that may close it.
  title(text) {
    let end = text.trimEnd().length;
    while (text[end - 1] === "#") end -= 1;
    return end > 0 && /\s/.test(text[end - 1]) ? text.slice(0, end).trim() : text.trim();
  },

  // What ends a paragraph.
  interrupts(lines, at) {
    const line = lines[at];
    return !line.trim() || /^ {0,3}(`{3,}|~{3,}|#{1,6}\s|>)/.test(line) || /^ {0,3}([-*+]|1[.)])\s+\S/.test(line)
      || line.includes("|") && this.isRule(lines[at + 1]);
  },

  fence(lines, from, [, mark, language]) {
    let end = from + 1;
    while (end < lines.length && !(lines[end].trim().startsWith(mark) && !lines[end].trim().replaceAll(mark[0], ""))) end += 1;
    const code = make("pre", "", make("code", "", unhidden(lines.slice(from + 1, end).join("\n"))));
    code.tabIndex = 0;
    code.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
    code.setAttribute("role", "region");
    return { end: end + 1, node: make("div", "code", language ? make("div", "language", language) : undefined, code) };
  },

  quote(lines, from, depth) {
    let end = from;
    while (end < lines.length && /^ {0,3}>/.test(lines[end])) end += 1;
    const inner = lines.slice(from, end).map(line => line.replace(/^ {0,3}> ?/, "")).join("\n");
    return { end, node: make("blockquote", "", ...this.render(inner, depth + 1)) };
  },

  item(line) { return /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/.exec(line); },

  list(lines, from, depth) {
    const first = this.item(lines[from]), indent = first[1].length, isOrdered = /\d/.test(first[2]);
    const items = [];
    let end = from;
    while (end < lines.length) {
      const item = this.item(lines[end]);
      if (item && item[1].length <= indent + 1 && /\d/.test(item[2]) === isOrdered) {
        items.push([lines[end].slice(item[0].length)]);
      } else if (!lines[end].trim()) {
        // An empty line belongs to the list if the list goes on behind it.
        const next = lines.slice(end + 1, end + 3).find(line => line.trim());
        const again = next !== undefined && this.item(next);
        if (next === undefined || !(/^ {2,}/.test(next) || again && /\d/.test(again[2]) === isOrdered)) break;
        items.at(-1).push("");
      } else if (/^ {2,}/.test(lines[end]) || !this.interrupts(lines, end) && items.at(-1).at(-1) !== "") {
        items.at(-1).push(lines[end].replace(new RegExp(`^ {0,${indent + first[2].length + first[3].length}}`), ""));
      } else {
        break;
      }
      end += 1;
    }
    const list = make(isOrdered ? "ol" : "ul", "", ...items.map(item => this.listItem(item, depth)));
    if (isOrdered && parseInt(first[2]) !== 1) list.start = parseInt(first[2]);
    return { end, node: list };
  },

  // Without blocks of its own an item is a line and no paragraph.
  listItem(lines, depth) {
    const task = /^\[([ xX])\]\s+/.exec(lines[0]);
    if (task) lines[0] = (task[1] === " " ? "☐ " : "☑ ") + lines[0].slice(task[0].length);
    const nodes = this.render(lines.join("\n"), depth + 1);
    return make("li", "", ...nodes.flatMap((node, index) => index === 0 && node.tagName === "P" ? [...node.childNodes] : [node]));
  },

  isRule(line) { return line !== undefined && line.length < 2000 && line.includes("-") && /^[\s|:-]+$/.test(line) && line.includes("|"); },

  cells(line) { return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map(cell => cell.trim().replaceAll("\\|", "|")); },

  table(lines, from) {
    const head = this.cells(lines[from]).slice(0, this.columnsMax);
    const aligned = this.cells(lines[from + 1]).map(rule => rule.endsWith(":") ? rule.startsWith(":") ? "center" : "right" : "");
    const row = (cells, tag) => make("tr", "", ...head.map((_, index) => {
      const cell = make(tag, aligned[index], ...this.inline(cells[index] ?? ""));
      if (tag === "th") cell.scope = "col";
      return cell;
    }));
    const rows = [];
    let end = from + 2;
    while (end < lines.length && lines[end].includes("|") && lines[end].trim() && rows.length < this.rowsMax) { rows.push(row(this.cells(lines[end]), "td")); end += 1; }
    const holder = make("div", "table", make("table", "", make("thead", "", row(head, "th")), make("tbody", "", ...rows)));
    holder.tabIndex = 0;
    holder.setAttribute("role", "region");
    holder.setAttribute("aria-label", "Table");
    return { end, node: holder };
  },

  // MARK: Within a line

  inline(text, depth = 0) { return new InlineMarkdown(text, depth).nodes; },
};

/** Reads a text once from front to back: a mark that is looked for and not there is not looked for again. */
class InlineMarkdown {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = this.begin = 0;
    this.nodes = [];
    this.found = new Map();
    while (this.at < text.length) if (!this.mark()) this.at += 1;
    this.flush(text.length);
  }

  /** Where `mark` stands next, at or behind `from`; -1: nowhere. */
  next(mark, from) {
    const known = this.found.get(mark);
    if (known !== undefined && (known === -1 || known >= from)) return known;
    const found = this.text.indexOf(mark, from);
    this.found.set(mark, found);
    return found;
  }

  flush(to) {
    if (to > this.begin) this.nodes.push(document.createTextNode(tame(this.text.slice(this.begin, to))));
  }

  push(node, end) {
    this.flush(this.at);
    this.nodes.push(node);
    this.at = this.begin = end;
    return true;
  }

  inner(from, to) {
    const text = this.text.slice(from, to);
    return this.depth < markdown.depthMax ? markdown.inline(text, this.depth + 1) : [text];
  }

  mark() {
    const { text, at } = this;
    switch (text[at]) {
    case "\\": return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") && this.push(document.createTextNode(text[at + 1]), at + 2);
    case "`": return this.code();
    case "*": case "_": return this.emphasis(text[at]);
    case "~": return text[at + 1] === "~" && this.between("~~", "del");
    case "[": return this.link(at);
    case "!": return text[at + 1] === "[" && this.link(at + 1, true);
    case "<": return this.angled();
    case "h": return /^https?:\/\//.test(text.slice(at, at + 8)) && !/[\w/]/.test(text[at - 1] ?? "") && this.address();
    }
    return false;
  }

  code() {
    const mark = /^`+/.exec(this.text.slice(this.at, this.at + 16))[0];
    const end = this.next(mark, this.at + mark.length);
    if (end < 0) { this.at += mark.length; return true; }
    return this.push(make("code", "", unhidden(this.text.slice(this.at + mark.length, end).trim() || " ")), end + mark.length);
  }

  emphasis(sign) {
    const { text, at } = this;
    // Within a word it is a part of the name: snake_case.
    if (sign === "_" && /\w/.test(text[at - 1] ?? "")) return false;
    return text[at + 1] === sign ? this.between(sign + sign, "strong") : this.between(sign, "em");
  }

  between(mark, tag) {
    const from = this.at + mark.length;
    let end = this.next(mark, from);
    // ***both***
    if (end > from && mark.length === 2 && this.text[from] === mark[0] && this.text[end + 2] === mark[0]) end += 1;
    if (end <= from || /\s/.test(this.text[from]) || /\s/.test(this.text[end - 1])) return false;
    if (mark.includes("_") && /\w/.test(this.text[end + mark.length] ?? "")) return false;
    return this.push(make(tag, "", ...this.inner(from, end)), end + mark.length);
  }

  link(open, isImage = false) {
    const close = this.next("](", open + 1);
    // Only what belongs together: no other bracket in between, and no line's end.
    if (close < 0 || close - open > 2000) return false;
    const label = this.text.slice(open + 1, close);
    if (/[[\n]/.test(label)) return false;
    const end = this.next(")", close + 2);
    if (end < 0 || end - close > 2000) return false;
    const target = this.text.slice(close + 2, end).trim().split(/\s/)[0];
    const shown = label.trim() || target;
    return this.push(InlineMarkdown.anchor(target, isImage ? [`image: ${shown}`] : this.inner(open + 1, close), shown), end + 1);
  }

  angled() {
    const end = this.next(">", this.at);
    const target = end > 0 && end - this.at < 2000 ? this.text.slice(this.at + 1, end) : "";
    if (!/^(https?:\/\/|mailto:)\S+$/.test(target)) return false;
    return this.push(InlineMarkdown.anchor(target, [target], target), end + 1);
  }

  address() {
    const [url] = /^https?:\/\/[^\s<>"'`|\\^{}[\]*]+/.exec(this.text.slice(this.at, this.at + 2000)) ?? [];
    if (!url) return false;
    const trimmed = url.replace(/[.,;:!?)]+$/, "");
    return this.push(InlineMarkdown.anchor(trimmed, [trimmed], trimmed), this.at + trimmed.length);
  }

  /** A link to another page, or text where it leads anywhere else. Where the words speak of another place than the link, the place is said. */
  static anchor(target, content, shown) {
    let url;
    try { url = new URL(target); } catch { return make("span", "", ...content, ` (${target})`); }
    if (!["http:", "https:", "mailto:"].includes(url.protocol)) return make("span", "", ...content, ` (${target})`);
    const link = make("a", "", ...content);
    link.href = url.href;
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    link.title = tame(url.href);
    return InlineMarkdown.speaksOfAnother(shown, target, url) ? make("span", "", link, make("small", "place", ` (${url.host})`)) : link;
  }

  static speaksOfAnother(shown, target, url) {
    if (url.host === "" || shown === target || !/[.:/]/.test(shown)) return false;
    try { return new URL(/^\w+:\/\//.test(shown) ? shown : `${location.protocol}//${shown}`).host !== url.host; } catch { return true; }
  }
}

/** A text of a model that may grow, as Markdown, or as it was written. */
class Prose {
  static waiting = new Set();

  constructor() {
    this.node = make("div", "said prose");
    this.source = "";
    this.isSource = false;
    this.clear();
  }

  /** All blocks before `settled` are what they will be, so that a long answer is not read again for each piece: so many nodes. */
  clear() {
    this.settled = this.settledCount = 0;
    this.node.replaceChildren();
  }

  get data() { return this.source; }

  set data(text) {
    this.clear();
    this.source = "";
    this.appendData(text);
  }

  appendData(text) {
    this.source += text;
    if (Prose.waiting.size === 0) requestAnimationFrame(() => Prose.layOut());
    Prose.waiting.add(this);
  }

  /** Laid out once a frame, however many pieces come in it. */
  static layOut() {
    for (const prose of Prose.waiting) prose.layOut();
    Prose.waiting.clear();
  }

  showSource(isSource) {
    this.isSource = isSource;
    this.node.classList.toggle("source", isSource);
    this.clear();
    this.layOut();
  }

  layOut() {
    if (this.isSource) return this.node.replaceChildren(make("pre", "", unhidden(this.source)));
    while (this.node.childNodes.length > this.settledCount) this.node.lastChild.remove();
    const blocks = markdown.blocks(this.source.slice(this.settled));
    this.node.append(...blocks.map(block => block.node));
    if (blocks.length < 2) return;
    this.settled += blocks.at(-1).from;
    this.settledCount = this.node.childNodes.length - 1;
  }
}
