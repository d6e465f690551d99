"""``discovery doctor``: gather the facts about this machine and every source, and print the judgements.

    a real lookup ──> works or not        (what a source that fails means depends on that)
    environment  package  ──> static ──> shared ──> Consul over HTTP ──> DNS ──> snapshots on disk

Laws:
- What a lookup would do is found out by a lookup, and the exit code is that lookup's.
- Each source is asked by itself, in the order of ``sources``, with a time limit of its own.
- A source that nobody chose and nobody needs may be silent.
- Secrets are not printed: of variables the names are, and values only where they cannot be used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

import discovery
from discovery import balance, doctor, sources
from discovery.backends import private
from discovery.backends.chain import Chain
from discovery.backends.consul import Consul, codec
from discovery.backends.consul.codec import Request
from discovery.backends.consul.transport import Connection
from discovery.backends.dns import Dns, Server
from discovery.backends.shared import Shared
from discovery.backends.static import Static
from discovery.cli import exit_code
from discovery.cli.text import Terminal, ago, duration, plain, table
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.doctor import Finding, ResolvConf, Skew
from discovery.errors import (
    AccessDenied,
    ConfigurationError,
    DiscoveryError,
    RegistryError,
    RegistryOverloaded,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.model import NamesQuery, Query, ServiceName, ServiceQuery
from discovery.names import dns_label_problem, env_name, service_name

__all__ = ["Diagnosis", "Machine", "examine", "run"]

_HTTP_TIMEOUT: Final = 1.0  # s for each of the three questions to an agent
_DNS_TIMEOUT: Final = 0.5  # s for each name server
_SETTINGS: Final = frozenset(f"DISCOVERY_{name.upper()}" for name in Config.__dataclass_fields__)
_OURS: Final = frozenset(
    {
        *("CONSUL_HTTP_ADDR", "CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_HTTP_TOKEN"),
        *(
            "CONSUL_HTTP_TOKEN_FILE",
            "CONSUL_HTTP_AUTH",
            "CONSUL_CACERT",
            "CONSUL_CAPATH",
            "CONSUL_CLIENT_CERT",
        ),
        *("CONSUL_CLIENT_KEY", "CONSUL_TLS_SERVER_NAME", "CONSUL_NAMESPACE", "CONSUL_PARTITION"),
    }
)
_FOREIGN: Final = frozenset({"CONSUL_GRPC_ADDR", "CONSUL_GRPC_CACERT", "CONSUL_GRPC_CAPATH"})
"""Variables of Consul's own that are like ours and no misspelling of them."""
_FILES: Final = (
    "CONSUL_HTTP_TOKEN_FILE",
    "CONSUL_CACERT",
    "CONSUL_CAPATH",
    "CONSUL_CLIENT_CERT",
    "CONSUL_CLIENT_KEY",
    "DISCOVERY_STATIC",
)
_NO_LEADER: Final = ("No cluster leader", "No known Consul servers")
_PROBE: Final = ServiceName("consul")
"""Asked for where no service was named: servers register it. A denial by the registry does as well."""
_COLOURS: Final = {"ok": "good", "warning": "doubtful", "problem": "bad"}


