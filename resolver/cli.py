"""The command line: ``resolver run``, ``resolver query``, ``resolver explain``.

Exit codes: 0 ok, 1 anything unforeseen, 2 wrong usage, 3 no such name or nothing to answer with,
5 no answer: the registry, or the resolver that was asked, is away or failed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode

from discovery import sources
from discovery.backends import open_backend
from discovery.config import Config
from discovery.errors import ConfigurationError, DiscoveryError, RegistryError, RegistryUnavailable
from resolver import host, wire
from resolver.config import (
    Endpoint,
    Settings,
    apply_agent_config,
    forward_from_text,
    read_agent_config,
    upstream_from_text,
)
from resolver.explain import explain
from resolver.failover import Failover
from resolver.policy import Network
from resolver.server import Resolver

__all__ = ["main"]

log = logging.getLogger("resolver")

_NOT_FOUND: Final = 3
_NO_ANSWER: Final = 5
_EXIT_CODES: Final[Mapping[type[DiscoveryError], int]] = {
    ConfigurationError: 2,
    RegistryUnavailable: _NO_ANSWER,
    RegistryError: _NO_ANSWER,
}
_MAX_WAIT: Final = 10.0
"""Seconds that a blocking read may take. An agent that hangs is found out when one is overdue; until then
answers would pass for fresh."""
_MIN_WATCHES: Final = 128
"""Names followed by a blocking read each. Consul accepts 200 connections per address; the resolver answers
for the whole host, so that most of them are its."""
_QUERY_TIMEOUT: Final = 6.0  # s; longer than the resolver itself lets any question take


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        stream=sys.stderr,
    )
    try:
        status: int = options.command(options)
    except DiscoveryError as exc:
        print(f"resolver: {exc}", file=sys.stderr)
        return next((code for kind, code in _EXIT_CODES.items() if isinstance(exc, kind)), 1)
    except BrokenPipeError:
        # The reader of our pipe left (``resolver query web | head``); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resolver", description="Answers *.consul from the live catalogue and forwards everything else."
    )
    parser.add_argument("--verbose", action="store_true", help="log what is decided, not only what changes")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve DNS until SIGTERM")
    run.set_defaults(command=_run)
    run.add_argument(
        "--listen", action="append", metavar="ADDR:PORT", help="repeatable; default: 127.0.0.1:53"
    )
    run.add_argument(
        "--upstream",
        action="append",
        metavar="IP[:PORT]",
        help="where other names are asked, in this order, also tls://IP[:PORT][#NAME]; "
        "default: /etc/resolv.conf",
    )
    run.add_argument(
        "--forward",
        action="append",
        metavar="DOMAIN=IP[:PORT],...",
        help="where names of that domain are asked instead; repeatable",
    )
    run.add_argument(
        "--upstream-ca", type=Path, metavar="FILE", help="authorities for tls:// (PEM); default: the system's"
    )
    run.add_argument(
        "--answer-limit",
        type=int,
        metavar="N",
        help="at most N addresses in an answer; 1 spreads clients that sort what they get",
    )
    run.add_argument(
        "--allow",
        action="append",
        metavar="CIDR",
        help="who may ask; repeatable; default: this host, what is behind its bridges (Docker's networks), "
        "and the networks of the interfaces listened on",
    )
    run.add_argument(
        "--rate", type=int, metavar="N", help="requests a second from one address; 0: any number"
    )
    run.add_argument("--metrics", metavar="ADDR:PORT", help="serve metrics over HTTP, for Prometheus")
    run.add_argument("--query-log", type=int, metavar="N", help="log one request in N")
    run.add_argument(
        "--workers", type=int, metavar="N", help="processes that share the addresses; default: 1"
    )
    run.add_argument(
        "--user",
        metavar="NAME",
        help="whom to become once the ports are bound; default: nobody when started as root",
    )
    run.add_argument("--max-stale", type=float, metavar="SECONDS", help="how long to give last-known answers")

    query = commands.add_parser("query", help="ask a resolver and print what it says")
    query.set_defaults(command=_query)
    query.add_argument("--server", metavar="ADDR:PORT", default="127.0.0.1:53")
    query.add_argument("--tcp", action="store_true")

    why = commands.add_parser("explain", help="say why an instance is in the answer, or why not")
    why.set_defaults(command=_explain)

    for command in (query, why):
        command.add_argument("name", metavar="NAME", help="without a dot: that service")
        command.add_argument("type", metavar="TYPE", nargs="?", default="A")
    for command in (run, why):
        command.add_argument(
            "--consul",
            action="append",
            metavar="URL",
            help="the agent to ask; repeatable, for others of its cluster to go on with when it fails; "
            "default: CONSUL_HTTP_ADDR, else the local one",
        )
        command.add_argument("--config", type=Path, metavar="FILE", help="Consul agent configuration (JSON)")
    return parser


# --- run ---------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    config = _client_config(settings)
    backend = _backend(options, config)
    resolver = Resolver(settings, backend, config=config)

    def ready() -> None:
        listening = ", ".join(map(str, resolver.addresses))
        log.info("answering on %s, following %s", listening, backend.where)

    host.raise_descriptor_limit()
    try:
        resolver.run(ready, user=options.user)
    finally:
        backend.close()
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings: command line over ``--config`` over defaults.

    Raises:
        ConfigurationError: one cannot be used.
    """
    settings = Settings()
    if options.config is not None:
        raw = read_agent_config(options.config)
        settings, warnings = apply_agent_config(settings, raw, origin=str(options.config))
        for warning in warnings:
            log.warning("%s", warning)
    if getattr(options, "listen", None):
        listen = tuple(Endpoint.from_text(one, origin="--listen") for one in options.listen)
        settings = replace(settings, listen=listen)
    if getattr(options, "upstream", None):
        upstreams = tuple(upstream_from_text(one, origin="--upstream") for one in options.upstream)
        settings = replace(settings, upstreams=upstreams)
    if getattr(options, "forward", None):
        routes = dict(forward_from_text(one, origin="--forward") for one in options.forward)
        zone = replace(settings.zone, forwarded=frozenset(routes))
        settings = replace(settings, forward=routes, zone=zone)
    if getattr(options, "upstream_ca", None):
        settings = replace(settings, upstream_ca=options.upstream_ca)
    if getattr(options, "allow", None):
        settings = replace(settings, allow=tuple(_network(one) for one in options.allow))
    if getattr(options, "metrics", None):
        settings = replace(settings, metrics=Endpoint.from_text(options.metrics, origin="--metrics"))
    for name, least in (("rate", 0), ("query_log", 0), ("workers", 1), ("answer_limit", 0)):
        if (number := getattr(options, name, None)) is None:
            continue
        if number < least:
            flag = name.replace("_", "-")
            raise ConfigurationError(f"--{flag}={number} is not possible: give a number from {least}")
        if name == "answer_limit":
            settings = replace(settings, zone=replace(settings.zone, a_record_limit=number))
        else:
            settings = replace(settings, **{name: number})
    if (max_stale := getattr(options, "max_stale", None)) is not None:
        if not max_stale >= 0:
            raise ConfigurationError(f"--max-stale={max_stale!r} is not possible: give seconds from 0")
        settings = replace(settings, max_stale=max_stale)
    return settings


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as exc:
        raise ConfigurationError(f"cannot use --allow {text}: {exc}; write 172.16.0.0/12") from exc


