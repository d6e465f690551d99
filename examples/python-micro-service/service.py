#!/usr/bin/env python3
"""The service of the walkthrough: says "Hello World from <hostname>" on every path.

    service.py [PORT]        the port to listen on; else $PORT, else 5000

It shows the one thing a service owes its callers when it is stopped: on SIGTERM it keeps answering for a
moment. `docker stop` sends SIGTERM, the registrar sees that and takes the instance out of the catalogue; who
looked it up just before still gets an answer instead of a refused connection.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

DEFAULT_PORT = 5000
DRAIN = 1.0  # s from SIGTERM to the end; several times what the news takes to reach the last client
IDLE_TIMEOUT = 5.0  # s that a kept-alive connection may be silent, so that none holds a thread for ever


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT

    def do_GET(self) -> None:
        body = f"Hello World from {socket.gethostname()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if stopping.is_set():
            self.send_header("Connection", "close")  # a client with a connection pool moves on, too
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Health checks ask every few seconds; a line for each would bury everything else."""


class Server(ThreadingTCPServer):
    # Not http.server's own class: it asks DNS for this machine's name before it listens.
    allow_reuse_address = True
    daemon_threads = True  # an idle connection does not delay the exit
    request_queue_size = 128


stopping = threading.Event()


def main() -> None:
    port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PORT", DEFAULT_PORT))
    with Server(("", port), Hello) as server:

        def drain(*_: object) -> None:
            if not stopping.is_set():
                stopping.set()
                threading.Timer(DRAIN, server.shutdown).start()

        signal.signal(signal.SIGTERM, drain)
        print(f"listening on port {port}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
