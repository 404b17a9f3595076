// Follows a tree of agents with parley.js until so many entries have come, leaving and coming back with the cursor now and then.
//
//     node --experimental-websocket tree.mjs <url> <root> <count>
import { load } from "./load.mjs";

const [url, root, count] = process.argv.slice(2);
const { Parley } = await load(url);
const say = line => process.stdout.write(JSON.stringify(line) + "\n");

let cursor, seen = 0;
while (seen < Number(count)) {
  const parley = new Parley({ url });
  const tree = parley.tree(root, { cursor });
  let leaveAfter = 1 + Math.floor(Math.random() * 20);
  for await (const entry of tree) {
    say({ channel: entry.channel, name: entry.name ?? entry.agent });
    // A piece that has been taken in part comes again from its start: so leave where the cursor has just moved on.
    const moved = tree.cursor !== cursor;
    cursor = tree.cursor;
    if (++seen === Number(count) || --leaveAfter <= 0 && moved) break;
  }
  parley.close();
}
say({ done: true });
