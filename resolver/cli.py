"""The command line: ``resolver run``, ``resolver query``, ``resolver explain``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from discovery.backends import open_backend
from discovery.config import Config
from discovery.errors import ConfigurationError, DiscoveryError
from resolver.config import Endpoint, Settings, apply_agent_config, read_agent_config
from resolver.forward import Upstream
from resolver.server import Resolver

__all__ = ["main"]

log = logging.getLogger("resolver")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
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
        return 1
    except BrokenPipeError:  # `resolver query ... | head`
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
        "--consul", metavar="URL", help="the agent to follow; default: CONSUL_HTTP_ADDR, else local"
    )
    run.add_argument(
        "--upstream",
        action="append",
        metavar="IP[:PORT]",
        help="where other names are asked, in this order; default: /etc/resolv.conf",
    )
    run.add_argument("--config", type=Path, metavar="FILE", help="Consul agent configuration (JSON)")
    run.add_argument("--max-stale", type=float, metavar="SECONDS", help="give last-known answers for so long")
    return parser


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    config = Config.from_env(idle=settings.idle)
    if options.consul:
        config = replace(config, consul=config.consul.at(options.consul, origin="--consul"))
    backend = open_backend("consul://", config)
    resolver = Resolver(settings, backend, config=config)

    def ready() -> None:
        log.info("answering on %s, following %s", ", ".join(map(str, resolver.addresses)), backend.where)

    try:
        resolver.run(ready)
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
    if options.listen:
        listen = tuple(Endpoint.from_text(one, origin="--listen") for one in options.listen)
        settings = replace(settings, listen=listen)
    if options.upstream:
        found = (Endpoint.from_text(one, origin="--upstream") for one in options.upstream)
        settings = replace(settings, upstreams=tuple(Upstream(one.host, one.port) for one in found))
    if options.max_stale is not None:
        if not options.max_stale >= 0:
            raise ConfigurationError(
                f"--max-stale={options.max_stale!r} is not possible: give seconds from 0"
            )
        settings = replace(settings, max_stale=options.max_stale)
    return settings
