"""How a server answers badly on purpose: with a status, by a reset, or late."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

Answer = Callable[[BaseHTTPRequestHandler], bool]
"""Answers a request badly; False to let it be taken as well."""


def refuse(status: int, body: str = "", **headers: str) -> Answer:
    """An answer with a status and what it says."""

    def do(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        for name, text in headers.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())
        return True

    return do


def refuse_as_aws(status: int, code: str, text: str = "because") -> Answer:
    """An error in the form of AWS's JSON protocols."""
    body = json.dumps({"__type": f"com.amazonaws.cloudwatch#{code}", "message": text})
    return refuse(status, body, Content_Type="application/x-amz-json-1.0")


def reset(handler: BaseHTTPRequestHandler) -> bool:
    """The connection is reset in the middle of the request."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    return True


def slow(handler: BaseHTTPRequestHandler) -> bool:
    """It answers late, but it answers."""
    time.sleep(0.3)
    return False
