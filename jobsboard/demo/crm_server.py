"""The CRM's HTTP side: `POST /contacts`, and `GET /contacts?...` to ask; on a socket that the local stack holds.

A restart keeps it.
"""

from __future__ import annotations

import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from jobsboard.demo.crm import AnswerLost, Crm, Refused

PATH: Final = "/contacts"
MAX_BODY: Final = 65_536


class Server(ThreadingHTTPServer):
    """Serves a CRM on an open, listening socket."""

    daemon_threads = True

    def __init__(self, crm: Crm, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.crm = crm


class _Request(BaseHTTPRequestHandler):
    server: Server
    timeout = 15

    def do_POST(self) -> None:  # noqa: N802 (http.server)
        try:
            status, said, headers = self._answer()
        except AnswerLost:
            # As when a proxy falls over: no status, no body.
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._say(status, said, headers)

    def do_GET(self) -> None:  # noqa: N802 (http.server)
        if self.path.partition("?")[0] != PATH:
            self._say(404, {"error": f"ask for contacts at {PATH}"}, {})
            return
        try:
            status, said = self.server.crm.look_up(self._heads(), self.path)
        except Refused as refused:
            status, said = refused.status, {"error": str(refused)}
        self._say(status, said, {})

    def _heads(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _say(self, status: int, said: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[int, dict[str, Any], dict[str, str]]:
        length = self.headers.get("Content-Length", "")
        if self.path != PATH or not length.isdigit() or int(length) > MAX_BODY:
            return 404, {"error": f"post contacts to {PATH}"}, {}
        body = self.rfile.read(int(length))
        try:
            status, said = self.server.crm.receive(self._heads(), body)
        except Refused as refused:
            wait = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
            return refused.status, {"error": str(refused)}, wait
        return status, said, {}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log that counts is the CRM's."""
