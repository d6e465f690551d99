"""Many packets in one system call: Linux's recvmmsg and sendmmsg, called through ctypes.

    places   one per packet: a request comes in, and its reply is written over it. The id is the first two
             octets of both, so it stays where it is.
    names    whom each request came from, in the kernel's form; the reply goes there unread
    control  to which of our addresses it came, for a socket that is bound to all of them

Laws:
- What the kernel writes to is allocated once and lives as long as the batch.
- Where a field is comes from the structure's definition, never from a number: 32 and 64 bits differ.
- Nothing here blocks, and a packet that cannot be received or sent costs only itself.
- Where the system cannot do this ``Batch.on`` says so, and a call for each packet has to do.

What it buys (benchmarks/bench_dns.py): two thirds of the CPU time of one ``recvfrom`` and one ``sendto`` for
each packet. The kernel is entered twice for 64 packets, and no address is made into Python's and back.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import sys
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, Self

__all__ = ["MAX_REQUEST", "Batch"]

SIZE: Final = 64
"""Packets at a time: beyond it, nothing is saved any more, and the first would wait for the last."""
MAX_REQUEST: Final = 4096  # octets; a question with all options in use stays far below
_PLACE: Final = 65_536 + 128
"""Octets of a place. No DNS message is longer than 65,535, so that no reply reaches the next request. The
rest keeps all places from falling into the same few lines of the processor's cache."""
_CONTROL: Final = socket.CMSG_SPACE(20)  # struct in6_pktinfo, the larger of the two


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Name(ctypes.Structure):
    """struct sockaddr_in and sockaddr_in6: the first eight octets are of both."""

    _fields_ = (
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("address4", ctypes.c_uint32),
        ("address6", ctypes.c_uint8 * 16),
        ("scope", ctypes.c_uint32),
    )


