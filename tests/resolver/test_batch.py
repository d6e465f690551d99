"""resolver.batch on real sockets: what goes in and out, and what is left alone."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from resolver import batch
from resolver.batch import Batch
from resolver.endpoints import _WildcardDatagrams
from tests.tools import wait_until

# where the server listens, where it is asked
WHERE = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.2"), ("::", "::1")]


class Pair:
    """A server with a batch, and a client that is connected to it."""

    def __init__(self, bound: str, asked: str, stack: ExitStack) -> None:
        family = socket.AF_INET6 if ":" in bound else socket.AF_INET
        self.wildcard = bound != asked
        self.server = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        self.server.bind((bound, 0))
        self.server.setblocking(False)
        self.singly = _WildcardDatagrams(self.server) if self.wildcard else None
        made = Batch.on(self.server, local=self.wildcard)
        assert made is not None, "Linux has the calls"
        self.batch = made
        self.address = (asked, self.server.getsockname()[1])
        self.client = self.connect(stack)

    def connect(self, stack: ExitStack) -> socket.socket:
        client = stack.enter_context(socket.socket(self.server.family, socket.SOCK_DGRAM))
        client.settimeout(5.0)
        client.connect(self.address)
        return client

    def receive(self, count: int) -> list[bytes]:
        """Take *count* packets; over loopback they are there as soon as they are sent."""
        assert self.batch.receive() == count
        return [self.batch.packet(number) for number in range(count)]

    def reply(self, replies: list[bytes | None]) -> None:
        """Write *replies* over the requests, ids excepted, and send them."""
        lengths = []
        for (start, _, _), text in zip(self.batch.requests(len(replies)), replies, strict=True):
            if text is not None:
                self.batch.memory[start : start + len(text)] = text
            lengths.append(0 if text is None else 2 + len(text))
        self.batch.reply(lengths)


@pytest.fixture(params=WHERE, ids=lambda where: where[0])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(*request.param, stack)


def test_packets_of_every_length_come_whole_and_in_order(pair: Pair) -> None:
    sent = [b"", b"a", b"ab", b"abc", b"x" * 511, b"y" * 4096]
    for one in sent:
        pair.client.send(one)
    assert pair.receive(len(sent)) == sent
    for (start, length, _), one in zip(pair.batch.requests(len(sent)), sent, strict=True):
        assert length == len(one)
        assert pair.batch.memory[start : start - 2 + length] == one[2:]
    assert pair.batch.receive() == 0


def test_a_longer_packet_is_cut_and_harms_no_other(pair: Pair) -> None:
    pair.client.send(b"z" * 9000)
    pair.client.send(b"after")
    assert pair.receive(2) == [b"z" * 4096, b"after"]


def test_replies_keep_the_ids_and_leave_from_the_address_that_was_asked(pair: Pair) -> None:
    """RFC 2181 section 4.1; a connected socket sees replies from that address only."""
    for number in range(3):
        for ident in (b"id", b"no", b"ID"):
            pair.client.send(ident + b"question")
        pair.receive(3)
        pair.reply([b"first", None, b"second %d" % number])
        assert [pair.client.recv(100), pair.client.recv(100)] == [b"idfirst", b"IDsecond %d" % number]


def test_each_client_gets_its_own_reply(pair: Pair) -> None:
    with ExitStack() as stack:
        clients = [pair.connect(stack) for _ in range(batch.SIZE + 5)]
        for number, client in enumerate(clients):
            client.send(b"%02d?" % number)
        for size in (batch.SIZE, 5):
            pair.receive(size)
            pair.reply([b"!"] * size)
        assert [client.recv(10) for client in clients] == [b"%02d!" % n for n in range(len(clients))]


def test_the_longest_reply_reaches_no_other_request(pair: Pair) -> None:
    pair.client.send(b"idlong")
    pair.client.send(b"idnext")
    pair.receive(2)
    pair.batch.memory[2:65_535] = b"l" * 65_533
    assert pair.batch.packet(1) == b"idnext"


def test_one_that_cannot_be_sent_costs_only_itself(pair: Pair) -> None:
    for ident in (b"1", b"2", b"3"):
        pair.client.send(b"0" + ident + b"?")
    pair.receive(3)
    # Longer than UDP carries: EMSGSIZE.
    pair.reply([b"!", b"!" * 65_530, b"!"])
    assert [pair.client.recv(10), pair.client.recv(10)] == [b"01!", b"03!"]


def test_clients_are_named_as_sockets_name_them(pair: Pair) -> None:
    pair.client.send(b"one")
    pair.client.send(b"two")
    pair.receive(1 + 1)
    named = pair.batch.client(1)
    assert pair.batch.client(0) == named
    with_address = named[1] if pair.wildcard else named
    assert with_address == pair.client.getsockname()
    if pair.singly is not None:
        pair.client.send(b"three")
        _, expected = pair.singly.recvfrom(100)
        assert named == expected
        pair.singly.sendto(b"reply", named)
        assert pair.client.recv(10) == b"reply"


def test_sources_are_told_apart(pair: Pair) -> None:
    pair.client.send(b"one")
    pair.client.send(b"two")
    with ExitStack() as stack:
        expected = 1
        if pair.server.family == socket.AF_INET:
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.bind(("127.0.0.3", 0))
            other.sendto(b"three", pair.address)
            expected = 2
        count = pair.batch.receive()
    sources = [source for _, _, source in pair.batch.requests(count)]
    assert sources[0] == sources[1]
    assert len(set(sources)) == expected


def test_a_refusing_client_stops_nobody(pair: Pair) -> None:
    """A client that has gone makes the kernel report an error; the next request is served all the same."""
    with ExitStack() as stack:
        gone = pair.connect(stack)
        gone.send(b"idgone")
        pair.receive(1)
    pair.reply([b"too late"])
    pair.client.send(b"idhere")
    wait_until(lambda: pair.batch.receive() == 1)
    pair.reply([b"!"])
    assert pair.client.recv(10) == b"id!"


def test_the_layout_is_the_kernels() -> None:
    """struct mmsghdr, iovec and cmsghdr of the kernel's headers, in words of this machine."""
    word = ctypes.sizeof(ctypes.c_void_p)
    header = batch._Header
    offsets = {name: getattr(header, name).offset for name, *_ in header._fields_}
    assert offsets == {
        "name": 0,
        "name_length": word,
        "parts": 2 * word,
        "part_count": 3 * word,
        "control": 4 * word,
        "control_length": 5 * word,
        "flags": 6 * word,
    }
    assert batch._Message.received.offset == 7 * word
    assert ctypes.sizeof(batch._Message) == 8 * word
    assert ctypes.sizeof(batch._Iovec) == 2 * word
    assert batch._Control.data.offset == socket.CMSG_LEN(0)
    assert ctypes.sizeof(batch._Control) == socket.CMSG_SPACE(20)
    assert ctypes.sizeof(batch._Name) == 28


def test_a_system_without_the_calls_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        monkeypatch.setattr(ctypes, "PyDLL", lambda name: object())
        assert Batch.on(sock, local=False) is None

        def refuse(name: object) -> object:
            raise OSError("a static executable loads nothing")

        monkeypatch.setattr(ctypes, "PyDLL", refuse)
        assert Batch.on(sock, local=False) is None


def test_a_sandbox_that_forbids_the_calls_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden:
        @staticmethod
        def recvmmsg(*_: object) -> int:
            return -1

        sendmmsg = recvmmsg

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        monkeypatch.setattr(ctypes, "PyDLL", lambda name: Forbidden)
        Forbidden.recvmmsg.argtypes = ()  # type: ignore[attr-defined]
        assert Batch.on(sock, local=False) is None
