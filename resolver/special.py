"""Names that have one meaning everywhere and must not leave this host.

    localhost                 loopback                                       RFC 6761 section 6.3
    invalid, onion            never exist here                               RFC 6761 section 6.4, RFC 7686
    reverse names of private  are known here or nowhere: the root's servers  RFC 6303, RFC 7793
    and reserved addresses    get millions of such questions

Laws: pure; what is answered here is never forwarded, unless the operator names an upstream for it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from resolver import wire
from resolver.records import Choice, Found, Record, Soa, soa_record
from resolver.wire import Name, name_from_text

__all__ = ["address_of_reverse", "special"]

_LOCALHOST_TTL: Final = 86_400  # s; it never changes
_NEGATIVE_TTL: Final = 10_800  # s; these names will never exist (unbound and BIND answer them so, too)

_PRIVATE: Final = tuple(
    name_from_text(text)
    for text in (
        "0.in-addr.arpa",
        "10.in-addr.arpa",
        *(f"{i}.100.in-addr.arpa" for i in range(64, 128)),  # RFC 7793: carriers' address translation
        "127.in-addr.arpa",
        "254.169.in-addr.arpa",
        *(f"{i}.172.in-addr.arpa" for i in range(16, 32)),
        "2.0.192.in-addr.arpa",
        "168.192.in-addr.arpa",
        "100.51.198.in-addr.arpa",
        "113.0.203.in-addr.arpa",
        "255.255.255.255.in-addr.arpa",
        ".".join(["0"] * 32) + ".ip6.arpa",
        "1." + ".".join(["0"] * 31) + ".ip6.arpa",
        "d.f.ip6.arpa",
        *(f"{digit}.e.f.ip6.arpa" for digit in "89ab"),
        "8.b.d.0.1.0.0.2.ip6.arpa",
    )
)
_PRIVATE_ZONES: Final = frozenset(_PRIVATE)
_MAX_PRIVATE_LABELS: Final = max(map(len, _PRIVATE))


def special(query: wire.Query, labels: tuple[bytes, ...], serial: int, *, address_ttl: int) -> Found | None:
    """Answer *query* if its name is one of these; *labels* are its name, folded.

    Args:
        address_ttl: seconds for which it may be kept that a private address has no name: the catalogue may
            get one.
    """
    match labels[-1:]:
        case (b"localhost",):
            address = {wire.A: "127.0.0.1", wire.AAAA: "::1"}.get(query.type)
            if address:
                record = Record(query.name, query.type, _LOCALHOST_TTL, ip_address(address).packed)
                return Found(choices=(Choice((record,)),))
            return _negative(wire.NOERROR, Name(query.name[-1:]), serial)
        case (b"invalid",) | (b"onion",):
            return _negative(wire.NXDOMAIN, Name(query.name[-1:]), serial)
        case (b"arpa",):
            for count in range(3, min(len(labels), _MAX_PRIVATE_LABELS) + 1):
                if labels[-count:] in _PRIVATE_ZONES:
                    rcode = wire.NOERROR if count == len(labels) else wire.NXDOMAIN
                    ttl = address_ttl if address_of_reverse(labels) else _NEGATIVE_TTL
                    return _negative(rcode, Name(query.name[-count:]), serial, ttl)
    return None


def _negative(rcode: int, zone: Name, serial: int, ttl: int = _NEGATIVE_TTL) -> Found:
    soa = soa_record(zone, Name((b"localhost",)), Soa(min_ttl=ttl), serial)
    return Found(rcode, authority=(soa,))


def address_of_reverse(labels: tuple[bytes, ...]) -> str:
    """Return the address that a reverse name spells, in normal form; empty if it spells none.

    RFC 1035 section 3.5, RFC 3596 section 2.5.
    """
    try:
        match labels[-2:]:
            case (b"in-addr", b"arpa") if len(labels) == 6:
                return str(IPv4Address(".".join(label.decode("ascii") for label in labels[3::-1])))
            case (b"ip6", b"arpa") if len(labels) == 34 and all(len(label) == 1 for label in labels[:-2]):
                digits = b"".join(labels[31::-1]).decode("ascii")
                return str(IPv6Address(int(digits, 16)))
    except ValueError:
        pass  # letters where digits belong: a name, but no address's
    return ""
