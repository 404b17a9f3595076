// The log as it is: every entry, the pieces of one text folded into one row.

class RawLog {
  /** Pieces in one row; more begin another. */
  static piecesMax = 1000;

  add(entry) {
    const json = JSON.stringify(entry);
    if (entry.type === "text" && this.fold(entry, json)) return;
    const row = RawLog.row(entry, json);
    this.last = entry.type === "text" ? { row, entry, count: 1 } : undefined;
    row.hidden = !RawLog.matches(row);
    rows.add(row, json.length + 200);
  }

  /** Adds a piece to the row of the one before it, if it goes on with that. */
  fold(entry, json) {
    const { last } = this, key = ({ turn, step, attempt, part }) => [turn, step, attempt, part].join(" ");
    if (!last || last.count >= RawLog.piecesMax || key(last.entry) !== key(entry) || !last.row.isConnected) return false;
    last.count += 1;
    const { row } = last;
    row.classList.add("run");
    row.pieces = [...row.pieces ?? [row.json], json];
    row.text = (row.text ?? last.entry.delta) + entry.delta;
    const [at, , type, brief] = row.firstChild.children;
    at.textContent = `${shortOffset(last.entry.offset)}–${shortOffset(entry.offset)}`;
    type.textContent = `text ×${last.count}`;
    brief.textContent = tame(`${entry.step} · ${JSON.stringify(row.text.slice(-160))}`);
    if (row.open) RawLog.unfold(row);
    rows.weigh(row, json.length);
    row.hidden = !RawLog.matches(row);
    return true;
  }

  static row(entry, json) {
    const type = entry.type || "entry", row = make("details", "raw");
    if (inputTypes.has(type)) row.classList.add("in");
    if (/failed|stalled/.test(type) || entry.state === "rejected") row.classList.add("bad");
    const time = make("time", "", entry.at ? secondFormat.format(new Date(entry.at)) : "");
    const at = make("span", "at", shortOffset(entry.offset));
    at.title = entry.offset;
    row.append(make("summary", "", at, time, make("b", "", type),
      make("span", "brief", RawLog.brief(entry))));
    row.json = json;
    return row;
  }

  // Laid out when somebody looks: thousands of rows stay cheap.
  static unfold(row) {
    if (!row.open || !row.json) return;
    if (!row.pieces) {
      if (row.childElementCount === 1) row.append(make("pre", "", pretty(parse(row.json))));
      return;
    }
    if (row.childElementCount === 1) row.append(make("div", "pieces"));
    const shown = row.lastChild.childElementCount;
    for (const json of row.pieces.slice(shown)) row.lastChild.append(RawLog.row(parse(json), json));
  }

  // What tells entries of a type apart, on one line.
  static brief(entry) {
    if (entry.type === "text") return `${entry.step} @${entry.index} ${JSON.stringify(entry.delta)}`;
    const { step, turn, of, name, error } = entry;
    const facts = [
      step ?? (turn && `turn ${shortOffset(turn)}`), entry.kind, of && `of ${shortOffset(of)}`, entry.state, entry.action, entry.decision,
      entry.reason, error && problem(error), entry.cause, name !== step && name, entry.due,
    ];
    const value = [entry.text, entry.data, entry.result, entry.output, entry.args, entry.approval].find(value => value !== undefined);
    facts.push(value === undefined ? "" : short(value));
    return facts.filter(Boolean).map(fact => typeof fact === "string" ? fact : short(fact)).join(" · ");
  }

  static matches(row) {
    const sought = $("match").value.trim().toLowerCase();
    if (!sought) return true;
    return (row.pieces ?? [row.json]).some(json => json.toLowerCase().includes(sought)) || row.text?.toLowerCase().includes(sought) === true;
  }

  static filter() {
    let shown = 0;
    for (const row of $("rows").children) if (row.json !== undefined) { row.hidden = !RawLog.matches(row); shown += row.hidden ? 0 : 1; }
    $("matched").textContent = $("match").value.trim() ? `${shown} shown` : "";
  }
}

/** A channel without an agent: its messages, which may be anything. */
class PlainLog {
  add(message) {
    const isPiece = typeof message === "string", json = JSON.stringify(message);
    const row = make("details", "raw plain");
    const brief = isPiece ? message : message?.type ? `${message.type} · ${short(message)}` : short(message);
    row.append(make("summary", "", make("span", "brief", brief.slice(0, 400))));
    row.json = json;
    row.hidden = !RawLog.matches(row);
    rows.add(row, json.length + 200);
  }
}
