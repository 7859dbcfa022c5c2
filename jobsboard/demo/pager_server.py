"""The pager's HTTP side: `POST /alerts`, served on a socket that the local stack holds."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from jobsboard.demo.pager import Pager

PATH: Final = "/alerts"
MAX_BODY: Final = 262_144


class Server(ThreadingHTTPServer):
    """Serves a pager on an open, listening socket."""

    daemon_threads = True

    def __init__(self, pager: Pager, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.pager = pager


class _Request(BaseHTTPRequestHandler):
    server: Server
    timeout = 15

    def do_POST(self) -> None:  # noqa: N802 (http.server)
        length = self.headers.get("Content-Length", "")
        if self.path != PATH or not length.isdigit() or int(length) > MAX_BODY:
            self._say(404, f"post alerts to {PATH}")
            return
        body = self.rfile.read(int(length))
        answer = self.server.pager.receive({name.lower(): value for name, value in self.headers.items()}, body)
        self._say(answer.status, answer.word)

    def _say(self, status: int, word: str) -> None:
        body = word.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log that counts is the pager's."""