def _client_config(settings: Settings) -> Config:
    """Return how the catalogue is followed: as the environment says, and else as suits a server."""
    env = Config.from_env()
    return replace(
        env,
        idle=settings.idle,
        wait=min(env.wait, _MAX_WAIT),
        max_watches=max(env.max_watches, _MIN_WATCHES),
    )


def _backend(options: argparse.Namespace, config: Config) -> Failover:
    """Return the agents to follow.

    Raises:
        ConfigurationError: an address cannot be used.
    """
    if options.consul:
        chosen = [replace(config, consul=config.consul.at(one, origin="--consul")) for one in options.consul]
        return Failover([open_backend("consul://", one) for one in chosen])
    try:
        return Failover([sources.find(config)])
    except RegistryUnavailable as exc:
        # Started before its agent, as at boot: it will be followed as soon as it comes up.
        log.warning("%s; going on with %s", exc, config.consul.url)
        return Failover([open_backend("consul://", config)])


# --- query, explain ----------------------------------------------------------------------------------------


def _question(options: argparse.Namespace) -> tuple[str, str]:
    """Return name and type as they are asked; a bare word means that service."""
    name = options.name if "." in options.name else f"{options.name}.service.consul"
    try:
        wire.name_from_text(name)
        return name, wire.type_to_text(wire.type_from_text(options.type))
    except wire.Malformed as exc:
        raise ConfigurationError(str(exc)) from exc


def _query(options: argparse.Namespace) -> int:
    name, qtype = _question(options)
    server = Endpoint.from_text(options.server, origin="--server")
    request = dns.message.make_query(name, qtype, use_edns=0, payload=wire.OUR_UDP_SIZE)
    try:
        if options.tcp:
            reply = dns.query.tcp(request, server.host, port=server.port, timeout=_QUERY_TIMEOUT)
        else:
            reply, _ = dns.query.udp_with_fallback(
                request, server.host, port=server.port, timeout=_QUERY_TIMEOUT
            )
    except (OSError, dns.exception.DNSException) as exc:
        print(f"resolver: no answer from {server}: {exc or type(exc).__name__}", file=sys.stderr)
        return _NO_ANSWER
    rcode = dns.rcode.to_text(reply.rcode())
    took = f"{reply.time * 1000:.1f} ms" if reply.time else "no time"
    print(f"{name} {qtype}: {rcode}, {_count(reply)} from {server} in {took}")
    for option in reply.options:
        print(f"  {option.to_text()}")
    for section, rrsets in (
        ("", reply.answer),
        ("authority: ", reply.authority),
        ("also: ", reply.additional),
    ):
        for rrset in rrsets:
            for record in rrset:
                print(f"  {section}{rrset.name} {rrset.ttl} {wire.type_to_text(rrset.rdtype)} {record}")
    if reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return _NO_ANSWER
    return 0 if reply.answer else _NOT_FOUND


def _count(reply: dns.message.Message) -> str:
    count = sum(len(rrset) for rrset in reply.answer)
    truncated = ", truncated" if reply.flags & dns.flags.TC else ""
    return f"{count} {'record' if count == 1 else 'records'}{truncated}"


def _explain(options: argparse.Namespace) -> int:
    name, qtype = _question(options)
    settings = _settings(options)
    backend = _backend(options, _client_config(settings))
    try:
        explanation = explain(name, qtype, backend.read, settings.zone)
    finally:
        backend.close()
    print(f"{name} {qtype}, by the catalogue at {backend.where}")
    for line in explanation.lines:
        print(f"  {line}")
    return 0 if explanation.answered else _NOT_FOUND
