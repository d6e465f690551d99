"""Who may ask, and how often.

    credits:  source address ──> a function that takes one credit, or raises StopIteration when all are spent
    unknown source, spent credits ──> ``judge``: ADMITTED, FOREIGN or EXCESSIVE

Laws:
- Pure: seconds pass by ``tick``.
- An open resolver is a weapon for others: who may not ask gets REFUSED and nothing more.
- The common case costs one look-up and one call: a second's credits are an iterator that ends.
- Bounded whatever source addresses are forged: only allowed networks take memory, and only so much of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

__all__ = ["LOOPBACK", "Network", "Policy", "Verdict"]

Network = IPv4Network | IPv6Network

LOOPBACK: Final[tuple[Network, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_MAX_SOURCES: Final = 65_536
"""Sources remembered within a second; a whole /16, as docker0 has by default. Beyond, all start anew."""


class Verdict(Enum):
    """What to do with a request."""

    ADMITTED = "admitted"
    FOREIGN = "foreign"
    """From a network that may not ask."""
    EXCESSIVE = "excessive"
    """More than this source may ask in this second."""


class Policy:
    """Decides by source address."""

    def __init__(
        self,
        networks: Iterable[Network],
        *,
        rate: int,
        also: Callable[[IPv4Address | IPv6Address], bool] = lambda address: False,
    ) -> None:
        """Admit *networks*.

        Args:
            also: who is admitted, too; called for each request from outside *networks* until it says yes.
            rate: requests that one source may make in a second; 0: any number. Loopback is exempt: who is on
                this host has better ways to harm it.
        """
        self.networks = tuple(networks)
        self._also = also
        self.credits: dict[Hashable, Callable[[], None]] = {}
        """By source address. Endpoints put a source's function under names of their own, too."""
        self.excessive = 0
        """Requests beyond the limit so far."""
        self._rate = rate
        self._admitted: set[str] = set()
        self._unlimited = itertools.repeat(None).__next__

    def judge(self, source: str) -> Verdict:
        """Decide about one request from *source*, which has no credit at hand."""
        if source in self.credits:
            self.excessive += 1
            return Verdict.EXCESSIVE
        if source not in self._admitted:
            if not self.allows(source):
                return Verdict.FOREIGN
            if len(self._admitted) >= _MAX_SOURCES:
                self._admitted.clear()
                self.tick()
            self._admitted.add(source)
        if self._rate and not _within(_address(source), LOOPBACK):
            # One is taken now, for this request.
            self.credits[source] = itertools.repeat(None, self._rate - 1).__next__
        else:
            self.credits[source] = self._unlimited
        return Verdict.ADMITTED

    def allows(self, source: str) -> bool:
        """Whether *source* may ask."""
        address = _address(source)
        return _within(address, self.networks) or self._also(address)

    def tick(self) -> None:
        """A second has passed: everybody has full credit again."""
        self.credits.clear()


def _address(source: str) -> IPv4Address | IPv6Address:
    address = ip_address(source.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _within(address: IPv4Address | IPv6Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
