"""Registrator's command line -> frozen ``Settings``.

Laws:
- Every option of Registrator is here under its name and with its meaning, with one dash or two, as
  ``-x value`` or ``-x=value``; what is new has two dashes in the documentation and is as lenient.
- Options come before the registry URI, and there is at most one of that.
- Pure: the environment is an argument; nothing is printed and nobody is asked.
- A fault is a ``ConfigurationError`` that names the option and says what would be right.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from discovery.config import Config
from discovery.errors import ConfigurationError
from discovery.names import service_name
from registrar.checks import parse_duration
from registrar.desired import TAG_FIELD, TAG_FIELDS, TAG_MAPS
from registrar.metadata import split_tags
from registrar.rules import Rules

__all__ = [
    "FURTHER",
    "REGISTRATORS",
    "Option",
    "Settings",
    "Unusable",
    "add_options",
    "normalised",
    "settings_from",
]

DEFAULT_URI: Final = "consul://"
"""Without a host: CONSUL_HTTP_ADDR says where, else 127.0.0.1:8500."""
SCHEMES: Final = ("consul", "consul-tls", "consul-unix")

_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")
_OPTION: Final = re.compile(r"--?(?P<name>[A-Za-z][A-Za-z-]+)(?:=(?P<value>.*))?\Z", re.DOTALL)
# Go's flag package takes -x=true for a switch; argparse does not.
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class Unusable(ConfigurationError):
    """Values that Registrator refuses too, with exit code 1; it keeps 2 for options it cannot parse."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a registrar. Durations are seconds."""

    uri: str = DEFAULT_URI
    """The registry: the scheme chooses the backend."""
    discovery: Config = field(default_factory=Config)
    """How the registry is spoken to."""
    rules: Rules = field(default_factory=Rules)
    """What is registered, and how."""
    owner: str = ""
    """The name that ids begin with; empty: the host name, or Docker's."""
    resync: float | None = None
    """Seconds between two looks at everything although nothing has happened. None: 60, which costs
    nothing where nothing differs; 0: never, as in Registrator."""
    retry_attempts: int | None = None
    """How often the registry is tried again at the start before giving up; -1 for ever.
    None: for ever, with a pause that begins short."""
    retry_interval: float = 2.0
    """Seconds between these attempts."""
    heartbeat_interval: float = 0.0
    """Seconds between two renewals, where ``rules.heartbeat`` asks for a heartbeat."""
    deregister_on_exit: bool = False
    """Remove what is registered when the registrar ends. Not by default: an update of the registrar
    would take every service of the host away."""
    metrics: tuple[str, int] | None = None
    """Host and port to serve ``/metrics`` and ``/healthz`` on."""
    heartbeat_file: str = ""
    """A file that is touched every second while nothing hangs, for a watchdog."""
    workers: int = 4
    """Containers that are worked on at once. Eight are no faster and take 8 MiB more: each thread keeps what
    a look at a thousand containers needed."""

    @property
    def resync_interval(self) -> float:
        """Seconds; 0 for never."""
        return 60.0 if self.resync is None else self.resync


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the command line."""

    name: str
    """Without its dashes."""
    about: str
    metavar: str = ""
    """What its value is called; empty for a switch, which has none."""
    default: str | None = ""
    choices: tuple[str, ...] = ()
    repeated: bool = False
    """It can be given more than once."""

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        flag = f"--{self.name}"
        if not self.metavar:
            group.add_argument(flag, action="store_true", help=self.about)
        elif self.repeated:
            group.add_argument(flag, action="append", default=[], metavar=self.metavar, help=self.about)
        else:
            choices = self.choices or None
            group.add_argument(
                flag, default=self.default, choices=choices, metavar=self.metavar, help=self.about
            )


REGISTRATORS: Final = (
    Option("ip", "address to register, whatever a port is bound to", "IP"),
    Option("internal", "register the container's own address and the port inside"),
    Option("explicit", "register only ports that are given a SERVICE_NAME"),
    Option("useIpFromLabel", "register the address that stands in this label", "LABEL"),
    Option("tags", "added to every service's tags", "TAG,TAG"),
    Option(
        "ttl",
        "every service turns critical so long after the registrar's last heartbeat (default 0: never)",
        "SECONDS",
        "0",
    ),
    Option("ttl-refresh", "time between heartbeats; together with -ttl", "SECONDS", "0"),
    Option("resync", "look at everything this often (default 60; 0: never)", "SECONDS", None),
    Option(
        "deregister",
        "when what ended is removed, and else stays as critical: always (default), on-success, never",
        "WHEN",
        "always",
    ),
    Option("cleanup", "accepted: what no longer runs is always removed"),
    Option(
        "retry-attempts",
        "give up after so many more attempts to reach the registry at the start (default, -1: never)",
        "N",
        None,
    ),
    Option("retry-interval", "milliseconds between these attempts (default 2000)", "MS", "2000"),
)
"""With their meaning there, and without ``choices``: Registrator reads any value first, and ends with 1."""

FURTHER: Final = (
    Option("owner", "what ids begin with (default: the host name)", "NAME"),
    Option("service-prefix", "put before every name, as PREFIX-name, and every id, as PREFIX:id", "PREFIX"),
    Option("network", "with -internal: register the address in this network", "NAME"),
    Option("allow-service-ip", "let SERVICE_IP give the address; else it is Meta"),
    Option("every-binding", "register an instance for each address and port that a port is published as"),
    Option("allow-loopback", "register ports that are bound to a loopback address"),
    Option(
        "suffix",
        "when -PORT is added to a name: auto (default), with several ports; always; never",
        "WHEN",
        "auto",
        ("auto", "always", "never"),
    ),
    Option("allow-name", "a name that may be registered (default: every name)", "GLOB", repeated=True),
    Option("label-filter", "a label that a container must have", "LABEL[=VALUE]", repeated=True),
    Option("allow-script-checks", "let SERVICE_CHECK_SCRIPT run commands on the agent's host"),
    Option(
        "drain",
        "what the stop signal does: deregister (default), maintenance (show as critical), off",
        "HOW",
        "deregister",
        ("deregister", "maintenance", "off"),
    ),
    Option(
        "keep-failed",
        "how long -deregister keeps what ended, for example 10m (default: until it is removed)",
        "DURATION",
    ),
    Option("ready", "register a container with a HEALTHCHECK only when that has passed once"),
    Option("no-healthcheck", "do not make Docker's HEALTHCHECK a check of the service"),
    Option("metrics", "serve /metrics and /healthz there", "ADDR:PORT"),
    Option("heartbeat-file", "touched every second while nothing hangs", "FILE"),
    Option("deregister-on-exit", "remove everything registered when the registrar ends"),
)
SWITCHES: Final = frozenset(option.name for option in (*REGISTRATORS, *FURTHER) if not option.metavar)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a registrar to *parser*."""
    for title, options in (
        ("Registrator's options, with one dash or two", REGISTRATORS),
        ("further options", FURTHER),
    ):
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group)
    parser.add_argument(
        "uri",
        nargs="?",
        default=None,
        metavar="URI",
        help="consul://HOST:PORT, consul-tls://HOST:PORT or consul-unix:///PATH",
    )


