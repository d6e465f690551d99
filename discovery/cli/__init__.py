"""The ``discovery`` command: look up, list, watch, explain and register services from a shell.

    __init__     main: exit codes, and what becomes of errors and interruptions
    parser       the command line
    commands     what the plain commands do          watching     the live view of a service
    doctor       what is wrong on this machine       bench        what a lookup costs on it
    completion   scripts for shells                  text         tables and colours for a terminal

Exit codes: 0 ok, 1 anything unforeseen, 2 wrong usage, 3 no such service, 4 no healthy instance,
5 the registry cannot be asked; 130 interrupted.

Laws:
- What a script reads goes to standard output, and nothing else does. An error is one sentence on standard
  error.
- Into a pipe, everything is written in full and without colour; on a terminal, no line is cut by it.
- ``import discovery`` loads nothing of this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from discovery.errors import (
    ConfigurationError,
    DiscoveryError,
    NoHealthyInstances,
    RegistryError,
    RegistryUnavailable,
    ServiceNotFound,
)

__all__ = ["exit_code", "main"]

_EXIT_CODES: Final[Mapping[type[DiscoveryError], int]] = {
    ConfigurationError: 2,
    ServiceNotFound: 3,
    NoHealthyInstances: 4,
    RegistryUnavailable: 5,
    RegistryError: 5,
}
_INTERRUPTED: Final = 130
"""What a shell says of a command that SIGINT ended: 128 + 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (``sys.argv`` when None) and return its exit code."""
    _replace_closed()
    try:
        # Here, not above: these take a tenth of a second, in which somebody may press Ctrl-C.
        from discovery.cli.parser import run

        code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a reader that has left is no error, and not at exit, where it is
        return code
    except DiscoveryError as exc:
        from discovery.cli.text import plain

        print(f"discovery: {plain(str(exc))}", file=sys.stderr)
        return exit_code(exc)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our pipe left (``discovery watch web | head``); Python would complain at exit.
        _drop_output()
        return 0
    except OSError as exc:
        if exc.filename is not None:
            raise  # some file: that is no foreseen end
        _drop_output()
        print(f"discovery: cannot write the output: {(exc.strerror or str(exc)).lower()}", file=sys.stderr)
        return 1


def exit_code(error: DiscoveryError) -> int:
    """Return the exit code that tells a script of *error*."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)


def _replace_closed() -> None:
    """Write nowhere what would go to an output that was closed (``>&-``): Python has None in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # Never closed: its number may be 1 or 2, and a connection that got it would be written into.
            setattr(sys, name, open(nowhere, "w", closefd=False))  # noqa: SIM115 - a descriptor


def _drop_output() -> None:
    """Send what is still to be written nowhere: it could not be written, and exiting would try again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
