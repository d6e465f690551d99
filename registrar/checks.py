"""``SERVICE_CHECK_*`` -> what Consul's agent shall check.

    kind (the first given one wins)   what it does
    HTTP, HTTPS = path                GET of the port; METHOD (or HTTP_METHOD, HTTPS_METHOD), HEADER (JSON),
                                      BODY, TLS_SKIP_VERIFY
    CMD, DOCKER = command             inside the container; its exit code as of the agent's scripts:
                                      0 passing, 1 warning, else critical
    SCRIPT = command                  on the agent's host; refused without --allow-script-checks
    TTL = duration                    the application reports to the agent itself
    TCP = anything                    the port accepts
    GRPC = anything or /service       the gRPC health protocol; GRPC_USE_TLS = anything, TLS_SKIP_VERIFY
    and for all of them               INTERVAL, TIMEOUT, INITIAL_STATUS, DEREGISTER_AFTER, NAME, NOTES

In DOCKER and SCRIPT, ``$SERVICE_IP`` and ``$SERVICE_PORT`` stand for where the service is reached.

Several checks of one service are numbered: ``SERVICE_CHECK_HTTP``, ``SERVICE_CHECK_2_TCP``,
``SERVICE_CHECK_2_INTERVAL``. Each number is a check with settings of its own.

A command inside the container is run by the registrar (``Probe``), and the agent has a TTL check that it
is told of: the agent would need both Docker's socket and the right to run scripts, and one that has not
rejects the whole service.

Laws:
- Pure.
- A fault costs the setting or the check it stands in, never the registration: Consul rejects a whole
  service for one unreadable duration.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from discovery import durations
from discovery.model import Check, CheckID, ServiceID, Status
from registrar.containers import ContainerID
from registrar.metadata import Problem, Value

__all__ = ["KINDS", "SETTINGS", "Probe", "Target", "has_check", "parse_checks", "parse_duration"]

DEFAULT_INTERVAL: Final = 10.0
"""Seconds between two runs of a check that gives no interval (Registrator's default)."""

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds that a command may take (the agent's own limit on its scripts)."""
MIN_PROBE_TTL: Final = 30.0
"""Seconds without news after which a command's check turns critical, at least: a registrar that is
replaced by a newer one is away for less."""
_PREFIX: Final = "check_"
KINDS: Final = ("http", "https", "cmd", "docker", "script", "ttl", "tcp", "grpc")
SETTINGS: Final = (
    *("interval", "timeout", "initial_status", "deregister_after", "name", "notes"),
    *("method", "http_method", "https_method", "header", "body", "tls_skip_verify", "grpc_use_tls"),
)
_MAX_PROBE_TTL: Final = 1e9
"""Seconds, thirty years: three intervals may be more than Go's 292 years, and Consul refuses that."""
_NUMBERED: Final = re.compile(r"(\d{1,9})_(.+)\Z")
_STATUSES: Final = ("passing", "warning", "critical")
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "f", "false", "no", "off"), False),
}
_METHOD: Final = re.compile(r"[A-Z]+\Z")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f]")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Probe:
    """A command to be run inside a container, again and again."""

    service_id: ServiceID
    check_id: CheckID
    container: ContainerID
    args: tuple[str, ...]
    interval: float
    """Seconds between two runs."""
    timeout: float
    """Seconds that one run may take."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be checked."""

    container_name: str
    container_id: ContainerID
    service_id: ServiceID
    host: str
    """Where the agent reaches the port; empty when nobody knows."""
    port: int
    allow_scripts: bool = False

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_checks(
    metadata: Mapping[str, Value], target: Target, *, elsewhere: bool = False
) -> tuple[tuple[Check, ...], tuple[Probe, ...], tuple[Problem, ...]]:
    """Read every check of one port.

    Args:
        metadata: what holds for the port, as ``Metadata.for_port`` returns it; other keys are ignored.
        elsewhere: another port of the container has a check: settings for all ports may be meant for that.

    Returns:
        The checks in order of their numbers, the commands behind some of them, and what could not be
        used.
    """
    groups: dict[int, dict[str, Value]] = {}
    for key, value in metadata.items():
        if not key.startswith(_PREFIX) or not value.text:
            continue
        rest = key.removeprefix(_PREFIX)
        numbered = _NUMBERED.match(rest)
        number, name = (int(numbered[1]), numbered[2]) if numbered else (0, rest)
        groups.setdefault(number, {})[name] = value
    problems: list[Problem] = []
    probes: list[Probe] = []
    checks: list[Check] = []
    for number in sorted(groups):
        reading = _Reading(number, groups[number], target, elsewhere, problems, probes)
        if check := reading.check():
            checks.append(check)
    return tuple(checks), tuple(probes), tuple(problems)