def _musl() -> bool:
    return "musl" in f"{sysconfig.get_config_var('SOABI')} {sysconfig.get_config_var('HOST_GNU_TYPE')}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is examined; a test gives its own."""

    env: Mapping[str, str]
    path: Sequence[str]
    """Where Python looks for modules, as for a program that is started in the current directory."""
    resolv_conf: Path = Path("/etc/resolv.conf")
    connections: Sequence[Path] = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    musl: bool = False
    clock: Callable[[], float] = time.time
    name_servers: Callable[[Config], list[Server]] = sources.name_servers

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        return cls(os.environ, (str(Path.cwd()), *sys.path), musl=_musl())


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, in order; the last finding is about a lookup itself."""

    findings: tuple[Finding, ...]
    exit_code: int
    """Of a lookup: 0 when that works."""


def run(name: str | None, consul: str | None, *, as_json: bool, terminal: Terminal) -> int:
    """Examine this machine, print what is found, and return the exit code."""
    if name is not None:
        service_name(name)
    found = examine(Machine.here(), name, consul)
    if as_json:
        print(json.dumps({"service": name, "exit_code": found.exit_code, "findings": _rows(found)}, indent=2))
        return found.exit_code
    rows: list[tuple[str, str, str]] = []
    for finding in found.findings:
        took = "" if finding.seconds is None else f" ({duration(finding.seconds)})"
        rows.append((finding.level, finding.about, f"{finding.says}{took}"))
        if finding.advice:
            rows.append(("", "", f"-> {finding.advice}"))
    lines = table(rows, terminal.width or _PIPE_WIDTH, wrap=True)
    for line in lines:
        word = line.partition(" ")[0]
        print(terminal.paint(word, _COLOURS.get(word, "")) + line[len(word) :])
    return found.exit_code


_PIPE_WIDTH: Final = 80
"""Columns without a terminal: findings are sentences, which nobody cuts into fields."""


def _rows(found: Diagnosis) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in found.findings]


def examine(machine: Machine, name: str | None = None, consul: str | None = None) -> Diagnosis:
    """Look at everything.

    Args:
        name: a service to look for; None: any.
        consul: the registry's address, in place of the environment's.
    """
    environment, config, broken = _environment(machine.env)
    if consul:
        config = replace(config, consul=config.consul.at(consul, origin="--consul"))
    chain = sources.catalogue(config)
    try:
        works, code, verdict = _lookup(config, name)
        findings = [*environment, _package(machine.path)]
        for finding, needed in _sources(
            machine, config, chain, name, "--consul" if consul else "CONSUL_HTTP_ADDR"
        ):
            spare = works and not needed and finding.level != "ok"
            findings.append(
                replace(finding, level="ok", says=f"{finding.says} Nobody needs it: lookups work.", advice="")
                if spare
                else finding
            )
    finally:
        chain.close()
    if code == exit_code(ServiceNotFound("")) and any(f.about == "access" for f in findings):
        verdict = replace(verdict, advice="It may be there, and be hidden by the ACLs: see above.")
    if broken:
        code = 2
        said = "Lookups do not work: the environment holds what cannot be used."
        advice = "Correct the variables above; all else was looked at without them."
        verdict = replace(verdict, level="problem", says=said, advice=advice)
    return Diagnosis((*findings, verdict), code)


# --- the lookup itself ---------------------------------------------------------------------------------


def _lookup(config: Config, name: str | None) -> tuple[bool, int, Finding]:
    """Look up as a program would; say whether that works, the exit code, and what came of it."""
    with Client(config) as client:
        started = time.monotonic()
        try:
            if name is None:
                names = client.names()
                took = time.monotonic() - started
                known = f"{len(names)} service{'' if len(names) == 1 else 's'} known"
                if names and _is_unsure(client, min(names)):
                    said = f"Lookups are answered from what was written down: {known}."
                    return False, 0, Finding("lookup", "warning", said, _UNSURE, took)
                return True, 0, Finding("lookup", "ok", f"Lookups are answered: {known}.", seconds=took)
            instance = client.lookup(name)
            took = time.monotonic() - started
            # Not lookup_all, which does not fail over as the lookup may have done.
            count = sum(candidate.why_not is None for candidate in client.explain(name).candidates)
        except DiscoveryError as exc:
            if name is None and _knows_dns(config):
                return (
                    True,
                    0,
                    Finding(
                        "lookup", "ok", "Lookups work, through DNS; a list of all names is not to be had."
                    ),
                )
            took = time.monotonic() - started
            # Nothing to return is an answer, too: the sources are in order then.
            works = exit_code(exc) in (3, 4)
            if isinstance(exc, RegistryUnavailable) and len(exc.attempts) > 1:
                said = "Lookups do not work: no source answers."
                advice = (
                    "Mend one of those above; CONSUL_HTTP_ADDR with the address of a Consul agent is enough."
                )
                return works, exit_code(exc), Finding("lookup", "problem", said, advice, took)
            advice = {3: "Register it, or correct the name.", 4: "Look at its checks."}.get(
                exit_code(exc), "See above."
            )
            return works, exit_code(exc), Finding("lookup", "problem", _sentence(exc), advice, took)
    said = f"A lookup of {name!r} returns {instance}, one of {count}, from {_SOURCES[instance.source]}."
    if instance.stale:
        return False, 0, Finding("lookup", "warning", said, _UNSURE, took)
    return True, 0, Finding("lookup", "ok", said, seconds=took)


_UNSURE: Final = "Mend one of the sources above; until then this may be wrong."
_SOURCES: Final = {
    "static": "what is fixed",
    "shared": "Consul, through another process",
    "http": "Consul",
    "dns": "DNS",
    "disk": "what was written down",
}


def _is_unsure(client: Client, name: str) -> bool:
    """Say whether what is known of *name* cannot be confirmed: a list of names does not tell."""
    try:
        return client.lookup_all(name).stale
    except DiscoveryError:
        return True


def _knows_dns(config: Config) -> bool:
    if not config.dns:
        return False
    try:
        Dns(lambda: sources.name_servers(config), config.domain).read(
            ServiceQuery(_PROBE), timeout=_DNS_TIMEOUT
        )
    except DiscoveryError:
        return False
    return True


# --- the environment -----------------------------------------------------------------------------------


def _environment(env: Mapping[str, str]) -> tuple[list[Finding], Config, bool]:
    """Judge each variable by itself; return the settings that can be used, and whether some cannot."""
    findings: list[Finding] = []
    broken = False
    usable: dict[str, str] = {key: env[key] for key in ("HOME", "XDG_CACHE_HOME") if key in env}
    ours = {key: value for key, value in env.items() if key.startswith(("CONSUL_", "DISCOVERY_")) and value}
    for variable, value in sorted(ours.items()):
        problem, is_setting = _why_not(variable, value)
        if problem is None or not is_setting:
            usable[variable] = value  # a service that is fixed wrongly breaks its own lookups alone
        if problem is not None:
            findings.append(problem)
            broken = broken or is_setting
            continue
        finding = _file(variable, value) if variable in _FILES else None
        if finding is None and variable.startswith("CONSUL_"):
            finding = doctor.judge_spelling(variable, _OURS | _FOREIGN)
        if finding is not None:
            findings.append(finding)
    if ours.get("CONSUL_CLIENT_CERT") and not ours.get("CONSUL_CLIENT_KEY"):
        findings.append(
            Finding(
                "environment",
                "warning",
                "CONSUL_CLIENT_CERT is set without CONSUL_CLIENT_KEY: the file must hold the key as well.",
                "Set CONSUL_CLIENT_KEY to the file with the certificate's key.",
            )
        )
    if not findings:
        said = f"{' and '.join(sorted(ours))} {'is' if len(ours) == 1 else 'are'} set, and can be used."
        nothing = "No CONSUL_* and no DISCOVERY_* variable is set: the defaults hold."
        findings.append(Finding("environment", "ok", said if ours else nothing))
    return findings, Config.from_env(usable), broken


def _why_not(variable: str, value: str) -> tuple[Finding | None, bool]:
    """Say why a variable cannot be used, and whether it is a setting; else it fixes a service."""
    is_setting = variable.startswith("CONSUL_") or variable in _SETTINGS
    try:
        config = Config.from_env({variable: value})
        sources.catalogue(config).close()  # which reads the name servers
        balance.strategy(str(config.strategy), random.randrange)
        if not is_setting:
            stem = variable.removeprefix("DISCOVERY_")
            name = ServiceName(stem.lower().replace("_", "-"))
            Static({stem: value}).entries(ServiceQuery(name))
    except ConfigurationError as exc:
        spelling = doctor.judge_spelling(variable, _SETTINGS)
        return _wrong(exc, spelling.advice if spelling else ""), is_setting
    return None, is_setting


def _wrong(exc: ConfigurationError, advice: str = "") -> Finding:
    said, _, better = str(exc).partition("; ")
    if not better:
        said, _, better = said.partition(": ")
    return Finding("environment", "problem", f"{said}.", advice or f"{better[:1].upper()}{better[1:]}.")


def _file(variable: str, value: str) -> Finding | None:
    try:
        os.close(os.open(value, os.O_RDONLY))
    except OSError as exc:
        said = f"{variable}={value!r} cannot be read: {(exc.strerror or str(exc)).lower()}."
        return Finding("environment", "problem", said, f"Correct {variable}, or unset it.")
    return None


# --- the package ---------------------------------------------------------------------------------------


def _package(path: Sequence[str]) -> Finding:
    home = str(discovery.__file__)
    spec = PathFinder.find_spec("discovery", list(path))
    found = spec.origin if spec is not None else None
    if found is not None and Path(found).resolve() == Path(home).resolve():
        found = home
    try:
        installed = metadata.distribution("portcall")
    except metadata.PackageNotFoundError:
        return doctor.judge_package(home, "(not installed)", found)
    others = {dist.name for dist in metadata.distributions() if dist.name != "portcall" and _has_ours(dist)}
    return doctor.judge_package(home, installed.version, found, others=others, changed=_changed(installed))


def _has_ours(distribution: metadata.Distribution) -> bool:
    """Say whether *distribution* installs a package named as ours.

    By the text of its lists: parsing those of every installed distribution takes a second.
    """
    if "discovery" in (distribution.read_text("top_level.txt") or "").split():
        return True
    return "\ndiscovery/__init__.py," in "\n" + (distribution.read_text("RECORD") or "")


def _changed(installed: metadata.Distribution) -> list[str]:
    """Return the files of our package that differ from its RECORD (PyPA: "Recording installed projects")."""
    changed = []
    for file in installed.files or ():
        if file.parts[0] == "discovery" and file.hash is not None:
            try:
                digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
            except OSError:
                changed.append(str(file))
                continue
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                changed.append(str(file))
    return changed


# --- the sources, in order -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where an address comes from."""

    name: str
    chosen: bool
    """By somebody; else it is a guess."""


