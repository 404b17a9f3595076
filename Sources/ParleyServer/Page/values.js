const $ = id => document.getElementById(id);
const make = (tag, className, ...content) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content.filter(part => part !== undefined && part !== null).map(part => typeof part === "string" ? tame(part) : part));
  return node;
};
const isName = name => /^[A-Za-z0-9._~-]{1,128}\/[A-Za-z0-9._~-]{1,128}$/.test(name);
// The candidate that was probably meant: the nearest by edits, of which each has a third of its length.
function nearest(word, candidates) {
  const distance = (a, b) => {
    let row = Array.from({ length: b.length + 1 }, (_, index) => index);
    for (let i = 1; i <= a.length; i++) {
      const next = [i];
      for (let j = 1; j <= b.length; j++) next.push(Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
      row = next;
    }
    return row[b.length];
  };
  const near = candidates.map(candidate => [distance(word.toLowerCase(), candidate.toLowerCase()), candidate])
    .filter(([edits, candidate]) => edits <= Math.max(1, Math.floor(candidate.length / 3)));
  return near.sort((a, b) => a[0] - b[0])[0]?.[1];
}
const randomID = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
const pause = (ms, signal) => new Promise(done => {
  const timer = setTimeout(done, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
});
async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not on https or localhost: the old way.
    const field = make("textarea", "unseen");
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { button.textContent = label; }, 1500);
}
const announce = text => { $("announce").textContent = tame(text); };
const endsTurn = type => /^turn\.(completed|failed|interrupted|cancelled)$/.test(type);
const inputTypes = new Set(["message", "steer", "interrupt", "cancel", "approve", "deny", "signal", "close", "resume"]);
const states = ["idle", "running", "waiting", "parked", "stalled", "closed"];
const rowsMax = 3000, charactersMax = 8e6, listPage = 100, listMax = 1000;


// Values as text.

// Numbers that JavaScript would round are kept as they were written, where the browser can: what is approved is shown exactly.
const exact = (key, value, context) =>
  typeof value === "number" && context?.source && JSON.rawJSON && String(value) !== context.source ? JSON.rawJSON(context.source) : value;
// Long numbers, fractions that end in 0 and exponents: without any, the fast way gives the same.
const parse = text => /[:,[]\s*-?(\d[\d.]{15}|\d+\.\d*0\b|[\d.]+[eE])/.test(text) ? JSON.parse(text, exact) : JSON.parse(text);

// Characters that are not seen, or that reorder others, are written as escapes: arguments must not look like other arguments.
const escaped = character => character.split("").map(unit => "\\u" + unit.charCodeAt(0).toString(16).padStart(4, "0")).join("");
const hiddenPattern =
  /[\0-\x08\x0b-\x1f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e0fff}]/gu;
const unhidden = text => text.replace(hiddenPattern, escaped);
// The same as nodes: what stands for a character that is not seen is marked, so that a text that holds such an escape looks different.
const marked = text => {
  const nodes = [];
  let at = 0;
  for (const { index, 0: hidden } of text.matchAll(hiddenPattern)) {
    nodes.push(text.slice(at, index), make("mark", "", escaped(hidden)));
    at = index + hidden.length;
  }
  return [...nodes, text.slice(at)].filter(node => node !== "");
};
// In prose only what would reorder or break the words around it: languages and emoji need some of the others.
const tame = text => String(text).replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb]/g, escaped);
// The same for text that is counted in bytes: each is replaced by one that takes as many.
const even = text => text.replace(/[\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb]/g, "\ufffd").replace(/\u061c/g, "\u00b7");
const pretty = value => unhidden(JSON.stringify(value, null, 2));
const show = value => typeof value === "string" ? value : pretty(value);
const short = value => value === undefined ? "" : unhidden(JSON.stringify(value)).slice(0, 300);
const problem = error =>
  error ? [error.message || show(error), error.code && `(${error.code})`].filter(Boolean).join(" ") : "no reason given";
// The arguments of a tool call come as a value, or as JSON in a string.
const opened = value => { if (typeof value !== "string") return value; try { return parse(value); } catch { return value; } };
const shortOffset = offset => String(offset).replace(/^0+(?=.)/, "");

// Made once: making one costs more than a row.
const hourFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", day: "numeric", month: "short" });
const secondFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const clock = at => {
  const time = new Date(at);
  return (time.toDateString() === new Date().toDateString() ? hourFormat : dayFormat).format(time);
};
const span = ms => {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]], first = units.findIndex(([, size]) => seconds >= size);
  const whole = Math.floor(seconds / units[first][1]), next = units[first + 1];
  const rest = next ? Math.floor((seconds - whole * units[first][1]) / next[1]) : 0;
  return `${whole} ${units[first][0]}` + (rest ? ` ${rest} ${next[0]}` : "");
};
const ago = at => {
  const ms = Date.now() - new Date(at);
  return ms < 60_000 ? "now" : span(ms).split(" ").slice(0, 2).join(" ");
};
const countdown = until => {
  const left = new Date(until) - Date.now();
  return left > 0 ? `expires in ${span(Math.max(1000, left))}` : "expired";
};
