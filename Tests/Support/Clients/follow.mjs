// Follows an agent and a plain stream with parley.js as the server serves it, while the test kills that server.
//
//     node [--experimental-websocket] follow.mjs <url> <agent> <stream> <count>
//
// Writes one JSON line for each thing seen; ends when the turn has ended and the stream holds <count> numbers, which it appends itself.
import { load } from "./load.mjs";

const [url, agent, stream, count] = process.argv.slice(2);
const say = line => process.stdout.write(JSON.stringify(line) + "\n");

const { Parley, ParleyError, TextView } = await load(url);
const parley = new Parley({ url });

await fetch(`${url}/v1/stream/${stream}`, { method: "PUT", headers: { "Content-Type": "application/json" } });
say({ transport: parley.link() ? "socket" : "stream" });
const sent = await parley.send(agent, "Tell me about the sea.");
say({ sent: sent.offset });

async function followAgent() {
  const text = new TextView(), entries = [];
  for await (const entry of parley.follow(`agents/${agent}`)) {
    entries.push(entry);
    say({ entry });
    text.add(entry);
    if (entry.type.startsWith("turn.") && entry.type !== "turn.started") break;
  }
  say({ text: text.text, again: parley.text(entries) });
}

async function followStream() {
  const follow = parley.follow(stream);
  for await (const number of follow) {
    say({ number });
    if (number === Number(count) - 1) break;
  }
  say({ offset: follow.offset });
}

async function append() {
  for (let number = 0; number < Number(count); number++) {
    await parley.append(stream, number);
    await new Promise(resolve => setTimeout(resolve, 10));
  }
}

await Promise.all([followAgent(), followStream(), append()]);
try {
  await parley.append(`agents/${agent}`, { type: "shout" });
} catch (error) {
  say({ refused: error instanceof ParleyError && error.code });
}
try {
  for await (const _ of parley.follow("nobody-made-it"));
} catch (error) {
  say({ missing: error.code });
}
parley.close();
say({ done: true });