class _Header(ctypes.Structure):
    """struct msghdr as the kernel has it. musl declares two of the lengths as int with padding, which makes
    the same octets."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("received", ctypes.c_uint))


class _Control(ctypes.Structure):
    """struct cmsghdr and the data after it."""

    _fields_ = (
        ("length", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("data", ctypes.c_uint8 * (_CONTROL - socket.CMSG_LEN(0))),
    )


_Call = Callable[..., int]


class Batch:
    """Up to 64 packets of one UDP socket, and the replies to them.

    count = batch.receive()
    for start, length, source in batch.requests(count):
        batch.memory[start : start + len(reply)] = reply    # without its id
        lengths.append(2 + len(reply))                      # or 0, to send nothing
    batch.reply(lengths)
    """

    @classmethod
    def on(cls, sock: socket.socket, *, local: bool) -> Self | None:
        """Return a batch for *sock*, which does not block; None where the system has no such calls.

        Args:
            local: the socket tells to which of our addresses a packet came (IP_PKTINFO, IPV6_PKTINFO), and
                the reply has to leave from there.
        """
        if sys.platform != "linux":
            return None
        try:
            # Not CDLL, which would let other threads take the interpreter at each call, for as long as they
            # like; these calls never wait.
            libc = ctypes.PyDLL(None)
            receive, send = libc.recvmmsg, libc.sendmmsg
        except (OSError, AttributeError):
            return None
        receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
        # A sandbox may forbid them: nothing is asked for, so that nothing but that can go wrong.
        if receive(sock.fileno(), None, 0, socket.MSG_DONTWAIT, None) or send(sock.fileno(), None, 0, 0):
            return None
        return cls(sock, receive, send, local=local)

    def __init__(self, sock: socket.socket, receive: _Call, send: _Call, *, local: bool) -> None:
        """Lay out the memory. See ``on``."""
        self._sock = sock
        self._receive, self._send = receive, send
        self._local = local

        kinds: list[type[ctypes.Structure]] = [_Message, _Message, _Iovec, _Iovec, _Name, _Control]
        sizes = [SIZE * ctypes.sizeof(kind) for kind in kinds]
        # Private: a worker process must not share it.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory: mmap.mmap = mmap.mmap(-1, SIZE * _PLACE + sum(sizes), flags=flags)
        """The places, and then what describes them."""
        offsets = [SIZE * _PLACE + sum(sizes[:number]) for number in range(len(kinds))]
        arrays: list[Any] = [
            (kind * SIZE).from_buffer(self.memory, offset)
            for kind, offset in zip(kinds, offsets, strict=True)
        ]
        incoming, outgoing, parts_in, parts_out, names, control = arrays
        at = ctypes.addressof(incoming) - offsets[0]
        for number in range(SIZE):
            for message, parts in ((incoming[number], parts_in), (outgoing[number], parts_out)):
                parts[number] = _Iovec(at + number * _PLACE, MAX_REQUEST)
                header = message.header
                header.name = ctypes.addressof(names[number])
                header.name_length = 16 if sock.family == socket.AF_INET else 28
                header.parts, header.part_count = ctypes.addressof(parts[number]), 1
                header.control = ctypes.addressof(control[number]) if local else None
        self._incoming = ctypes.addressof(incoming)
        self._outgoing = [ctypes.addressof(message) for message in outgoing]
        self._names, self._control = names, control

        self._starts = [number * _PLACE + 2 for number in range(SIZE)]
        self._received = self._column("I", offsets[0], _Message, _Message.received.offset)
        self._sending = self._column("L", offsets[3], _Iovec, _Iovec.length.offset)
        self._sources = self._column("I", offsets[4], _Name, _Name.address4.offset)
        self._sources6 = [
            slice(start, start + 16)
            for start in range(offsets[4] + _Name.address6.offset, offsets[5], ctypes.sizeof(_Name))
        ]
        self._control_in = self._column("L", offsets[0], _Message, _Header.control_length.offset)
        self._control_out = self._column("L", offsets[1], _Message, _Header.control_length.offset)
        self._interfaces = self._column("I", offsets[5], _Control, _Control.data.offset)
        self._control_room = array("L", [_CONTROL if local else 0]) * SIZE
        self._any_interface = array("I", [0]) * SIZE

    def receive(self) -> int:
        """Take what waits in the socket, and return how many packets that are."""
        if self._local:
            self._control_in[:] = self._control_room  # the kernel has written over it
        count = self._receive(self._sock.fileno(), self._incoming, SIZE, socket.MSG_DONTWAIT, None)
        return max(0, count)  # errors concern packets that are gone

    def requests(self, count: int) -> Iterable[tuple[int, int, Hashable]]:
        """Return of each of *count* packets where it goes on after its id, its length with the id, and its
        source: good for telling one from another, and no more."""
        sources: Iterable[Hashable]
        if self._sock.family == socket.AF_INET:
            sources = self._sources[:count].tolist()
        else:
            memory = self.memory
            sources = [memory[one] for one in self._sources6[:count]]
        return zip(self._starts, self._received[:count].tolist(), sources, strict=False)

    def packet(self, number: int) -> bytes:
        """Return the request in place *number*, until a reply is written over it."""
        start = number * _PLACE
        return self.memory[start : start + self._received[number]]

    def reply(self, lengths: Sequence[int]) -> None:
        """Send the replies that have been written into the first places.

        Args:
            lengths: octets of each; 0: there is none.
        """
        count = len(lengths)
        self._sending[:count] = array("L", lengths)
        if self._local:
            self._control_out[:count] = self._control_in[:count]
            if self._sock.family == socket.AF_INET:
                # struct in_pktinfo begins with the interface. 0: as routes say.
                self._interfaces[:count] = self._any_interface[:count]
        start = 0
        while start < count:
            if not lengths[start]:
                start += 1
                continue
            try:
                end = lengths.index(0, start)
            except ValueError:
                end = count
            while start < end:
                sent = self._send(
                    self._sock.fileno(), self._outgoing[start], end - start, socket.MSG_DONTWAIT
                )
                # Of those that follow one that cannot be sent nothing is said; it is left out. Over UDP its
                # client asks again.
                start += sent if sent > 0 else 1

    def client(self, number: int) -> Any:
        """Return whom the request in place *number* came from, as ``socket.recvfrom`` says it.

        With *local* it is (host, that, ancillary data for ``socket.sendmsg``).
        """
        name = self._names[number]
        port = socket.ntohs(name.port)
        if self._sock.family == socket.AF_INET:
            host = socket.inet_ntop(socket.AF_INET, name.address4.to_bytes(4, sys.byteorder))
            client: tuple[Any, ...] = (host, port)
        else:
            host = socket.inet_ntop(socket.AF_INET6, bytes(name.address6))
            client = (host, port, socket.ntohl(name.address4), name.scope)
        if not self._local:
            return client
        control = self._control[number]
        ancillary = []
        if self._control_in[number]:
            data = bytes(control.data)[: control.length - socket.CMSG_LEN(0)]
            if control.level == socket.IPPROTO_IP:
                data = bytes(4) + data[4:8] + bytes(4)
            ancillary.append((control.level, control.kind, data))
        return host, client, ancillary

    def _column(self, code: str, offset: int, kind: type[ctypes.Structure], field: int) -> memoryview:
        """Return one field of the array of structures at *offset*, to be read and written at once.

        Args:
            code: the type of the field, as ``array`` names it.
        """
        width, stride = array(code).itemsize, ctypes.sizeof(kind)
        view: memoryview = memoryview(self.memory).cast(code)  # type: ignore[call-overload]
        end = (offset + SIZE * stride) // width
        return view[(offset + field) // width : end : stride // width]
