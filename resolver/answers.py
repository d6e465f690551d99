"""Records -> replies, ready to be sent: every rotation, under every limit; and the table that holds them.

    hot:       request bytes after the id  ──> the next reply, without its id
    prepared:  (folded question, limits)   ──> its replies, for requests that spell the same thing otherwise

A reply is prepared once per rotation: reply k begins with instance k and has the others in random order.
A pure rotation would send all clients of a failed instance to the same neighbour.

Laws:
- Pure; randomness is an argument.
- No reply is longer than the client asked for, and none says more than fits: whole records are left out,
  and TC is set when answers were cut for size (RFC 2181 section 9).
- Owners point at the question, so that a client that plays with case gets its own letters back, and one
  prepared reply serves every spelling.
- The table is bounded, in answers and in octets, whatever is asked: what an attacker can vary without end
  (names that do not exist, types) lives in a part of its own and cannot push out the names of the catalogue.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resolver import wire
from resolver.records import Choice, Found, Record
from resolver.wire import fold_question, name_to_wire

if TYPE_CHECKING:
    from random import Random  # the type of an argument

__all__ = ["Limits", "Prepared", "Table", "prepare", "render"]

_MAX_POINTER: Final = 0x3FFF  # a pointer has 14 bits

_RUN: Final = 32
"""A hot entry in demand hands out about so many replies before it is wound up again, which costs a
microsecond: at 32 that vanishes beside the work of sending them. Each costs a reference (8 octets), which
counts where there are ten thousands of entries; so a run begins with one rotation, and doubles each time."""
_ROTATION_OCTETS: Final = 65_536
"""What the rotations of one answer may take together. Thousands of instances over TCP would otherwise be
prepared thousands of times; with fewer rotations each still begins with another instance."""
_KEYS_PER_ANSWER: Final = 8
"""Spellings of one question kept hot. Clients of one kind send equal bytes (glibc, musl, Go and systemd make
four); whoever varies unused bits gains nothing by it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an answer the client takes. All that differs between the replies to one question."""

    size: int
    """Octets of the whole message."""
    answers: int
    """Instances at most; 0: as many as fit."""
    edns: bool
    """The reply carries an OPT, because the request did (RFC 6891 section 7)."""
    do: bool = False
    flags: int = 0
    """RD and CD of the request, to be copied."""
    ad: bool = False
    """The client wants to know whether an upstream authenticated the data (RFC 6840 section 5.7)."""
    compress: bool = True
    truncate: bool = False
    """Consul's ``enable_truncate``: TC also when only ``answers`` cut something."""


def render(
    question: bytes,
    found: Found,
    choices: Sequence[Choice],
    limits: Limits,
    options: bytes = b"",
) -> bytes:
    """Return the reply, without its id, with as many of *choices* as the limits allow, in that order."""
    tail = wire.opt(do=limits.do, options=options) if limits.edns else b""
    writer = _Writer(question, limits.size - len(tail), compress=limits.compress)
    flags = wire.QR | wire.AA | wire.RA | limits.flags | found.rcode

    wanted = len(choices)
    if found.limit:
        wanted = min(wanted, found.limit)
    allowed = min(wanted, limits.answers) if limits.answers else wanted
    taken: list[Choice] = []
    answers = 0
    for choice in choices[:allowed]:
        # A choice is taken whole: half an instance helps nobody.
        if not writer.put(choice.answer):
            break
        answers += len(choice.answer)
        taken.append(choice)
    if len(taken) < allowed or (limits.truncate and allowed < wanted):
        flags |= wire.TC
    authorities = len(found.authority) if writer.put(found.authority) else 0
    # RFC 2181 section 9: additional records are dropped without a word when they do not fit.
    additionals = sum(1 for record in _distinct(taken) if writer.put((record,)))
    sections = (answers, authorities, additionals + (1 if tail else 0))
    return wire.frame(0, flags, question, sections, bytes(writer.body) + tail)[2:]


def _distinct(choices: Iterable[Choice]) -> Iterable[Record]:
    """The additional records of *choices*, each once: instances of one node share their target."""
    return dict.fromkeys(record for choice in choices for record in choice.additional)


