// The rules for text, one by one, and then any cut of a random history into the places where a reader may begin.
//
//     node text.mjs <parley.js> <seed>
import assert from "node:assert/strict";
import { load } from "./load.mjs";

const [file, seed] = process.argv.slice(2);
const { TextView, Parley } = await load(file);
const parley = new Parley({ url: "http://127.0.0.1:9" });

const bytes = text => new TextEncoder().encode(text).length;
const text = (attempt, index, delta, more = {}) => ({ type: "text", turn: "1", step: "answer", part: "text", attempt, index, delta, ...more });
const completed = text => ({ type: "step.completed", turn: "1", step: "answer", attempt: 1, text });
const shown = (...entries) => parley.text(entries);

assert.equal(shown(text(1, 0, "The "), text(1, 4, "sea")), "The sea");
assert.equal(shown(text(1, 0, "The sea"), text(2, 0, "A lake")), "A lake", "a higher attempt replaces a lower one");
assert.equal(shown(text(2, 0, "A lake"), text(1, 0, "The sea")), "A lake", "a lower one comes too late");
assert.equal(shown(text(1, 0, "The sea"), text(2, 4, "lake", { continues_at: 4 })), "The lake", "from continues_at on");
assert.equal(shown(text(1, 0, "Größe"), text(2, 6, " n", { continues_at: 6 })), "Größ n", "which counts bytes, not characters");
assert.equal(shown(text(1, 0, "😀😀"), text(2, 4, "!", { continues_at: 4 })), "😀!");
assert.equal(shown(text(1, 0, "The sea"), { type: "step.started", turn: "1", step: "answer", attempt: 2 }), "", "a new attempt begins");
assert.equal(shown(text(1, 0, "draft"), completed("final")), "final", "the result replaces whatever was shown");
assert.equal(shown(completed("final"), text(2, 0, "late")), "final", "and stays");
assert.equal(shown(text(1, 0, "The "), text(1, 4, "sea"), text(1, 4, "sea")), "The sea", "what comes twice counts once");
assert.equal(shown(text(1, 4, "sea"), text(1, 7, "side")), "seaside", "a reader that began late shows what it has");
assert.equal(shown(text(1, 9, "x"), text(2, 4, "lake", { continues_at: 4 })), "lake", "also when all of it is replaced");
assert.equal(shown(text(1, 0, "think", { part: "reasoning" }), text(1, 0, "say")), "say");
assert.equal(shown({ type: "message", text: "hello" }, { type: "turn.started", turn: "1" }), "");
assert.deepEqual(new TextView().add(text(1, 0, "a", { part: "reasoning" })).add(text(1, 0, "b")).add(completed("c")).parts.map(part => [part.part, part.text, part.isComplete]),
  [["reasoning", "a", false], ["text", "c", true]]);

let state = Number(seed) || 1;
const random = most => (state = (state * 1103515245 + 12345) % 2147483648) % most;
const letters = ["a", "ß", "–", "😀", " "];
for (let round = 0; round < 300; round++) {
  // What the text is, kept as whole characters, beside the entries that say so.
  let characters = [], entries = [], attempt = 1;
  for (let step = 0; step < 30; step++) {
    let more = {};
    if (random(8) === 0) {
      attempt++;
      characters = random(2) ? characters.slice(0, random(characters.length + 1)) : [];
      if (characters.length) more = { continues_at: bytes(characters.join("")) };
    }
    const added = Array.from({ length: 1 + random(4) }, () => letters[random(letters.length)]);
    entries.push(text(attempt, bytes(characters.join("")), added.join(""), more));
    characters.push(...added);
    assert.equal(parley.text(entries), characters.join(""), `seed ${seed}, round ${round}, step ${step}`);
  }
}
console.log("all hold");
