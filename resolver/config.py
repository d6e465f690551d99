"""Settings of the resolver: the command line over Consul's agent configuration over defaults.

Laws:
- Parsing is pure; files are read by ``read_agent_config`` and ``SystemUpstreams`` alone.
- Keys of ``--config`` are Consul's own, with its meaning and defaults. One that has no effect here is named
  in a warning: obeying it silently or failing on it would both make the file useless to share with an agent.
- Errors name the value, where it came from and what would be right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from discovery import durations
from discovery.errors import ConfigurationError
from discovery.names import fold
from resolver.engine import AnswerSettings
from resolver.forward import Upstream
from resolver.policy import Network
from resolver.records import Soa
from resolver.wire import Malformed, Name, name_from_text
from resolver.zone import ZoneSettings

__all__ = [
    "Endpoint",
    "Settings",
    "SystemUpstreams",
    "apply_agent_config",
    "nameservers",
    "read_agent_config",
]

DNS_PORT: Final = 53
TLS_PORT: Final = 853  # RFC 7858 section 3.1
RESOLV_CONF: Final = Path("/etc/resolv.conf")
_RESOLV_CONF_PERIOD: Final = 5.0  # s between two looks whether the file has changed


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address to listen on, with UDP and TCP."""

    host: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        return str(Upstream(self.host, self.port))

    @classmethod
    def from_text(cls, text: str, *, origin: str, default_port: int = DNS_PORT) -> Endpoint:
        """Read ``ADDR``, ``ADDR:PORT`` or ``[ADDR6]:PORT``.

        Raises:
            ConfigurationError: naming *text* and *origin*.
        """
        wrong = f"cannot use the address {text!r} from {origin}"
        host, port = text, str(default_port)
        if text.startswith("["):
            host, _, rest = text[1:].partition("]")
            port = rest.removeprefix(":") or port
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        try:
            ip_address(host)
        except ValueError:
            raise ConfigurationError(
                f"{wrong}: {host!r} is no IP address; write 172.17.0.1:53 or [::1]:53"
            ) from None
        if not port.isascii() or not port.isdecimal() or not int(port) <= 0xFFFF:
            raise ConfigurationError(f"{wrong}: {port!r} is no port; give a number from 0 to 65535")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one resolver. Durations are seconds."""

    listen: tuple[Endpoint, ...] = (Endpoint("127.0.0.1"),)
    upstreams: tuple[Upstream, ...] | None = None
    """Asked for every name that is not ours, in this order; None: the nameservers of /etc/resolv.conf."""
    forward: Mapping[Name, tuple[Upstream, ...]] = field(default_factory=dict)
    """Upstreams of their own for some domains; the longest counts. Names in lower case."""
    upstream_ca: Path | None = None
    """Certificate authorities (PEM) that upstreams over TLS are verified by; None: the system's."""
    zone: ZoneSettings = field(default_factory=ZoneSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    idle: float = 600.0
    """A name that nobody asked for in this time is no longer followed."""
    max_stale: float = 86_400.0
    """How long last-known answers are given while the catalogue cannot be asked. A day: an outage is noticed
    by then, and addresses of containers are not reused much sooner."""
    cold_timeout: float = 2.0
    """What the first question for a name may wait for the catalogue. Stub resolvers give up after 5 s, and a
    SERVFAIL before that tells them more than silence."""
    upstream_attempt: float = 1.5
    """What one upstream gets to answer before the next is asked."""
    upstream_total: float = 4.5
    """What a forwarded question may take in all; under the 5 s of stub resolvers."""
    tcp_idle: float = 10.0
    """A connection without a request in this time is closed (RFC 7766 section 6.2.3: a few seconds)."""
    tcp_connections: int = 512
    """At a time. A tenth would do for real clients, and each costs a descriptor."""
    tcp_per_source: int = 64
    """Of those from one address; a stub resolver needs two."""
    allow: tuple[Network, ...] | None = None
    """Networks that may ask; None: loopback and those of the interfaces that we listen on."""
    rate: int = 20_000
    """Requests that one source may make in a second; 0: any number. A busy host with all its containers
    behind one address stays under it, and a single one that runs wild leaves the others their share."""
    metrics: Endpoint | None = None
    """Where metrics can be read over HTTP."""
    workers: int = 1
    """Processes that share the addresses; each holds what it follows for itself."""
    query_log: int = 0
    """Log one request in so many; 0: none."""


# --- Consul's agent configuration -----------------------------------------------------------------------


def read_agent_config(path: Path) -> Mapping[str, Any]:
    """Read *path*: an agent configuration in JSON.

    Raises:
        ConfigurationError: it cannot be read, or is not a JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"cannot read --config {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigurationError(
            f"--config {path} is not JSON ({exc}); Consul's own HCL files have to be converted"
        ) from exc
    if not isinstance(raw, dict):
        raise ConfigurationError(
            f"--config {path} holds {type(raw).__name__}, not an object of Consul's keys"
        )
    return raw


def apply_agent_config(
    settings: Settings, raw: Mapping[str, Any], *, origin: str
) -> tuple[Settings, list[str]]:
    """Return *settings* with what *raw* says, and a warning for each key that has no effect.

    Raises:
        ConfigurationError: a value cannot be used.
    """
    read = _Reader(raw, origin)
    zone, answers = settings.zone, settings.answers
    zone = replace(
        zone,
        domain=read.name("domain") or zone.domain,
        alt_domain=read.name("alt_domain") or zone.alt_domain,
        datacenter=read.text("datacenter") or zone.datacenter,
        translate_wan_addrs=read.flag("translate_wan_addrs", zone.translate_wan_addrs),
    )
    if (recursors := read.take("recursors", list)) is not None:
        upstreams = tuple(upstream_from_text(str(one), origin=f"recursors in {origin}") for one in recursors)
        settings = replace(settings, upstreams=upstreams)

    dns = read.inside("dns_config")
    soa = dns.inside("soa")
    zone = replace(
        zone,
        node_ttl=int(dns.duration("node_ttl", zone.node_ttl)),
        service_ttl={fold(k): v for k, v in dns.durations("service_ttl").items()} or zone.service_ttl,
        only_passing=dns.flag("only_passing", zone.only_passing),
        a_record_limit=dns.whole("a_record_limit", zone.a_record_limit),
        node_meta_txt=dns.flag("enable_additional_node_meta_txt", zone.node_meta_txt),
        soa=Soa(
            refresh=soa.whole("refresh", zone.soa.refresh),
            retry=soa.whole("retry", zone.soa.retry),
            expire=soa.whole("expire", zone.soa.expire),
            min_ttl=soa.whole("min_ttl", zone.soa.min_ttl),
        ),
    )
    answers = replace(
        answers,
        udp_answer_limit=dns.whole("udp_answer_limit", answers.udp_answer_limit),
        enable_truncate=dns.flag("enable_truncate", answers.enable_truncate),
        disable_compression=dns.flag("disable_compression", answers.disable_compression),
    )
    attempt = dns.duration("recursor_timeout", settings.upstream_attempt)
    settings = replace(settings, zone=zone, answers=answers, upstream_attempt=attempt)
    unknown = [*read.rest(), *dns.rest(), *soa.rest()]
    return settings, [f"{key} in {origin} has no effect on the resolver" for key in unknown]


class _Reader:
    """Takes values out of a JSON object, checking their types and keeping account of what is left."""

    def __init__(self, raw: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        self._raw = dict(raw)
        self._origin = origin
        self._prefix = prefix

    def take(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self._raw.pop(key, None)
        # bool is an int to Python, and to nobody else.
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise self._wrong(key, value)

    def inside(self, key: str) -> _Reader:
        return _Reader(self.take(key, dict) or {}, self._origin, f"{self._prefix}{key}.")

    def rest(self) -> Iterable[str]:
        return [f"{self._prefix}{key}" for key in self._raw]

    def flag(self, key: str, default: bool) -> bool:
        value: bool | None = self.take(key, bool)
        return default if value is None else value

    def whole(self, key: str, default: int) -> int:
        value: int | None = self.take(key, int)
        if value is not None and not 0 <= value <= 0xFFFF_FFFF:
            raise self._wrong(key, value)
        return default if value is None else value

    def text(self, key: str) -> str | None:
        value: str | None = self.take(key, str)
        return value

    def name(self, key: str) -> Any:
        text = self.text(key)
        try:
            return name_from_text(text) if text else None
        except Malformed as exc:
            raise ConfigurationError(f"{self._prefix}{key} in {self._origin}: {exc}") from exc

    def duration(self, key: str, default: float) -> float:
        value = self.take(key, str)
        return default if value is None else self._seconds(key, value)

    def durations(self, key: str) -> dict[str, float]:
        raw = self.take(key, dict) or {}
        return {name: self._seconds(f"{key}.{name}", value) for name, value in raw.items()}

    def _seconds(self, key: str, value: Any) -> float:
        try:
            seconds = durations.from_text(value) if isinstance(value, str) else -1.0
        except ValueError:
            seconds = -1.0
        if seconds < 0:
            raise self._wrong(key, value, "a duration such as 10s or 1m30s")
        return seconds

    def _wrong(
        self, key: str, value: Any, right: str = "what Consul's documentation says"
    ) -> ConfigurationError:
        return ConfigurationError(
            f"{self._prefix}{key}={value!r} in {self._origin} cannot be used; write {right}"
        )


# --- upstreams ---------------------------------------------------------------------------------------------


def nameservers(text: str) -> tuple[Upstream, ...]:
    """Return the nameservers of a resolv.conf; what glibc would not take is left out."""
    found: list[Upstream] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            ip_address(words[1].partition("%")[0])
        except ValueError:
            continue
        found.append(Upstream(words[1]))
    return tuple(dict.fromkeys(found))


def upstream_from_text(text: str, *, origin: str) -> Upstream:
    """Read ``IP``, ``IP:PORT`` or ``tls://IP[:PORT][#NAME]``.

    Raises:
        ConfigurationError: naming *text* and *origin*.
    """
    if not text.startswith("tls://"):
        plain = Endpoint.from_text(text, origin=origin)
        return Upstream(plain.host, plain.port)
    address, _, name = text.removeprefix("tls://").partition("#")
    secure = Endpoint.from_text(address, origin=origin, default_port=TLS_PORT)
    return Upstream(secure.host, secure.port, tls=True, tls_name=name)


def forward_from_text(text: str, *, origin: str) -> tuple[Name, tuple[Upstream, ...]]:
    """Read ``DOMAIN=UPSTREAM[,UPSTREAM...]``.

    Raises:
        ConfigurationError: naming *text* and *origin*.
    """
    domain, _, listed = text.partition("=")
    if not domain or not listed:
        raise ConfigurationError(
            f"cannot use {text!r} from {origin}: write DOMAIN=IP, for example corp.example=10.0.0.53"
        )
    try:
        name = name_from_text(fold(domain))
    except Malformed as exc:
        raise ConfigurationError(f"cannot use {text!r} from {origin}: {exc}") from exc
    return name, tuple(upstream_from_text(one, origin=origin) for one in listed.split(","))


def without(
    upstreams: Iterable[Upstream],
    own: Sequence[Endpoint],
    addresses: Callable[[], Collection[IPv4Address | IPv6Address]],
) -> tuple[Upstream, ...]:
    """Leave out what would ask ourselves: a question that comes back for ever (the loop guard).

    Args:
        own: what we listen on.
        addresses: of this host; a wildcard among *own* stands for all of them, and every loopback address.
    """

    def is_own(upstream: Upstream) -> bool:
        address = ip_address(upstream.host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_unspecified:  # as a destination it is this host
            address = ip_address("127.0.0.1" if address.version == 4 else "::1")
        for one in own:
            listens = ip_address(one.host)
            if upstream.port != one.port or listens.version != address.version:
                continue
            if address == listens:
                return True
            if listens.is_unspecified and (address.is_loopback or address in addresses()):
                return True
        return False

    return tuple(one for one in upstreams if not is_own(one))


class SystemUpstreams:
    """The nameservers of resolv.conf, read again when the file changes: a laptop's network does, and its
    upstreams with it."""

    def __init__(
        self,
        own: Sequence[Endpoint],
        addresses: Callable[[], Collection[IPv4Address | IPv6Address]],
        path: Path = RESOLV_CONF,
    ) -> None:
        """Read nothing yet; *own* and *addresses* are as for ``without``."""
        self._own = own
        self._addresses = addresses
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._looked_at = float("-inf")
        self._upstreams: tuple[Upstream, ...] = ()

    def get(self, now: float) -> tuple[Upstream, ...]:
        """Return them; *now* is in monotonic seconds."""
        if now - self._looked_at >= _RESOLV_CONF_PERIOD:
            self._looked_at = now
            try:
                stat = self._path.stat()
                if self._seen != (stat.st_mtime_ns, stat.st_ino):
                    self._seen = (stat.st_mtime_ns, stat.st_ino)
                    text = self._path.read_text(encoding="utf-8", errors="replace")
                    self._upstreams = without(nameservers(text), self._own, self._addresses)
            except OSError:
                pass  # gone for the moment it takes to be replaced; what it said before still stands
        return self._upstreams
