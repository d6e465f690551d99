"""One watch for each service and host: the processes of one user share what one of them follows.

    leader     locks NAME.lock, reads the registry, writes NAME.json, makes a new NAME.fifo and hangs up the
               old one
    follower   opens NAME.fifo, reads NAME.json, waits until the writing end hangs up

A hang-up means that there is something new, or that the leader is gone, whether it closed or was killed:
the follower looks again, and where nobody leads any more it leads. Nobody has to look in between.

Laws:
- What is shared is what the leader has confirmed: a leader whose read fails takes its snapshot away, and
  every process finds out for itself that the registry is down, and that it is back.
- A leader shows that it runs by touching its files. One that has stopped for ``DEAD`` is deposed by
  unlinking its lock; when it goes on it finds that, and leads no more. For a moment two may lead, and
  both tell the truth.
- The snapshot is there before the new FIFO, and the follower opens the FIFO before it reads the snapshot:
  whatever is written between the two is announced on the FIFO that it holds.
- A forked child closes its copies at once: an inherited writing end would keep everybody waiting, and an
  inherited lock would outlive the leader.
- Where the directory cannot be used each process asks the registry itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import select
import stat
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from discovery.backends import Catalogue, Reader, private
from discovery.errors import DiscoveryError, RegistryTimeout, RegistryUnavailable
from discovery.model import NamesQuery, Query, Reply, ServiceQuery, Source

__all__ = ["Shared", "SharedReader"]

log: Final = logging.getLogger("discovery")

HEARTBEAT: Final = 1.5  # seconds between two touches of a leader
DEAD: Final = 5.0
"""Seconds without a touch after which a leader counts as stopped, and a snapshot as unconfirmed: several
heartbeats, so that a busy interpreter is not deposed for a collection of garbage."""
CHECK: Final = 2.0
"""Seconds after which a follower looks whether its leader still runs; only a stopped one hangs nobody up."""
IDLE: Final = 3.0
"""Seconds without a read after which a lead is given up: whoever led has lost interest, or was told by
the engine to wait."""
_SOON: Final = 0.01
_NOT_SO_SOON: Final = 0.25
"""Seconds between two looks while a new leader asks for the first time; doubled in between."""
_HEADER: Final = 256  # octets; the first line has an index, a process id and a time
_REMEMBERED: Final = 1024  # questions of one reader: the poller's asks any number of them
_ABANDONED: Final = 3600.0  # seconds; files of this age are nobody's
_OURS: Final = re.compile(r"[0-9a-f]{32}\.(lock|json|fifo)(\.[0-9]+(\.[0-9]+)?)?")


class Shared:
    """A catalogue whose answers are shared through *directory*. Creating it does no I/O.

    Args:
        scope: whose answers these are: registry, network, token. Others have other files.
    """

    def __init__(self, inner: Catalogue, directory: str, scope: str) -> None:
        self.inner = inner
        self.directory = directory
        self._scope = scope
        self._leads: set[_Lead] = set()
        self._readers: weakref.WeakSet[SharedReader] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._heart: threading.Thread | None = None
        self._stopped = threading.Event()
        self._swept = False
        self._complained = False
        _all.add(self)

    @property
    def source(self) -> Source:
        return self.inner.source

    @property
    def where(self) -> str:
        return self.inner.where

    def connect(self) -> SharedReader:
        reader = SharedReader(self, self.inner.connect())
        self._readers.add(reader)
        return reader

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        return self.inner.read(query, timeout=timeout)

    def close(self) -> None:
        """Lead no more and close what the registry's catalogue keeps open; idempotent."""
        with self._lock:
            heart, self._heart = self._heart, None
            self._stopped.set()
        if heart is not None:
            heart.join()
        for lead in list(self._leads):
            self.give_up(lead)
        close = getattr(self.inner, "close", None)
        if close is not None:
            close()

    def stem(self, query: Query) -> str:
        """Return the name of *query*'s files, without what follows the dot."""
        return hashlib.sha256(f"1 {self._scope} {query}".encode()).hexdigest()[:32]

    def complain(self, exc: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("nothing is shared through %s: %s", self.directory, exc.strerror or exc)

    # --- leading

    def lead(self, directory: int, stem: str) -> _Lead | None:
        """Become the leader of *stem*, or return None: somebody else is."""
        name = f"{stem}.lock"
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.time() - os.fstat(lock).st_mtime > DEAD and _is_at(directory, name, lock):
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)  # it does not run; whoever comes next makes its own
                os.close(lock)
                return None
            if not _is_at(directory, name, lock):  # deposed before it began
                os.close(lock)
                return None
            os.utime(lock)
        except BaseException:
            with suppress(OSError):
                os.close(lock)
            raise
        lead = _Lead(stem, lock)
        with self._lock:
            self._leads.add(lead)
            if self._heart is None:
                self._stopped = threading.Event()
                self._heart = threading.Thread(
                    target=self._beat, args=(self._stopped,), name="discovery-share", daemon=True
                )
                self._heart.start()
        if not self._swept:
            self._swept = True
            _sweep(directory)
        return lead

    def has(self, lead: _Lead) -> bool:
        """Say whether *lead* has not been given up."""
        return lead in self._leads

    def begin(self, lead: _Lead) -> bool:
        """Mark that *lead* is used, and say whether it still leads."""
        with self._lock:
            lead.reading = True
            return lead in self._leads

    def publish(self, lead: _Lead, query: Query, reply: Reply) -> None:
        """Share *reply*, when there is something new in it, and mark that *lead* is not reading any more."""
        from discovery.backends.consul import codec

        try:
            with private.opened(self.directory) as directory:
                if not lead.leads(directory):
                    self.give_up(lead)
                    return
                if lead.shared != (reply.index, reply.value):
                    raw = codec.value_to_raw(query, reply.value)
                    serial = f"{os.getpid()}.{time.monotonic_ns()}"
                    text = f"{reply.index} {serial}\n{json.dumps(raw)}"
                    private.write(directory, f"{lead.stem}.json", text.encode())
                    lead.announce(directory)
                    lead.shared = (reply.index, reply.value)
                lead.touch(directory)
        except OSError as exc:
            self.complain(exc)
            self.give_up(lead)
            return
        with self._lock:
            lead.reading, lead.read_at = False, time.monotonic()

    def give_up(self, lead: _Lead, *, unconfirmed: bool = False) -> None:
        """Let somebody else lead; *unconfirmed*: and believe nothing of what is shared."""
        with self._lock:
            if lead not in self._leads:
                return
            self._leads.discard(lead)
        if unconfirmed:
            with suppress(OSError), private.opened(self.directory) as directory:
                if lead.leads(directory):
                    os.unlink(f"{lead.stem}.json", dir_fd=directory)
        lead.close()

    def _beat(self, stopped: threading.Event) -> None:
        while not stopped.wait(HEARTBEAT):
            now = time.monotonic()
            with self._lock:
                leads = list(self._leads)
                lapsed = [lead for lead in leads if not lead.reading and now - lead.read_at > IDLE]
                if not leads:
                    self._heart = None
                    return
            for lead in lapsed:
                self.give_up(lead)
            try:
                # Under the lock: what is in the set is open.
                with private.opened(self.directory) as directory, self._lock:
                    for lead in self._leads:
                        if lead.leads(directory):
                            lead.touch(directory)
            except OSError as exc:
                self.complain(exc)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._heart = None
        for lead in self._leads:
            lead.close()
        self._leads.clear()
        for reader in list(self._readers):
            reader.after_fork()