def has_check(metadata: Mapping[str, Value]) -> bool:
    """True when *metadata*, of one port, names a check of any kind."""
    given = (
        key.removeprefix(_PREFIX) for key, value in metadata.items() if key.startswith(_PREFIX) and value.text
    )
    return any(_NUMBERED.sub(r"\2", name) in KINDS for name in given)


def parse_duration(text: str) -> float:
    """Read a duration as Go writes it, ``1m30s`` or ``500ms``, and return seconds.

    Raises:
        ValueError: it has no unit, or cannot be read; says what would be right.
    """
    try:
        seconds = durations.from_text(text)
    except ValueError:
        hint = f"{text}s" if text.isdecimal() else "10s or 1m30s"
        raise ValueError(f"it is not a duration; write a number with its unit, for example {hint}") from None
    if seconds <= 0:
        raise ValueError("a duration must be above 0; write for example 10s")
    return seconds


@dataclass(slots=True)
class _Reading:
    """One check while its settings are read."""

    number: int
    values: Mapping[str, Value]
    target: Target
    elsewhere: bool
    problems: list[Problem]
    probes: list[Probe]

    def check(self) -> Check | None:
        kind = next((kind for kind in KINDS if kind in self.values), None)
        unknown = [name for name in self.values if name not in KINDS and name not in SETTINGS]
        for name in unknown:
            close = difflib.get_close_matches(name, (*KINDS, *SETTINGS), n=1)
            known = close[0] if close else ", ".join((*KINDS, *SETTINGS))
            self._refuse(name, f"there is no such setting of a check; known: {known.upper()}")
        if kind is None:
            for name in self.values:
                if name not in unknown and not (self.elsewhere and not self.values[name].for_port):
                    self._refuse(
                        name, "it belongs to no check; name one with HTTP, HTTPS, CMD, TTL, TCP or GRPC"
                    )
            return None
        for name in KINDS:
            if name in self.values and name != kind:
                self._refuse(
                    name, f"this check is already {kind.upper()}; number a second one, as in CHECK_2_TCP"
                )
        made = self._kind(kind)
        if made is None:
            return None
        if kind not in ("ttl", "cmd", "docker"):
            made["interval"] = self._read("interval", parse_duration, DEFAULT_INTERVAL)
            made["timeout"] = self._read("timeout", parse_duration, None)
        return Check(
            name=self._text("name"),
            notes=made.pop("notes", "") or self._text("notes"),
            initial_status=self._read("initial_status", _status, None),
            deregister_after=self._read("deregister_after", parse_duration, None),
            **made,
        )

    def _kind(self, kind: str) -> dict[str, Any] | None:
        """Return what only this kind of check has, or None when it cannot be made."""
        text = self.values[kind].text
        match kind:
            case "http" | "https":
                return self._http(kind, text)
            case "cmd":
                return self._command(kind, text)
            case "docker":
                return self._command(kind, self._interpolated(text))
            case "script":
                return self._script(text)
            case "ttl":
                ttl = self._read("ttl", parse_duration, None)
                return None if ttl is None else {"ttl": ttl}
            case "tcp":
                return {"tcp": self.target.netloc} if self._reachable(kind) else None
            case _:
                if not self._reachable(kind):
                    return None
                # Any value switches the check on; a path names the one service to ask about.
                service = text if text.startswith("/") else ""
                return {
                    "grpc": self.target.netloc + service,
                    # Any value but a "no", as with Registrator.
                    "grpc_use_tls": _BOOLEANS.get(self._text("grpc_use_tls").lower() or "no", True),
                    "tls_skip_verify": self._read("tls_skip_verify", _boolean, False),
                }

    def _http(self, scheme: str, path: str) -> dict[str, Any] | None:
        if not self._reachable(scheme):
            return None
        # A whole URL would let any container send the agent anywhere in its network.
        if "://" in path or _UNPRINTABLE.search(path):
            self._refuse(
                scheme, "give only the path, for example /health; host and port are the service's own"
            )
            return None
        slash = "" if path.startswith("/") else "/"
        return {
            "http": f"{scheme}://{self.target.netloc}{slash}{path}",
            "method": self._read("method", _method, self._read(f"{scheme}_method", _method, None)),
            "header": self._read("header", _header, None) or MappingProxyType({}),
            "body": self._text("body") or None,
            "tls_skip_verify": self._read("tls_skip_verify", _boolean, False),
        }

    def _command(self, kind: str, text: str) -> dict[str, Any] | None:
        args = self._arguments(kind, text)
        if args is None:
            return None
        target = self.target
        number = f"-{self.number}" if self.number else ""
        check_id = CheckID(f"{target.service_id}:command{number}")
        interval = self._read("interval", parse_duration, DEFAULT_INTERVAL)
        timeout = self._read("timeout", parse_duration, DEFAULT_TIMEOUT)
        self.probes.append(Probe(target.service_id, check_id, target.container_id, args, interval, timeout))
        # What runs is in the notes, for people, and so that another command is another definition.
        return {
            "id": check_id,
            "ttl": min(max(MIN_PROBE_TTL, 3 * interval + timeout), _MAX_PROBE_TTL),
            "notes": shlex.join(args),
        }

    def _script(self, text: str) -> dict[str, Any] | None:
        if not self.target.allow_scripts:
            self._refuse(
                "script",
                "it would run on the agent's host, which --allow-script-checks must permit; "
                "CHECK_CMD runs inside the container",
            )
            return None
        args = self._arguments("script", self._interpolated(text))
        return None if args is None else {"args": args}

    def _interpolated(self, text: str) -> str:
        return text.replace("$SERVICE_IP", self.target.host).replace("$SERVICE_PORT", str(self.target.port))

    def _arguments(self, name: str, text: str) -> tuple[str, ...] | None:
        try:
            args = tuple(shlex.split(text))
        except ValueError as exc:
            self._refuse(name, f"it cannot be split into words: {exc}")
            return None
        if not args:
            self._refuse(name, "there is no command in it")
            return None
        return args

    def _reachable(self, name: str) -> bool:
        if not self.target.host:
            self._refuse(
                name, "the agent does not tell its address, so nobody knows where to check; give -ip"
            )
        return bool(self.target.host)

    def _text(self, name: str) -> str:
        return self.values[name].text if name in self.values else ""

    def _read(self, name: str, read: Callable[[str], _T], default: _T | None) -> Any:
        if name not in self.values:
            return default
        try:
            return read(self.values[name].text)
        except ValueError as exc:
            instead = (
                "" if default is None else f"; {default:g} s is used" if isinstance(default, float) else ""
            )
            self._refuse(name, f"{exc}{instead}")
            return default

    def _refuse(self, name: str, message: str) -> None:
        value = self.values[name]
        self.problems.append(Problem(self.target.container_name, value.origin, value.text, message))


def _status(text: str) -> Status:
    if text not in _STATUSES:
        raise ValueError(f"it is no status; write {', '.join(_STATUSES[:-1])} or {_STATUSES[-1]}")
    return cast(Status, text)


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("it is neither true nor false; write true or false")
    return _BOOLEANS[text.lower()]


def _method(text: str) -> str:
    if not _METHOD.match(text.upper()):
        raise ValueError("it is no HTTP method; write for example HEAD")
    return text.upper()


def _header(text: str) -> Mapping[str, tuple[str, ...]]:
    """Read ``{"Host": "web.example", "X-Probe": ["a", "b"]}``."""
    wrong = 'it is no header; write JSON, for example {"Host": ["web.example"]}'
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):  # the second: a hundred thousand brackets
        raise ValueError(wrong) from None
    if not isinstance(raw, dict):
        raise ValueError(wrong)
    header: dict[str, tuple[str, ...]] = {}
    for name, raw_values in raw.items():
        values = [raw_values] if isinstance(raw_values, str) else raw_values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(wrong)
        header[name] = tuple(values)
    return MappingProxyType(header)
