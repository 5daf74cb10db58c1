#!/usr/bin/env node
// Receives the events of llmtune-webhooks, verifies their signatures and prints a line for each.
// Node 20, no dependencies. Copy it and put your own work into handle().

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const { PORT = "8000", HOST = "127.0.0.1", WEBHOOK_SECRET, VERBOSE } = process.env;
const MAX_BODY_BYTES = 256 * 1024;
const REMEMBERED_IDS = 10_000;

if (!WEBHOOK_SECRET) {
  console.error("Set WEBHOOK_SECRET to the value in the Secret that the Webhook's spec.secretRef names.");
  process.exit(2);
}

// Your work goes here, async or not. It begins after the answer, once per event.
async function handle(event) {
  if (VERBOSE === "1") console.log(JSON.stringify(event, null, 2));
}

const server = createServer((request, response) => {
  const answer = (status, headers) => response.writeHead(status, headers).end();
  if (request.method !== "POST") return answer(405, { allow: "POST" });
  // The operator always sends Content-Length; a request without one is not its own.
  if (!(Number(request.headers["content-length"]) <= MAX_BODY_BYTES)) return answer(413, { connection: "close" });

  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const event = parse(Buffer.concat(chunks));
    if (event === undefined) {
      answer(400);
      return print("refused: the body is not JSON");
    }
    if (!isAuthentic(event, request.headers["x-llmtune-signature"])) {
      answer(401);
      return print("refused: wrong signature");
    }
    answer(200);
    const first = isNew(event.id);
    const object = `${event.data.namespace}/${event.data.name}`;
    const attempt = `attempt ${request.headers["x-llmtune-attempt"]}`;
    const verdict = first ? "✓ verified" : "= duplicate";
    print(`${event.event.padEnd(23)}  ${object.padEnd(30)}  ${attempt}  ${event.id}  ${verdict}`);
    if (first) handle(event).catch(console.error);
  });
});

function parse(body) {
  try {
    return JSON.parse(body);
  } catch {
    return undefined;
  }
}

// The bodies are such that parsing and stringifying gives back the bytes that were signed.
function isAuthentic(event, signature = "") {
  const expected = createHmac("sha256", WEBHOOK_SECRET).update(JSON.stringify(event)).digest("hex");
  const [ours, theirs] = [Buffer.from(expected), Buffer.from(signature)];
  return ours.length === theirs.length && timingSafeEqual(ours, theirs);
}

// Delivery is at least once: an event may come again, under the same id.
const seen = new Set();
function isNew(id) {
  if (seen.has(id)) return false;
  seen.add(id);
  if (seen.size > REMEMBERED_IDS) seen.delete(seen.values().next().value);
  return true;
}

function print(text) {
  console.log(`${new Date().toISOString().slice(11, 19)}  ${text}`);
}

// Longer than the operator keeps an idle connection, so that no request meets a connection just closed.
server.keepAliveTimeout = 65_000;
server.listen(Number(PORT), HOST, () => {
  console.log(`Listening on http://${HOST}:${server.address().port}`);
});