class _Writer:
    """Appends records to a message as long as they fit, and remembers where names stand."""

    def __init__(self, question: bytes, size: int, *, compress: bool) -> None:
        self.body = bytearray()
        self._base = wire.HEADER_LENGTH + len(question)
        self._size = size
        self._compress = compress
        self._offsets: dict[bytes, int] = {}
        if compress:
            name = question[:-4].lower()
            at = 0
            while length := name[at]:
                self._offsets[name[at:]] = wire.HEADER_LENGTH + at
                at += 1 + length

    def put(self, records: Iterable[Record]) -> bool:
        """Append all of *records*, or none and return False."""
        start = len(self.body)
        targets: list[tuple[bytes, int]] = []
        for record in records:
            owner = name_to_wire(record.owner)
            pointer = self._offsets.get(owner.lower())
            self.body += owner if pointer is None else (0xC000 | pointer).to_bytes(2)
            self.body += record.type.to_bytes(2) + b"\0\1" + record.ttl.to_bytes(4)
            self.body += len(record.data).to_bytes(2) + record.data
            if record.target:
                targets.append((record.target.lower(), len(self.body) - len(record.target)))
        if self._base + len(self.body) > self._size:
            del self.body[start:]
            return False
        if self._compress:
            for target, at in targets:
                if self._base + at <= _MAX_POINTER:
                    self._offsets.setdefault(target, self._base + at)
        return True


# --- prepared answers -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Prepared:
    """All rotations of one answer, the cursor through them, and how often it was given."""

    replies: list[bytes]
    """Without ids; each begins with flags and counts, then the question in lower case."""
    rcode: int
    type: int
    """As it is counted; see ``wire.counted_type``."""
    uses: tuple[Hashable, ...] = ()
    lasting: bool = False
    stale: bool = False
    spliced: int = 0
    """How often it was given outside the hot table."""
    runs: tuple[_Run, ...] = ()
    """Where each of its keys of the hot table is, the oldest first."""

    @property
    def cut(self) -> bool:
        """Whether there was more to say than the client takes."""
        return bool(self.replies[0][0] & wire.TC >> 8)

    @property
    def octets(self) -> int:
        return sum(map(len, self.replies))

    @property
    def served(self) -> int:
        """How often this answer was given; costs nothing while it is given."""
        return self.spliced + sum(run.served for run in self.runs)

    def next(self, question: bytes) -> bytes:
        """Return the next reply for a request that spells its question as *question*."""
        reply = self.replies[self.spliced % len(self.replies)]
        self.spliced += 1
        return reply[:_QUESTION_AT] + question + reply[_QUESTION_AT + len(question) :]


_QUESTION_AT: Final = wire.HEADER_LENGTH - 2  # in a reply without its id


class _Run:
    """A cursor through the replies for one hot key.

    It is a plain list iterator, because calling its ``__next__`` is the cheapest thing Python can do, and one
    that can be asked how far it is: that counts queries without a counter on the hot path.
    """

    __slots__ = ("_finished", "_iterator", "_replies", "key")

    def __init__(self, key: bytes, replies: list[bytes]) -> None:
        self.key = key
        self._replies = replies
        self._finished = 0
        self._iterator: Iterator[bytes] = iter(())

    @property
    def served(self) -> int:
        return self._finished - operator.length_hint(self._iterator)

    def wind_up(self) -> Callable[[], bytes]:
        if self._finished and 2 * len(self._replies) <= _RUN:
            self._replies = self._replies * 2
        self._iterator = iter(self._replies)
        self._finished += len(self._replies)
        return self._iterator.__next__


