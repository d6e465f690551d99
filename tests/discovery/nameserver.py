"""A name server on loopback, UDP and TCP, that answers as a test tells it to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from discovery.backends.dns import Server
from tests.tools import free_port

__all__ = ["NameServer", "denial", "srv"]

Answer = Callable[[dns.message.Message], dns.message.Message | None]


def srv(
    *places: tuple[str, int], ttl: int = 0, domain: str = "consul.", weights: tuple[int, ...] = ()
) -> Answer:
    """Answer with these addresses and ports as Consul writes them, each address in the additional section."""

    def answer(query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA
        name = query.question[0].name
        targets = [f"{bytes(map(int, host.split('.'))).hex()}.addr.dc1.{domain}" for host, _ in places]
        rows = [
            f"1 {weight} {port} {target}"
            for (_, port), target, weight in zip(places, targets, weights or [1] * len(places), strict=True)
        ]
        reply.answer.append(dns.rrset.from_text(name, ttl, "IN", "SRV", *rows))
        for (host, _), target in zip(places, targets, strict=True):
            reply.additional.append(dns.rrset.from_text(target, ttl, "IN", "A", host))
        return reply

    return answer


def denial(owner: str = "consul.", rcode: dns.rcode.Rcode = dns.rcode.NXDOMAIN) -> Answer:
    """Answer that there is no such name, with the SOA record of *owner*."""

    def answer(query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        soa = f"ns.{owner.lstrip('.')} hostmaster.{owner.lstrip('.')} 1 3600 600 86400 0"
        reply.authority.append(dns.rrset.from_text(owner, 0, "IN", "SOA", soa))
        return reply

    return answer


class NameServer:
    """Answers every question by `answer`; None is no answer, and the first `loses` are lost.

    `udp` and `tcp` count questions.
    """

    def __init__(
        self, answer: Answer, *, tcp: Answer | None = None, loses: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.answer = answer
        self.tcp_answer = tcp or answer
        self.loses = loses
        self.udp = self.tcp = 0
        self.questions: list[dns.message.Message] = []
        self.server = Server(host, free_port())
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.create_server((host, self.server.port))
        self._udp.bind((host, self.server.port))
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._serve_udp, self._serve_tcp)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wake()
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    def _wake(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", (self.server.host, self.server.port))

    def _serve_udp(self) -> None:
        while True:
            wire, peer = self._udp.recvfrom(65535)
            if not wire:
                return
            query = dns.message.from_wire(wire)
            self.questions.append(query)
            self.udp += 1
            if self.udp <= self.loses:
                continue
            reply = self.answer(query)
            if reply is not None:
                self._udp.sendto(reply.to_wire(max_size=65535), peer)

    def _serve_tcp(self) -> None:
        while True:
            try:
                peer, _ = self._tcp.accept()
            except OSError:
                return
            with peer:
                size = int.from_bytes(peer.recv(2, socket.MSG_WAITALL), "big")
                query = dns.message.from_wire(peer.recv(size, socket.MSG_WAITALL))
                self.tcp += 1
                reply = self.tcp_answer(query)
                if reply is not None:
                    wire = reply.to_wire(max_size=65535)
                    peer.sendall(len(wire).to_bytes(2, "big") + wire)