_all: weakref.WeakSet[Shared] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for shared in list(_all):
        shared._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Lead:
    """The right to read one question for everybody."""

    def __init__(self, stem: str, lock: int) -> None:
        self.stem = stem
        self.reading = True
        self.read_at: float = 0.0  # seconds on the monotonic clock, when the last read ended
        self.shared: tuple[int, object] | None = None
        self._lock = lock
        self._fifo = -1

    def leads(self, directory: int) -> bool:
        """Say whether this is still the leader: a deposed one finds another lock in place of its own."""
        return _is_at(directory, f"{self.stem}.lock", self._lock)

    def announce(self, directory: int) -> None:
        """Tell all followers to look."""
        unfinished = f"{self.stem}.fifo.{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=directory)
        os.mkfifo(unfinished, 0o600, dir_fd=directory)
        # For reading too: opening the writing end alone waits for a reader.
        fifo = os.open(unfinished, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=directory)
        os.replace(unfinished, f"{self.stem}.fifo", src_dir_fd=directory, dst_dir_fd=directory)
        old, self._fifo = self._fifo, fifo
        if old >= 0:
            os.close(old)

    def touch(self, directory: int) -> None:
        os.utime(self._lock)
        if self.shared is not None:
            os.utime(f"{self.stem}.json", dir_fd=directory)

    def close(self) -> None:
        # The lock first: whom the hang-up wakes shall find it free.
        os.close(self._lock)
        if self._fifo >= 0:
            os.close(self._fifo)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a follower sees of a question's files."""

    fifo: int
    """Descriptor of the FIFO; -1 when there is none."""
    led: bool
    """Whether somebody holds the writing end."""
    serial: str
    """Of the snapshot: another one, another serial."""
    reply: Reply | None
    """What is shared; None when that is nothing, or not confirmed."""