def _sources(
    machine: Machine, config: Config, chain: Chain, name: str | None, chosen_by: str
) -> Iterator[tuple[Finding, bool]]:
    """Ask each source by itself; yield what is found, and whether it matters though another one answers."""
    query = ServiceQuery(service_name(name), config.dc) if name is not None else None
    statics = [link.catalogue for link in chain.links if isinstance(link.catalogue, Static)]
    yield _static(statics[0] if statics else None, query), True
    shares = [link.catalogue for link in chain.links if isinstance(link.catalogue, Shared)]
    yield _shared(config, shares[0] if shares else None), True
    consuls = [getattr(link.catalogue, "inner", link.catalogue) for link in chain.links]
    for n, consul in enumerate(found for found in consuls if isinstance(found, Consul)):
        chosen = config.consul.explicit
        guess = "the default gateway of this container" if n else "the default"
        origin = _Origin(chosen_by if chosen else guess, chosen)
        for finding in _consul(machine, consul.config, query or NamesQuery(config.dc), origin):
            yield finding, chosen or finding.about != "consul"
    yield from _dns(machine, config, query)
    yield _disk(chain, query), True


def _static(static: Static | None, query: ServiceQuery | None) -> Finding:
    if static is None:
        return Finding(
            "static", "ok", "Nothing is fixed: neither DISCOVERY_STATIC nor DISCOVERY_<NAME> is set."
        )
    if query is None:
        return Finding("static", "ok", f"Some services are fixed, by {static.where}.")
    try:
        entries = static.entries(query)
    except ConfigurationError as exc:
        return replace(_wrong(exc), about="static")
    if entries is None:
        return Finding(
            "static", "ok", f"{query.name!r} is not among the services that are fixed by {static.where}."
        )
    by = f"DISCOVERY_{env_name(query.name)} or {static.where}"
    return Finding(
        "static",
        "ok",
        f"{query.name!r} is fixed by {by}: {len(entries)} to choose from; nobody else is asked.",
    )


