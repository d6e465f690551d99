"""What the registry said last, written down for a cold start without it.

One file for each question, in the JSON of Consul's API, in a directory that is this user's alone
(``private``).

Laws:
- What is here is never fresh: it is for a process that knows nothing and can ask nobody, and what is older
  than ``MAX_AGE`` is for no one.
- A file that cannot be read or parsed does not exist.
- Failing to write is no failure of the lookup: it is logged once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from discovery.backends import private
from discovery.model import NamesQuery, Query, ServiceQuery
from discovery.names import env_name

__all__ = ["Disk", "Recalled"]

log: Final = logging.getLogger("discovery")

MAX_AGE: Final = 24 * 3600.0
"""Seconds. A day covers a night's outage; after that the addresses are more likely somebody else's."""
_REWRITE: Final = 1.0
"""Seconds between two writes of one question's file: a service in trouble may change a hundred times a
second, and the file is of no use before the registry is gone."""
_CONFIRM: Final = 60.0
"""Seconds between two marks that a file is still right."""
_REMEMBERED: Final = 1024
"""Questions whose file is known to be right; beyond that they are written once more."""
_OURS: Final = re.compile(r".*\.[0-9a-f]{32}\.json(\.[0-9]+\.[0-9]+)?")
"""Our files' names: in a directory that somebody chose there may be others."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was written down."""

    value: Any
    """The shape that the query documents."""
    age: float
    """Seconds since the registry confirmed it."""


@dataclass(frozen=True, slots=True)
class _Written:
    value: Any
    at: float  # seconds on the clock


class Disk:
    """The snapshots of one registry, in *directory*. Creating it does no I/O.

    Args:
        scope: whose answers these are: registry, namespace, token. Others have other files.
        clock: seconds since the epoch, as files have them.
    """

    def __init__(self, directory: str, scope: str, *, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._scope = scope
        self._clock = clock
        self._written: dict[Query, _Written] = {}
        self._complained = False

    def keep(self, query: Query, value: Any) -> None:
        """Write down that the registry said *value* now."""
        if not isinstance(query, (ServiceQuery, NamesQuery)):
            return
        now = self._clock()
        written = self._written.get(query)
        same = written is not None and written.value == value
        if written is not None and abs(now - written.at) < (_CONFIRM if same else _REWRITE):
            return
        try:
            with private.opened(self.directory, create=True) as directory:
                if not self._written:
                    _sweep(directory, now)
                self._put(directory, query, value, now, same=same)
        except OSError as exc:
            self._written.pop(query, None)  # somebody may have removed it: begin anew
            self._complain(exc)
            return
        if len(self._written) >= _REMEMBERED:
            self._written.clear()
        # What did not change stays the object that the engine has, too.
        self._written[query] = _Written(written.value if written is not None and same else value, now)

    def recall(self, query: Query) -> Recalled | None:
        """Return what was written down about *query*, None when that is nothing, or too old."""
        if not isinstance(query, (ServiceQuery, NamesQuery)):
            return None
        # Here, as all of the Consul backend comes with it: whoever recalls has loaded that already.
        from discovery.backends.consul import codec

        try:
            with private.opened(self.directory) as directory:
                text, status = private.read(directory, self._file(query))
            age = max(self._clock() - status.st_mtime, 0.0)
            if age > MAX_AGE:
                return None
            return Recalled(codec.query_value(query, json.loads(text)["value"]), age)
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._complain(exc)
        except (AttributeError, KeyError, TypeError, ValueError):
            log.warning("%s in %s is damaged and is ignored", self._file(query), self.directory)
        return None

    def _put(
        self, directory: int, query: ServiceQuery | NamesQuery, value: Any, now: float, *, same: bool
    ) -> None:
        from discovery.backends.consul import codec

        name = self._file(query)
        if not value:
            # Emptiness needs no file: without one nothing is known, and names that never were leave none.
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            return
        if not same:
            text = json.dumps({"query": str(query), "value": codec.value_to_raw(query, value)})
            private.write(directory, name, text.encode())
        os.utime(name, (now, now), dir_fd=directory)

    def _file(self, query: ServiceQuery | NamesQuery) -> str:
        stem = env_name(query.name).lower()[:64] if isinstance(query, ServiceQuery) else "all-names"
        return f"{stem}.{hashlib.sha256(f'{self._scope} {query}'.encode()).hexdigest()[:32]}.json"

    def _complain(self, exc: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("no snapshots in %s: %s", self.directory, exc.strerror or exc)


def _sweep(directory: int, now: float) -> None:
    """Remove what nobody will read any more, also the halves of those who died while they wrote."""
    for name in os.listdir(directory):
        if not _OURS.fullmatch(name):
            continue
        try:
            if now - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime > MAX_AGE:
                os.unlink(name, dir_fd=directory)
        except OSError:
            continue  # another process sweeps too
