"""Reads a list of requests, {library, secret, headers, body}, with the official libraries in PYTHONPATH. Prints for each
{"read": the library's result} or {"refused": the reason}."""

import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook


def read(request):
    headers, body = request["headers"], request["body"]
    if request["library"] == "standardwebhooks":
        return Webhook(request["secret"]).verify(body, headers)
    event = from_http(HTTPMessage(headers, body.encode()), JSONFormat())
    return {**event.get_attributes(), "time": event.get_time().isoformat(), "data": event.get_data()}


def attempt(request):
    try:
        return {"read": read(request)}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


print(json.dumps([attempt(request) for request in json.load(sys.stdin)]))