def _shared(config: Config, shared: Shared | None) -> Finding:
    if shared is None:
        return Finding(
            "shared", "ok", "Watches are not shared with other processes: DISCOVERY_SHARE says off."
        )
    if problem := _unwritable(shared.directory):
        return Finding(
            "shared",
            "warning",
            f"Nothing can be shared through {shared.directory}: {problem}; each process watches by itself.",
            "Make that directory this user's alone (mode 700), or name another one in DISCOVERY_SHARE.",
        )
    return Finding("shared", "ok", f"Processes of this user share their watches through {shared.directory}.")


def _disk(chain: Chain, query: ServiceQuery | None) -> Finding:
    disk = chain.disk
    if disk is None:
        return Finding(
            "disk",
            "warning",
            "Nothing is written down: a program that starts during an outage knows no service.",
            "Set DISCOVERY_CACHE to a directory (unset, it needs HOME or XDG_CACHE_HOME).",
        )
    if problem := _unwritable(disk.directory):
        return Finding(
            "disk",
            "warning",
            f"Nothing can be written down in {disk.directory}: {problem}; a program that starts "
            "during an outage knows no service.",
            "Make that directory this user's alone (mode 700), or name another one in DISCOVERY_CACHE.",
        )
    recalled = disk.recall(query) if query is not None else None
    if recalled is None:
        return Finding("disk", "ok", f"What is known is written down in {disk.directory}.")
    said = (
        f"{len(recalled.value)} of them are written down in {disk.directory}, as of {ago(recalled.age)} ago."
    )
    return Finding("disk", "ok", said)