def prepare(
    query: wire.Query,
    found: Found,
    limits: Limits,
    random: Random,
    options: bytes = b"",
    *,
    rotations: int | None = None,
) -> Prepared:
    """Render every rotation of *found*, for all spellings of *query* if names are compressed.

    Args:
        rotations: how many instead.
    """
    question = fold_question(query.question) if limits.compress else query.question
    choices = list(found.choices)
    if not found.ordered:
        random.shuffle(choices)
    first = render(question, found, choices, limits, options)
    replies = [first]
    if rotations is None:
        rotations = 1 if found.ordered else min(len(choices), max(2, _ROTATION_OCTETS // len(first)))
    for k in range(1, rotations):
        others = choices[:k] + choices[k + 1 :]
        random.shuffle(others)
        replies.append(render(question, found, [choices[k], *others], limits, options))
    qtype = wire.counted_type(query.type)
    return Prepared(replies, found.rcode, qtype, found.uses, found.lasting, bool(found.stale))


class Table:
    """Prepared answers by request. One per transport.

    ``hot`` is read by the server's loop: ``hot.get(packet[2:])`` gives a function that returns the next reply
    or raises StopIteration, upon which ``wind_up`` gives it.
    """

    def __init__(
        self, *, lasting: int = 65_536, passing: int = 4_096, octets: tuple[int, int] = (64 << 20, 8 << 20)
    ) -> None:
        """Make an empty table.

        Args:
            lasting: prepared answers for names of the catalogue: some variants of each of 10,000 names.
            passing: prepared answers for all else; enough for the misses that search domains cause.
            octets: of the replies in either part. Small services need far less; one of hundreds of
                instances has 64 KiB for each variant that its clients ask for.
        """
        self.hot: dict[bytes, Callable[[], bytes]] = {}
        self._prepared: dict[tuple[bytes, Limits], Prepared] = {}
        self._by_use: dict[Hashable, list[tuple[bytes, Limits]]] = {}
        """The oldest first: where there are many, as of names that do not exist, the oldest goes."""
        self._runs: dict[bytes, _Run] = {}  # of the keys that are hot
        self._bounds = {True: (lasting, octets[0]), False: (passing, octets[1])}
        self._octets = {True: 0, False: 0}
        self._ages: dict[bool, dict[tuple[bytes, Limits], None]] = {True: {}, False: {}}
        self._retired: Counter[tuple[int, int, bool]] = Counter()  # answers given by entries that are gone

    def __len__(self) -> int:
        return len(self._prepared)

    def get(self, question: bytes, limits: Limits) -> Prepared | None:
        """Return the answer to *question* (folded), if it is prepared."""
        return self._prepared.get((question, limits))

    def put(self, question: bytes, limits: Limits, prepared: Prepared) -> None:
        """Remember *prepared* for all spellings of *question* (folded)."""
        variant = (question, limits)
        self._forget(variant)
        part, octets = prepared.lasting, prepared.octets
        ages, (most, most_octets) = self._ages[part], self._bounds[part]
        while ages and (len(ages) >= most or self._octets[part] + octets > most_octets):
            self._forget(next(iter(ages)))
        ages[variant] = None
        self._octets[part] += octets
        self._prepared[variant] = prepared
        for use in prepared.uses:
            self._by_use.setdefault(use, []).append(variant)

    def promote(self, key: bytes, prepared: Prepared) -> None:
        """Answer requests whose bytes after the id are *key* by *prepared* from now on."""
        if key in self.hot:
            return
        if len(prepared.runs) >= _KEYS_PER_ANSWER:
            # The oldest goes: a place taken for good by made-up spellings would be one that clients lack.
            oldest, *others = prepared.runs
            del self.hot[oldest.key], self._runs[oldest.key]
            prepared.spliced += oldest.served
            prepared.runs = tuple(others)
        run = self._runs[key] = _Run(key, prepared.replies)
        prepared.runs = (*prepared.runs, run)
        self.hot[key] = run.wind_up()

    def wind_up(self, key: bytes) -> bytes:
        """Return the next reply of a hot entry that came to its end."""
        ready = self.hot[key] = self._runs[key].wind_up()
        return ready()

    def drop(self, use: Hashable) -> None:
        """Forget every answer that was made from *use*."""
        for variant in self._by_use.pop(use, ()):
            self._forget(variant)

    def served(self, use: Hashable) -> int:
        """How often answers made from *use* were given, as far as they are still here."""
        return sum(self._prepared[variant].served for variant in self._by_use.get(use, ()))

    def counts(self) -> Counter[tuple[int, int, bool]]:
        """Return how many answers were given, by type, rcode and staleness."""
        total = self._retired.copy()
        for prepared in self._prepared.values():
            total[prepared.type, prepared.rcode, prepared.stale] += prepared.served
        return total

    def _forget(self, variant: tuple[bytes, Limits]) -> None:
        prepared = self._prepared.pop(variant, None)
        if prepared is None:
            return
        del self._ages[prepared.lasting][variant]
        self._octets[prepared.lasting] -= prepared.octets
        self._retired[prepared.type, prepared.rcode, prepared.stale] += prepared.served
        for run in prepared.runs:
            del self.hot[run.key], self._runs[run.key]
        for use in prepared.uses:
            variants = self._by_use.get(use)
            if variants is not None:
                variants.remove(variant)
                if not variants:
                    del self._by_use[use]
