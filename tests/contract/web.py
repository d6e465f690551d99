"""A little server, for the agents to run their checks against."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Web"]


class Web(ThreadingHTTPServer):
    """A server to be checked: GET /STATUS answers with that status, and every request is kept."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.port: int = self.server_address[1]
        self.seen: list[tuple[str, str, dict[str, str], str]] = []
        self.status = 200  # of /changing
        self.release = threading.Event()  # ends /slow


class _Page(BaseHTTPRequestHandler):
    server: Web

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        name = self.path.strip("/").partition("?")[0]
        if name == "slow":
            self.server.release.wait(30.0)
        redirect = {"moved": 302, "kept": 307}.get(name)
        status = (
            self.server.status if name == "changing" else redirect or (int(name) if name.isdigit() else 200)
        )
        text = "0123456789" * 1000 if name == "big" else f"page {name}"
        self.send_response(status)
        if redirect:
            self.send_header("Location", "/target")
        self.end_headers()
        try:
            if self.command != "HEAD" and status != 204:
                self.wfile.write(text.encode())
        except OSError:
            pass  # whoever asked for /slow has gone

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815 - the base class looks for these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class names it
        pass
