"""Packets that nobody sends by mistake: whole structures out of odd parts, and mutations of known packets.

Random octets seldom get past a header. What is made here is well formed up to the one or two places that are
not: names with pointers and loops, EDNS in every size and with broken options, records whose lengths lie, OPT
records where none belongs.

Laws: everything comes from the ``Random`` that is given, so that a seed tells a packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from struct import Struct
from typing import Final

from resolver import wire

__all__ = ["broken_stream", "corpus", "mutate", "odd_reply", "odd_request"]

_CORPUS: Final = Path(__file__).with_name("corpus")
_HEADER: Final = Struct("!6H")
_RECORD: Final = Struct("!HHIH")

_LABELS: Final = (
    b"web", b"api", b"sick", b"nope", b"service", b"node", b"addr", b"query", b"connect", b"ingress",
    b"virtual", b"consul", b"dc1", b"dc", b"dc2", b"n1", b"host-1", b"0a000001", b"_web", b"_tcp", b"_v1",
    b"_http", b"localhost", b"invalid", b"onion", b"in-addr", b"ip6", b"arpa", b"10", b"1", b"0", b"www",
    b"example", b"test", b"",
)  # fmt: skip
_SUFFIXES: Final[Sequence[tuple[bytes, ...]]] = (
    (b"consul",), (b"service", b"consul"), (b"node", b"consul"), (b"addr", b"dc1", b"consul"),
    (b"service", b"dc1", b"consul"), (b"query", b"consul"), (b"in-addr", b"arpa"), (b"ip6", b"arpa"),
    (b"example", b"test"), (b"localhost",), (),
)  # fmt: skip
_TYPES: Final = (1, 1, 1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 41, 64, 65, 250, 251, 252, 255, 256, 0, 65535)
_CLASSES: Final = (1, 1, 1, 1, 1, 1, 3, 254, 255, 0)
_TTLS: Final = (0, 1, 9, 10, 60, 86_400, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_SIZES: Final = (0, 1, 511, 512, 513, 600, 1232, 4096, 65535)
_OPTIONS: Final = (3, 8, 9, 10, 11, 12, 13, 14, 15, 0, 65535)  # NSID, subnet, ..., cookie, padding, errors


def corpus(kind: str) -> list[bytes]:
    """The packets of one kind (``requests`` or ``replies``) that every run begins with."""
    text = (_CORPUS / f"{kind}.txt").read_text()
    return [bytes.fromhex(line) for line in text.splitlines() if line and not line.startswith("#")]


def mutate(raw: bytes, random: Random) -> bytes:
    """Change a few octets, cut, repeat or extend."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed)) if changed else 0
        match random.randrange(6):
            case 0 if changed:
                changed[at] = random.randrange(256)
            case 1 if changed:
                changed[at] ^= 1 << random.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = random.randbytes(random.randint(1, 12))
            case 4 if changed:
                changed[at:at] = changed[at : at + random.randint(1, 24)]
            case 5 if changed:
                changed[at] = random.choice((0, 1, 63, 64, 0xC0, 0xFF))
    return bytes(changed)


def odd_request(random: Random) -> bytes:
    """A request that is nearly right, or right and seldom seen."""
    flags = 0x0100 if random.random() < 0.7 else random.getrandbits(16)
    tail = b"".join(_opt(random) for _ in range(random.choice((0, 0, 1, 1, 1, 2))))
    others = [_record(random, 12) for _ in range(random.choice((0, 0, 0, 0, 1, 3)))]
    counts = [1, 0, 0, 0]
    body = _name(random, 12) + _two(random.choice(_TYPES)) + _two(random.choice(_CLASSES))
    for record in others:
        counts[random.randint(1, 3)] += 1
        body += record
    if tail:
        counts[3] += 1 if random.random() < 0.9 else random.randrange(1000)
    if random.random() < 0.05:
        counts[random.randrange(4)] = random.getrandbits(16)
    body += tail
    if random.random() < 0.05:
        body = body[: random.randrange(len(body) + 1)]
    return _HEADER.pack(random.getrandbits(16), flags, *counts) + body


def odd_reply(question: bytes, random: Random) -> bytes:
    """An upstream's reply to *question*, with records of all kinds in all places."""
    flags = 0x8180 | random.choice((0, 0, 0, 0, 0, 3, 3, 2, 5, 1, 4, 15, 0x0200, 0x0020, 0x0400))
    sections = [random.choice((0, 1, 1, 2, 3, 40)), random.choice((0, 0, 1, 2)), random.choice((0, 1, 2))]
    body = bytearray()
    for section, count in enumerate(sections):
        for _ in range(count):
            at = 12 + len(question) + len(body)
            # RFC 6891 section 6.1.1: an OPT belongs among the additional records, anywhere among them.
            body += (
                _opt(random)
                if random.random() < (0.02, 0.02, 0.5)[section]
                else _record(random, at, question[-4:-2])
            )
    if random.random() < 0.05:
        sections[random.randrange(3)] = random.getrandbits(16)
    if random.random() < 0.05:
        del body[random.randrange(len(body) + 1) :]
    return _HEADER.pack(random.getrandbits(16), flags, 1, *sections) + question + bytes(body)


