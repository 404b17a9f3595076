// parley.js as the server serves it, or from a file: as a module that node can import.
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export async function load(from) {
  const text = from.startsWith("http") ? await (await fetch(`${from}/parley.js`)).text() : readFileSync(from, "utf8");
  const file = join(mkdtempSync(join(tmpdir(), "parley-client-")), "parley.mjs");
  writeFileSync(file, text);
  return import(file);
}
