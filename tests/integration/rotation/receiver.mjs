// A receiver whose keys can be changed while it runs: PUT /keys takes a JSON array of them, GET /seen returns the
// requests.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

let keys = [];
// Requests: the event's id, whether it was acknowledged, the connection's port, and whether it had two signatures.
const seen = [];

function isSignedBy(key, body, signature) {
  const ours = Buffer.from(createHmac("sha256", key).update(body).digest("hex"));
  const theirs = Buffer.from(String(signature));
  return ours.length === theirs.length && timingSafeEqual(ours, theirs);
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  if (request.url === "/keys") {
    keys = JSON.parse(body);
    response.end();
  } else if (request.url === "/seen") {
    response.end(JSON.stringify(seen));
  } else {
    const acknowledged = keys.some((key) => isSignedBy(key, body, request.headers["x-llmtune-signature"]));
    const rotating = "x-llmtune-signature-previous" in request.headers;
    const { "x-llmtune-event-id": id, "x-llmtune-attempt": attempt } = request.headers;
    seen.push({ id, attempt, acknowledged, connection: request.socket.remotePort, rotating });
    response.statusCode = acknowledged ? 204 : 401;
    response.end();
  }
});
server.listen(0, "127.0.0.1", () => console.log(`Listening on ${server.address().port}`));