def broken_stream(requests: Sequence[bytes], random: Random) -> list[bytes]:
    """*requests* with their lengths in front, in pieces that do not respect them; some lengths lie."""
    stream = b"".join(
        _two(len(one) if random.random() < 0.95 else random.choice((0, 1, 11, 12, 65535, len(one) + 1))) + one
        for one in requests
    )
    pieces = []
    while stream:
        cut = random.choice((1, 2, 3, 12, 64, 4096))
        pieces.append(stream[:cut])
        stream = stream[cut:]
    return pieces


# --- parts -----------------------------------------------------------------------------------------------


def _two(number: int) -> bytes:
    return number.to_bytes(2)


def _label(label: bytes) -> bytes:
    return bytes((len(label),)) + label


def _name(random: Random, at: int) -> bytes:
    """A name that begins at octet *at* of its message."""
    match random.randrange(12):
        case 0:  # a pointer: to itself, ahead, into the header, out of the message, or to the question
            return _two(0xC000 | random.choice((at, at + 2, 0, 0x3FFF, 12)))
        case 1:  # labels that lead into a loop
            return _label(b"web") + _two(0xC000 | at)
        case 2:  # around the limit of 255 octets
            rest = random.randint(250, 258) - 4 * 63
            return _label(b"a" * 62) * 4 + (_label(b"b" * max(0, rest)) if rest > 0 else b"") + b"\0"
        case 3:  # a label that is too long, or of a kind that nobody defined (RFC 6891 section 5)
            return bytes((random.choice((64, 65, 0x80, 0xBF)),)) + random.randbytes(random.randint(0, 70))
        case 4:  # octets that are no letters
            return _label(random.randbytes(random.randint(1, 63))) + _label(b"consul") + b"\0"
    labels = [random.choice(_LABELS) for _ in range(random.randint(0, 4))]
    labels += random.choice(_SUFFIXES)
    written = b"".join(map(_label, labels)) + b"\0"
    if random.random() < 0.3:  # letters in random case, as clients write them against forgers
        written = bytes(
            octet ^ 0x20 if chr(octet).isalpha() and random.random() < 0.5 else octet for octet in written
        )
    return written


def _opt(random: Random) -> bytes:
    """An OPT record (RFC 6891 section 6.1.2), mostly as it should be."""
    options = b""
    for _ in range(random.choice((0, 0, 0, 1, 1, 3))):
        data = random.randbytes(random.choice((0, 1, 7, 8, 16, 40, 41)))
        length = len(data) if random.random() < 0.9 else random.getrandbits(16)
        options += _two(random.choice(_OPTIONS)) + _two(length) + data
    version = 0 if random.random() < 0.9 else random.randrange(256)
    ttl = random.choice((0, 0, 0, 1)) << 24 | version << 16 | random.choice((0, 0x8000, 0xFFFF))
    length = len(options) if random.random() < 0.95 else random.getrandbits(16)
    owner = b"\0" if random.random() < 0.95 else b"\1x\0"
    return owner + _RECORD.pack(wire.OPT, random.choice(_SIZES), ttl, length) + options


def _record(random: Random, at: int, asked: bytes = b"\0\1") -> bytes:
    """A record that begins at octet *at* of its message."""
    owner = b"\xc0\x0c" if random.random() < 0.7 else _name(random, at)
    rtype = int.from_bytes(asked) if random.random() < 0.5 else random.choice(_TYPES)
    start = at + len(owner) + _RECORD.size
    match rtype:
        case wire.A:
            data = random.randbytes(4)
        case wire.AAAA:
            data = random.randbytes(16)
        case wire.CNAME | wire.NS | wire.PTR:
            data = _name(random, start)
        case wire.SOA:
            data = _name(random, start) + b"\0" + random.randbytes(16) + random.choice(_TTLS).to_bytes(4)
        case wire.SRV:
            data = random.randbytes(6) + _name(random, start)
        case _:
            data = random.randbytes(random.choice((0, 1, 4, 20, 255)))
    if random.random() < 0.05:
        data = data[: random.randrange(len(data) + 1)]
    length = len(data) if random.random() < 0.97 else random.getrandbits(16)
    return owner + _RECORD.pack(rtype, random.choice(_CLASSES), random.choice(_TTLS), length) + data
