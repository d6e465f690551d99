"""The registrar seen from outside: ``/metrics``, ``/healthz``, and a file that a watchdog looks at.

    GET /metrics    Prometheus' text format
    GET /healthz    200 and "ok", or 503 and one line for each thing that is wrong

Laws:
- Only reads. It answers while Docker, the registry, or both are away: that is when it is asked.
- Away is not dead: ``/healthz`` says what is missing, the watchdog's file goes on as long as nothing hangs.
"""

from __future__ import annotations

import http.server
import logging
import socket
import sys
import threading
from typing import Final, Protocol

from discovery.errors import ConfigurationError
from discovery.exposition import CONTENT_TYPE

__all__ = ["Monitor", "Watched"]

log = logging.getLogger("registrar")

_TIMEOUT: Final = 5.0  # s for one request: who connects and says nothing does not keep a thread


class Watched(Protocol):
    def metrics(self) -> str:
        """Return everything that is counted, in Prometheus' text format."""

    def faults(self) -> list[str]:
        """Return what is wrong now, one sentence each; empty when nothing is."""


class Monitor:
    """An HTTP server with two pages. Use ``start`` and ``close``, or a ``with`` statement."""

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        """Bind at once, so that an address that cannot be had is said before anything runs.

        Raises:
            ConfigurationError: the address cannot be bound.
        """

        class Handler(_Handler):
            pages = watched

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                # The library prints a traceback. For a client that resets its connection, as scanners and
                # balancers' checks do, that is nobody's fault; any other error is ours.
                if isinstance(sys.exception(), OSError):
                    log.debug("monitor: lost %s", client_address, exc_info=True)
                else:
                    log.exception("monitor: cannot answer %s", client_address)

        try:
            self._server = Server((host, port), Handler)
        except OSError as exc:
            raise ConfigurationError(f"cannot listen on {host}:{port} for --metrics: {exc.strerror}") from exc
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="registrar-monitor")

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    pages: Watched
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, self.pages.metrics(), CONTENT_TYPE)
            case "/healthz":
                faults = self.pages.faults()
                text = "".join(f"{fault}\n" for fault in faults) or "ok\n"
                self._answer(503 if faults else 200, text)
            case _:
                self._answer(404, "there are /metrics and /healthz\n")

    def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the library's name
        log.debug("monitor: %s", format % args)
