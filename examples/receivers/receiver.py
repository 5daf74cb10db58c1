#!/usr/bin/env python3
"""Receives the events of llmtune-webhooks, verifies their signatures and prints a line for each.

Python 3.11, standard library only. Copy it and put your own work into handle().
"""

import hashlib
import hmac
import json
import os
import queue
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = os.environ.get("HOST", "127.0.0.1")
PORT = int(os.environ.get("PORT", "8000"))
SECRET = os.environ.get("WEBHOOK_SECRET", "").encode()
VERBOSE = os.environ.get("VERBOSE") == "1"
MAX_BODY_BYTES = 256 * 1024
REMEMBERED_IDS = 10_000

accepted = queue.Queue(maxsize=1_000)


def handle(event):
    """Your work goes here. It begins after the answer, once per event, one event after the other."""
    if VERBOSE:
        print(json.dumps(event, indent=2, ensure_ascii=False), flush=True)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        # The operator always sends Content-Length; a request without one is not its own.
        length = int(self.headers.get("Content-Length", -1))
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        if not is_authentic(body, self.headers.get("X-LLMTune-Signature", "")):
            show("refused: wrong signature")
            return self.answer(401)
        try:
            accepted.put_nowait((json.loads(body), self.headers.get("X-LLMTune-Attempt")))
        except ValueError:
            show("refused: the body is not JSON")
            return self.answer(400)
        except queue.Full:
            show("refused: too much to do; it will be sent again")
            return self.answer(503)
        self.answer(200)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, *_):
        pass  # show() prints a line per event instead.


def is_authentic(body, signature):
    expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode())


def work():
    seen = {}
    while True:
        event, attempt = accepted.get()
        try:
            # Delivery is at least once: an event may come again, under the same id.
            first = event["id"] not in seen
            seen[event["id"]] = True
            if len(seen) > REMEMBERED_IDS:
                del seen[next(iter(seen))]
            data = event["data"]
            where = f"{data.get('namespace')}/{data.get('name')}"
            verdict = "✓ verified" if first else "= duplicate"
            show(f"{event['event']:<23}  {where:<30}  attempt {attempt}  {event['id']}  {verdict}")
            if first:
                handle(event)
        except Exception:
            traceback.print_exc()


def show(text):
    # One write a line, so that the lines of two threads do not mix.
    print(f"{time.strftime('%H:%M:%S', time.gmtime())}  {text}\n", end="", flush=True)


if __name__ == "__main__":
    if not SECRET:
        sys.exit("Set WEBHOOK_SECRET to the value in the Secret that the Webhook's spec.secretRef names.")
    threading.Thread(target=work, daemon=True).start()
    server = ThreadingHTTPServer((HOST, PORT), Receiver)
    print(f"Listening on http://{HOST}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