def normalised(arguments: Sequence[str]) -> list[str]:
    """Return *arguments* as argparse takes them, from Go's way of writing options.

    ``-x`` becomes ``--x`` (argparse would take ``-intern`` for ``-internal``), and a switch may be
    given as ``-x=true`` or ``-x=false``.

    Raises:
        ConfigurationError: a switch has another value.
    """
    result = []
    for argument in arguments:
        found = _OPTION.match(argument)
        if found is None:
            result.append(argument)
        elif found["name"] not in SWITCHES or found["value"] is None:
            result.append(f"--{argument.lstrip('-')}")
        elif found["value"] in _TRUE:
            result.append(f"--{found['name']}")
        elif found["value"] not in _FALSE:
            raise ConfigurationError(f"{argument!r} is neither on nor off; write -{found['name']}")
    return result


def settings_from(arguments: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """Check what was parsed, and return it as settings.

    Raises:
        ConfigurationError: a value cannot be used.
    """
    discovery = Config.from_env(env)
    uri = arguments.uri or DEFAULT_URI
    scheme = urlsplit(uri).scheme
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f"the registry URI {uri!r} is not one of {', '.join(f'{known}://' for known in SCHEMES)}; "
            "write for example consul://127.0.0.1:8500"
        )
    if uri.partition("://")[2]:
        discovery.consul.at(uri, origin="the command line")  # only to refuse now what cannot work later
    ttl, refresh = _whole("-ttl", arguments.ttl), _whole("-ttl-refresh", arguments.ttl_refresh)
    if (ttl > 0) != (refresh > 0):
        raise Unusable(f"-ttl={ttl} and -ttl-refresh={refresh}: give both, or neither")
    if ttl > 0 and ttl <= refresh:
        raise Unusable(f"-ttl={ttl} must be greater than -ttl-refresh={refresh}")
    retry_interval = _whole("-retry-interval", arguments.retry_interval, minimum=None)
    if retry_interval <= 0:
        raise Unusable(f"-retry-interval={retry_interval} must be greater than 0 milliseconds")
    attempts = arguments.retry_attempts
    retry_attempts = None if attempts is None else _whole("-retry-attempts", attempts, minimum=-1)
    if arguments.deregister not in ("always", "on-success", "never"):
        raise Unusable(f"-deregister={arguments.deregister!r} must be 'always', 'on-success' or 'never'")
    return Settings(
        uri=uri,
        discovery=discovery,
        rules=Rules(
            ip=_address(arguments.ip),
            internal=arguments.internal,
            explicit=arguments.explicit,
            use_ip_from_label=arguments.useIpFromLabel,
            tags=_tags(arguments.tags),
            network=arguments.network,
            prefix=_prefix(arguments.service_prefix),
            allow_service_ip=arguments.allow_service_ip,
            every_binding=arguments.every_binding,
            allow_loopback=arguments.allow_loopback,
            suffix=arguments.suffix,
            allow_names=tuple(arguments.allow_name),
            label_filter=tuple(_label(raw) for raw in arguments.label_filter),
            allow_script_checks=arguments.allow_script_checks,
            healthcheck=not arguments.no_healthcheck,
            ready=arguments.ready,
            drain=arguments.drain,
            deregister=arguments.deregister,
            keep_failed=_duration("--keep-failed", arguments.keep_failed),
            heartbeat=float(ttl),
        ),
        owner=arguments.owner,
        # Below 0 is never, too: Registrator starts no timer then.
        resync=None
        if arguments.resync is None
        else max(0.0, _whole("-resync", arguments.resync, minimum=None)),
        retry_attempts=retry_attempts,
        retry_interval=retry_interval / 1000,
        heartbeat_interval=float(refresh),
        metrics=_endpoint("--metrics", arguments.metrics),
        heartbeat_file=arguments.heartbeat_file,
        deregister_on_exit=arguments.deregister_on_exit,
    )