def _unwritable(directory: str) -> str:
    """Say why nothing can be written into *directory*; empty when something can."""
    probe = f"doctor.{os.getpid()}"
    try:
        with private.opened(directory, create=True) as opened:
            private.write(opened, probe, b"")
            os.unlink(probe, dir_fd=opened)
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()
    return ""


# --- one Consul agent ----------------------------------------------------------------------------------


def _consul(machine: Machine, consul: ConsulConfig, query: Query, origin: _Origin) -> Iterator[Finding]:
    """Ask one agent who it is, whether it can work, and for the service."""
    connection = Connection(consul)
    try:
        yield from _agent(machine, consul, _Questions(connection, consul, machine.clock), query, origin)
    except ConfigurationError as exc:
        yield replace(_wrong(exc), about="consul")
    finally:
        connection.close()


class _Questions:
    """Questions to one agent, and when each was asked and answered."""

    def __init__(self, connection: Connection, consul: ConsulConfig, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self.token = bool(consul.token or consul.token_file)
        self.seconds = 0.0
        """How long the last one took."""
        self.skew: Skew | None = None
        self.filtered = False
        """Whether the agent has said that its ACLs leave something out."""

    def ask(self, question: Request) -> Any:
        """Return the JSON of the answer; errors are those of ``Connection.call``."""
        asked, started = self._clock(), time.monotonic()
        reply = self._connection.call(question, timeout=_HTTP_TIMEOUT)
        self.seconds = time.monotonic() - started
        self.filtered = reply.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true"
        try:
            agent = parsedate_to_datetime(reply.headers.get("Date", "")).timestamp()
        except ValueError:
            return reply.raw  # it tells no time
        self.skew = Skew(agent, asked, self._clock())
        return reply.raw

    def value(self, query: Query) -> Any:
        """Ask as a lookup does; return what *query* documents."""
        raw = self.ask(codec.query_request(query))
        try:
            return codec.query_value(query, raw)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise RegistryUnavailable(f"the answer is not of Consul's form ({exc!r})") from exc


def _agent(
    machine: Machine, consul: ConsulConfig, questions: _Questions, query: Query, origin: _Origin
) -> Iterator[Finding]:
    where = f"{consul.url} ({origin.name})"
    # 1. Does it answer at all? This needs no permission.
    try:
        leader = str(questions.ask(codec.request("GET", "status/leader")) or "")
    except RegistryOverloaded:
        yield doctor.judge_connections(_connections(machine, consul), doctor.DEFAULT_CONNECTIONS)
        return
    except (RegistryUnavailable, RegistryError) as exc:
        if not _is_leaderless(exc):
            yield _unreachable(where, str(exc), origin)
            return
        leader = ""
    # 2. What a lookup asks.
    found: Any = None
    trouble: RegistryUnavailable | RegistryError | None = None
    try:
        found = questions.value(query)
    except (RegistryUnavailable, RegistryError) as exc:
        trouble = exc
        leader = "" if _is_leaderless(exc) else leader
    took, filtered = questions.seconds, questions.filtered
    # 3. Who it is.
    raw: Any = None
    refused: AccessDenied | None = None
    try:
        raw = questions.ask(codec.request("GET", "agent/self"))
    except AccessDenied as exc:
        refused = exc
    except (RegistryUnavailable, RegistryError):
        pass  # what a lookup needs has been asked for, and this is not that
    yield _answers(where, str(_part(raw, "Config").get("Version") or ""), query, found, took)
    if trouble is not None and leader and not isinstance(trouble, AccessDenied):
        said = f"{where} does not answer what a lookup asks: {trouble}."
        yield Finding("consul", "problem", said, "Look at what the agent logs: `consul monitor`.")
    access = _access(
        questions, query, trouble, refused, hidden=filtered, nothing=found is not None and not found
    )
    if access is not None:
        yield access
    yield doctor.judge_leader(leader)
    if questions.skew is not None:
        yield doctor.judge_clock(questions.skew)
    yield _place(consul, raw)
    if not consul.socket_path:
        limit = _part(raw, "DebugConfig").get("HTTPMaxConnsPerClient")
        limit = limit if isinstance(limit, int) and limit > 0 else doctor.DEFAULT_CONNECTIONS
        yield doctor.judge_connections(_connections(machine, consul), limit)


def _access(
    questions: _Questions,
    query: Query,
    trouble: Exception | None,
    refused: AccessDenied | None,
    *,
    hidden: bool,
    nothing: bool,
) -> Finding | None:
    """Judge what the ACLs allow.

    Args:
        trouble: why there was no answer to *query*.
        refused: why the agent did not say who it is.
        hidden: it has said that it hid something.
        nothing: the answer to *query* was empty.
    """
    if isinstance(trouble, AccessDenied):
        path = codec.query_request(query).target.partition("?")[0]
        return doctor.judge_access(
            trouble.body, path=path, token=questions.token, needed="service:read node:read"
        )
    if hidden or (nothing and _sees_nothing(questions, query)):
        return doctor.judge_hidden(token=questions.token)
    if refused is None:
        return None
    finding = doctor.judge_access(
        refused.body, path="/v1/agent/self", token=questions.token, needed="agent:read"
    )
    return replace(finding, level="warning", says=f"{finding.says} Lookups do not need that.")


def _sees_nothing(questions: _Questions, query: Query) -> bool:
    """Say whether not one service can be seen: every cluster has one, consul.

    What ACLs hide is not refused; the answer is empty, and only newer releases say so in a header.
    """
    try:
        return not questions.value(NamesQuery(query.dc))
    except (RegistryUnavailable, RegistryError):
        return False


def _is_leaderless(error: Exception) -> bool:
    return any(words in str(error) for words in _NO_LEADER)


def _part(raw: Any, key: str) -> Mapping[str, Any]:
    """Return the object *key* of ``/v1/agent/self``; empty where there is none."""
    part = raw.get(key) if isinstance(raw, dict) else None
    return part if isinstance(part, dict) else {}


def _unreachable(where: str, trouble: str, origin: _Origin) -> Finding:
    reason = trouble.partition("GET /v1/status/leader: ")[2] or trouble
    if origin.chosen:
        advice = f"Correct {origin.name}, or start the agent there."
        return Finding("consul", "problem", f"{where} cannot be asked: {reason}.", advice)
    advice = "Start a Consul agent there, or set CONSUL_HTTP_ADDR to the address of one."
    return Finding("consul", "warning", f"{where} cannot be asked: {reason}.", advice)


def _answers(where: str, version: str, query: Query, found: Any, took: float) -> Finding:
    agent = f"Consul {version}" if version else "An agent"
    if not isinstance(query, ServiceQuery) or found is None:  # nobody asked for one, or it was refused
        said = f"{agent} answers at {where}."
    else:
        healthy = sum(entry.status != "critical" for entry in found)
        count = f"{healthy} of {len(found)} instances of {query.name!r} are healthy"
        said = f"{agent} answers at {where}: {count}."
    return Finding("consul", "ok", said, seconds=took)


def _place(consul: ConsulConfig, raw: Any) -> Finding:
    advertised = str(_part(raw, "Member").get("Addr") or "")
    node = str(_part(raw, "Config").get("NodeName") or "")
    here = _is_here(advertised) or node.partition(".")[0] == socket.gethostname().partition(".")[0]
    return doctor.judge_place(consul.url, advertised, reached=_reached(consul), advertised_here=here)


def _reached(consul: ConsulConfig) -> doctor.Reached:
    addresses = {address for address, _ in _addresses(consul)}
    if consul.socket_path or any(map(_is_here, addresses)):
        return "here"
    return "gateway" if sources._in_container() and sources._gateway() in addresses else "network"


def _is_here(address: str) -> bool:
    """Say whether *address* is one of this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def _addresses(consul: ConsulConfig) -> set[tuple[str, int]]:
    if consul.socket_path:
        return set()
    try:
        found = socket.getaddrinfo(consul.host, consul.port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(str(address[0]), consul.port) for *_, address in found}


def _connections(machine: Machine, consul: ConsulConfig) -> int:
    places = _addresses(consul)
    count = 0
    for table_of in machine.connections:
        try:
            text = table_of.read_text(encoding="ascii")
        except OSError:
            continue  # no such family here, or not Linux
        count += doctor.connections_to(text, places)
    return count


# --- DNS -----------------------------------------------------------------------------------------------


def _dns(machine: Machine, config: Config, query: ServiceQuery | None) -> Iterator[tuple[Finding, bool]]:
    if not config.dns:
        yield Finding("dns", "ok", "DNS is not asked: DISCOVERY_DNS says off."), True
        return
    label = dns_label_problem(query.name) if query is not None else None
    if query is not None and label is not None:
        yield Finding("dns", "ok", f"DNS cannot carry the name {query.name!r}: {label}."), True
    asked = query if query is not None and label is None else ServiceQuery(_PROBE, config.dc)
    try:
        conf = ResolvConf.from_text(machine.resolv_conf.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        conf = ResolvConf()
    knows: dict[str, bool] = {}
    for server in machine.name_servers(config):
        if chosen := str(server) in config.dns or server.host in config.dns:
            origin = _Origin("DISCOVERY_DNS", chosen)
        else:
            # Those of resolv.conf come first; the same host at another port is a guess again.
            listed = server.host in conf.servers and server.host not in knows
            origin = _Origin("resolv.conf" if listed else "a guess", chosen)
        answered, finding = _name_server(server, origin, config.domain, asked, told=query is not None)
        knows.setdefault(server.host, answered)
        yield finding, chosen
    if not any(knows.get(server) for server in conf.servers):
        said = f"No name server in resolv.conf knows {config.domain}: services have no host names here."
        yield Finding("search", "ok", said), True
        return
    yield doctor.judge_search(conf, config.domain), True
    libc = doctor.judge_libc(conf, knows, musl=machine.musl, domain=config.domain)
    if libc is not None:
        yield libc, True


def _name_server(
    server: Server, origin: _Origin, domain: str, query: ServiceQuery, *, told: bool
) -> tuple[bool, Finding]:
    """Ask one name server; say whether it answers for *domain*, and what is to be said of it.

    Args:
        told: somebody wants to know how many instances it tells of.
    """
    where = f"{server} ({origin.name})"
    started = time.monotonic()
    try:
        reply = Dns(lambda: [server], domain).read(query, timeout=_DNS_TIMEOUT)
    except RegistryUnavailable as exc:
        reason = exc.attempts[0].error if exc.attempts else str(exc)
        if origin.chosen:
            advice = "Name portcall's resolver or Consul's DNS in DISCOVERY_DNS."
        elif origin.name == "resolv.conf":
            advice = (
                "Let it be portcall's resolver, or forward that domain to one: docker run --dns 172.17.0.1."
            )
        else:
            advice = "Start portcall's resolver, or a Consul agent."
        said = f"{where} does not answer for {domain}: {reason}."
        level: doctor.Level = "problem" if origin.chosen else "warning"
        return False, Finding("dns", level, said, advice, time.monotonic() - started)
    took = time.monotonic() - started
    if reply.error is not None:
        said = f"{where} answers what it knew: it cannot reach the registry."
        return True, Finding("dns", "warning", said, "Look at the registry behind it.", took)
    count = f" and {len(reply.value)} instances of {query.name!r}" if told else ""
    return True, Finding("dns", "ok", f"{where} knows the domain {domain}{count}.", seconds=took)


def _sentence(exc: DiscoveryError) -> str:
    said = plain(str(exc))
    return f"{said[:1].upper()}{said[1:]}{'' if said.endswith(('.', '?')) else '.'}"