class SharedReader:
    """Reads what the leader reads, and leads where nobody does."""

    def __init__(self, shared: Shared, inner: Reader) -> None:
        self._shared = shared
        self._inner = inner
        self._leads: dict[Query, _Lead] = {}
        self._last: tuple[str, Query, Reply] | None = None  # with the snapshot's serial
        self._value: tuple[Query, object] | None = None  # of the newest answer
        self._given: dict[Query, str] = {}  # the serial of what was returned last
        self._interrupted = False
        self._waking = threading.Lock()  # what is written to is open
        self._wake: tuple[int, int] | None = None  # a pipe: what is written wakes who waits

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        if not isinstance(query, (ServiceQuery, NamesQuery)):
            return self._inner.read(query, index=index, wait=wait, timeout=timeout)
        try:
            return self._read(query, index, wait, timeout)
        except DiscoveryError:
            raise  # what the registry did, also where that is an OSError by kind
        except OSError as exc:
            self._shared.complain(exc)
            return self._inner.read(query, index=index, wait=wait, timeout=timeout)

    def interrupt(self) -> None:
        # First the flag, then the pipe: _wait makes the pipe first and looks at the flag after, so that
        # whichever comes second sees the other.
        self._interrupted = True
        with self._waking:
            if self._wake is not None:
                os.write(self._wake[1], b"x")
        self._inner.interrupt()

    def close(self) -> None:
        for lead in self._leads.values():
            self._shared.give_up(lead)
        self._leads.clear()
        self._close_wake()
        self._inner.close()

    def after_fork(self) -> None:
        self._leads.clear()
        self._waking = threading.Lock()
        self._close_wake()

    def _close_wake(self) -> None:
        with self._waking:
            wake, self._wake = self._wake, None
            for end in wake or ():
                os.close(end)

    # --- following

    def _read(self, query: ServiceQuery | NamesQuery, index: int, wait: float, timeout: float) -> Reply:
        now = time.monotonic()
        until, limit, pause = now + (wait if index else 0.0), now + timeout, _SOON
        stem = self._shared.stem(query)
        while True:
            lead = self._leads.get(query)
            if lead is None or not self._shared.begin(lead):
                sight, lead = self._look(stem, query)
                try:
                    news = sight.serial != self._given.get(query)
                    if sight.reply is not None and (not index or news):
                        return self._followed(query, sight.serial, sight.reply)
                    if lead is None:
                        now = time.monotonic()
                        if sight.reply is not None and sight.led:
                            if now >= until:
                                return self._followed(query, sight.serial, sight.reply)
                            self._wait(sight.fifo, min(until - now, CHECK))
                            limit, pause = time.monotonic() + timeout, _SOON
                            continue
                        # Somebody is about to lead, and asks for the first time.
                        if now >= limit:
                            where = self._shared.where
                            raise RegistryTimeout(f"another process asks {where}, and has no answer yet")
                        self._wait(-1, min(pause, limit - now))
                        pause = min(pause * 2, _NOT_SO_SOON)
                        continue
                finally:
                    if sight.fifo >= 0:
                        os.close(sight.fifo)
                if len(self._leads) >= _REMEMBERED:
                    self._leads = {at: lead for at, lead in self._leads.items() if self._shared.has(lead)}
                self._leads[query] = lead
            return self._ask(query, lead, index, wait, timeout)

    def _look(self, stem: str, query: ServiceQuery | NamesQuery) -> tuple[_Sight, _Lead | None]:
        """Return what is shared, and the lead when nobody else has it."""
        with private.opened(self._shared.directory, create=True) as directory:
            fifo = _open_fifo(directory, f"{stem}.fifo")
            try:
                led = fifo >= 0 and _has_writer(fifo)
                serial, reply = self._snapshot(directory, stem, query)
                lead = None
                if not led or reply is None:
                    lead = self._shared.lead(directory, stem)
                    reply = None if lead is not None else reply
                return _Sight(fifo, led, serial, reply), lead
            except BaseException:
                if fifo >= 0:
                    os.close(fifo)
                raise

    def _snapshot(
        self, directory: int, stem: str, query: ServiceQuery | NamesQuery
    ) -> tuple[str, Reply | None]:
        """Return the snapshot and its serial; None for the snapshot when it cannot be believed."""
        from discovery.backends.consul import codec

        name = f"{stem}.json"
        try:
            start, status = private.read(directory, name, _HEADER)
            # A second off, as file systems round and clocks are corrected.
            if not -1.0 <= time.time() - status.st_mtime <= DEAD:
                return "", None
            serial = start.partition(b"\n")[0].decode()
            if self._last is not None and self._last[:2] == (serial, query):
                return serial, self._last[2]
            header, _, text = private.read(directory, name)[0].partition(b"\n")
            serial = header.decode()
            value = codec.query_value(query, json.loads(text))
            reply = Reply(self._same(query, value), int(serial.partition(" ")[0]), source="shared")
        except FileNotFoundError:
            return "", None
        except (AttributeError, KeyError, TypeError, ValueError):
            log.warning("%s in %s is damaged and is ignored", name, self._shared.directory)
            return "", None
        self._last = serial, query, reply
        return serial, reply

    def _same(self, query: Query, value: object) -> object:
        """Return *value*, or the equal one of before, which the engine keeps: one copy is enough."""
        if self._value is None or self._value[0] != query or self._value[1] != value:
            self._value = query, value
        return self._value[1]

    def _followed(self, query: Query, serial: str, reply: Reply) -> Reply:
        if len(self._given) >= _REMEMBERED:
            self._given.clear()  # each is told once more
        self._given[query] = serial
        self._inner.close()  # whoever follows holds no connection
        return reply

    def _wait(self, fifo: int, timeout: float) -> None:
        """Wait until *fifo* is hung up, or somebody interrupts."""
        if self._wake is None:
            self._wake = os.pipe()
        if not self._interrupted:
            waiting = select.poll()
            waiting.register(self._wake[0], select.POLLIN)
            if fifo >= 0:
                waiting.register(fifo, 0)  # a hang-up is always told
            waiting.poll(timeout * 1000)
        if self._interrupted:
            raise RegistryUnavailable(f"waiting for {self._shared.where} was interrupted")

    # --- leading

    def _ask(self, query: Query, lead: _Lead, index: int, wait: float, timeout: float) -> Reply:
        if lead.shared is None:
            index = 0  # the others wait for something to follow, and a blocking read would keep them
        try:
            reply = self._inner.read(query, index=index, wait=wait, timeout=timeout)
        except BaseException:
            del self._leads[query]
            self._shared.give_up(lead, unconfirmed=True)
            raise
        if not reply.known_leader or reply.error is not None:
            del self._leads[query]
            self._shared.give_up(lead, unconfirmed=True)
            return reply
        # The index: the engine's floor, which followers compare with.
        reply = replace(reply, index=max(reply.index, 1), value=self._same(query, reply.value))
        self._shared.publish(lead, query, reply)
        return reply


def _open_fifo(directory: int, name: str) -> int:
    try:
        fifo = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return -1
    status = os.fstat(fifo)
    if not stat.S_ISFIFO(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fifo)
        raise PermissionError(0, f"{name} is no FIFO of this user")
    return fifo


def _has_writer(fifo: int) -> bool:
    try:
        os.read(fifo, 1)
    except BlockingIOError:
        return True
    return False


def _is_at(directory: int, name: str, descriptor: int) -> bool:
    """Say whether the file that is open is still the one of that name."""
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _sweep(directory: int) -> None:
    """Remove the files of those who have long gone."""
    now = time.time()
    for name in os.listdir(directory):
        if not _OURS.fullmatch(name):
            continue
        with suppress(OSError):  # another process sweeps too
            if now - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime > _ABANDONED:
                os.unlink(name, dir_fd=directory)
