// A receiver of Jobsboard's webhooks, Node.js 18 or newer, no dependencies.
//
//     WEBHOOK_SECRET=whsec_... PORT=9000 node receiver.mjs
//
// Copy `verify` and `Inbox` into your own service; the server below them is only there to try them out.

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const TOLERANCE_SECONDS = 5 * 60;
const LARGEST_BODY = 1024 * 1024;

export class NotGenuine extends Error {}

// Returns the message, or throws NotGenuine.
// secrets: those that you hold, each `whsec_...`; more than one only while you change yours.
// headers: names in lower case. body: a Buffer with the bytes exactly as they came, before anything has parsed them.
export function verify(secrets, headers, body, now = Date.now() / 1000) {
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  const signatures = headers["webhook-signature"];
  if (!id || !timestamp || !signatures) throw new NotGenuine("a header is missing");
  if (!/^[0-9]{1,12}$/.test(timestamp)) throw new NotGenuine("the timestamp is not a number");
  // Whoever recorded a message cannot play it back later.
  if (Math.abs(now - Number(timestamp)) > TOLERANCE_SECONDS) {
    throw new NotGenuine("the timestamp is too far from now");
  }
  // During a rotation there are two signatures, separated by a space: one that fits is enough.
  const given = signatures
    .split(" ")
    .filter((one) => one.startsWith("v1,"))
    .map((one) => Buffer.from(one.slice(3)));
  let fits = false;
  for (const secret of secrets) {
    const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
    const digest = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64");
    const expected = Buffer.from(digest);
    for (const one of given) {
      // timingSafeEqual takes as long for a near miss as for a far one, and wants equal lengths.
      fits = (one.length === expected.length && timingSafeEqual(one, expected)) || fits;
    }
  }
  if (!fits) throw new NotGenuine("no signature fits");
  return JSON.parse(body.toString("utf8"));
}

// Knows what came before: a message may come twice, and an older state after a newer one.
export class Inbox {
  constructor(remember = 10_000) {
    this.remember = remember;
    this.seen = new Map();
    this.newest = new Map();
  }

  // Returns "new", "duplicate" (seen before) or "stale" (a newer state of the alert was seen).
  take(messageId, message) {
    const { id: alert = null, sequence = 0 } = message.data ?? {};
    if (this.seen.has(messageId)) return "duplicate";
    this.put(this.seen, messageId, true);
    // A test, or a heartbeat.
    if (alert === null) return "new";
    if (sequence < (this.newest.get(alert) ?? 0)) return "stale";
    this.put(this.newest, alert, sequence);
    return "new";
  }

  put(known, key, value) {
    known.delete(key);
    known.set(key, value);
    if (known.size > this.remember) known.delete(known.keys().next().value);
  }
}

function say(...words) {
  console.log(JSON.stringify(words));
}

async function bodyOf(request) {
  const pieces = [];
  let length = 0;
  for await (const piece of request) {
    length += piece.length;
    if (length > LARGEST_BODY) return null;
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

function serve(secrets, port) {
  const inbox = new Inbox();
  const server = createServer(async (request, response) => {
    const answer = (status) => response.writeHead(status, { "Content-Length": 0 }).end();
    try {
      const body = await bodyOf(request);
      if (body === null) return answer(413);
      const message = verify(secrets, request.headers, body);
      // Answer first and work later: the sender waits 15 seconds at most, and comes again if it hears nothing.
      const outcome = inbox.take(request.headers["webhook-id"], message);
      answer(204);
      say(outcome, message.type, message.data?.title ?? null);
    } catch (error) {
      say("refused", error.message);
      answer(error instanceof NotGenuine ? 401 : 400);
    }
  });
  server.requestTimeout = 10_000;
  server.listen(port, "127.0.0.1", () => say("listening", server.address().port));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const secrets = (process.env.WEBHOOK_SECRET ?? "").split(/\s+/).filter(Boolean);
  if (secrets.length === 0) {
    console.error("WEBHOOK_SECRET is not set");
    process.exit(1);
  }
  serve(secrets, Number(process.env.PORT ?? 9000));
}
