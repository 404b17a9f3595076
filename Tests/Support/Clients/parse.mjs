// What node's HTTP parser (llhttp, strict) makes of the bytes of a connection, to be compared with ours.
//
//     node parse.mjs <file>     each line: the bytes in hexadecimal
//
// Answers each line with {requests: [{method, target, minor, fields, body, stays}], refused, isComplete}.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { Duplex } from "node:stream";

const turns = async (count) => {
  for (let turn = 0; turn < count; turn++) await new Promise(setImmediate);
};

async function read(bytes) {
  const requests = [];
  let refused = null;
  let written = "";
  const server = createServer({ maxHeaderSize: 16 << 10, insecureHTTPParser: false }, (request, response) => {
    const pieces = [];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", () => {
      const fields = [];
      for (let index = 0; index < request.rawHeaders.length; index += 2) fields.push(request.rawHeaders.slice(index, index + 2));
      const { method, url: target, httpVersionMinor: minor } = request;
      requests.push({ method, target, minor, fields, body: Buffer.concat(pieces).toString("hex"), stays: response.shouldKeepAlive });
      response.end();
    });
    request.on("error", () => {});
  });
  // Of a connection that ends too soon nothing may get lost, nor be added.
  server.httpAllowHalfOpen = true;
  server.on("clientError", (error, socket) => {
    refused = refused ?? error.code;
    socket.destroy();
  });
  server.on("connect", (request, socket) => {
    refused = refused ?? "CONNECT";
    socket.destroy();
  });
  const socket = new Duplex({
    read() {},
    write(piece, _, done) {
      written += piece.toString("latin1");
      done();
    },
  });
  socket.on("error", () => {});
  server.emit("connection", socket);
  // Byte by byte: node tells of a request in later turns, and of none when what stands behind it in the same piece is wrong.
  for (const byte of Buffer.from(bytes, "hex")) {
    if (socket.destroyed) break;
    socket.push(Buffer.of(byte));
    await turns(1);
  }
  await turns(4);
  const completed = requests.length;
  if (!socket.destroyed) socket.push(null);
  await turns(4);
  socket.destroy();
  // What node answers by itself: no Host, or an expectation.
  const answers = [...written.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => Number(match[1])).filter((status) => status >= 200);
  const own = answers.find((status) => status >= 400);
  if (own && refused === null) refused = `answered ${own}`;
  const isComplete = refused !== "HPE_INVALID_EOF_STATE";
  return { requests: requests.slice(0, completed), refused: isComplete ? refused : null, isComplete };
}

for (const line of readFileSync(process.argv[2], "latin1").split("\n")) {
  if (line) console.log(JSON.stringify(await read(line)));
}