def _whole(option: str, raw: str, *, minimum: int | None = 0) -> int:
    try:
        number = int(raw)
    except ValueError:
        raise ConfigurationError(f"{option}={raw!r} is not a whole number; write for example 30") from None
    if minimum is not None and number < minimum:
        raise ConfigurationError(f"{option}={number} is not possible; give at least {minimum}")
    return number


def _duration(option: str, raw: str) -> float:
    if not raw:
        return float("inf")
    try:
        return parse_duration(raw)
    except ValueError as exc:
        raise ConfigurationError(f"{option}={raw!r}: {exc}") from None


def _endpoint(option: str, raw: str) -> tuple[str, int] | None:
    if not raw:
        return None
    host, _, port = raw.rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = ""
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{option}={raw!r} is no address; write for example 127.0.0.1:9100")
    return host, int(port)


def _label(raw: str) -> tuple[str, str | None]:
    label, equals, value = raw.partition("=")
    if not label:
        raise ConfigurationError(f"--label-filter={raw!r} names no label; write LABEL or LABEL=VALUE")
    return label, value if equals else None


def _address(raw: str) -> str:
    """Check the address of ``-ip``. A loopback address is taken: whoever types it has asked for it."""
    if not raw:
        return ""
    try:
        unspecified = ipaddress.ip_address(raw).is_unspecified
    except ValueError:
        if _HOST.match(raw):
            return raw
        raise ConfigurationError(f"-ip={raw!r} is no address; write for example 10.0.0.5") from None
    if unspecified:
        raise ConfigurationError(f"-ip={raw!r} is every address, which nobody can connect to; write one")
    return raw


def _prefix(raw: str) -> str:
    return service_name(raw, origin="--service-prefix") if raw else ""


def _tags(raw: str) -> tuple[str, ...]:
    """Split ``-tags`` and check what stands in braces."""
    if "{{" in raw:
        spelling = ", ".join(f"{{{name}}}" for name in TAG_FIELDS)
        raise ConfigurationError(
            f"-tags={raw!r} is a Go template, which is not run here; in braces you can write {spelling}, "
            "{label:KEY} and {env:KEY}: '{{.Config.Hostname}}' becomes '{hostname}'"
        )
    for found in TAG_FIELD.finditer(raw):
        if found["kind"] not in TAG_FIELDS and not (found["kind"] in TAG_MAPS and found["key"]):
            known = ", ".join((*TAG_FIELDS, *(f"{kind}:KEY" for kind in TAG_MAPS)))
            raise ConfigurationError(f"-tags={raw!r}: {found[0]} is not known; in braces can stand {known}")
    return tuple(split_tags(raw))
