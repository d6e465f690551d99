"""What this machine offers: its ports, its rights, and what to do when a test asks for more."""

from __future__ import annotations

import os
import socket
from typing import NoReturn

import pytest

__all__ = ["free_port", "missing", "require_root"]


def free_port() -> int:
    """A loopback port that is free for TCP and for UDP right now.

    Both, because Consul gossips and DNS answers on the same number over either. Somebody else may take it
    before the caller binds it, so what listens there must be ready to be started again with another.
    """
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def missing(reason: str) -> NoReturn:
    """This test cannot run here: skip for a person's machine, fail where it had to run.

    CI, and root who may install anything, have no excuse: a suite that skips there would be green
    without having tested anything.
    """
    if os.environ.get("CI") or os.geteuid() == 0:
        pytest.fail(f"{reason} (not skipped: this is CI or root)", pytrace=False)
    pytest.skip(reason)


def require_root(reason: str) -> None:
    """Go on as root; otherwise `missing`. `reason` says what the rights are needed for."""
    if os.geteuid() != 0:
        missing(f"needs root: {reason}")
