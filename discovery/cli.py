"""The ``discovery`` command: look up, list, watch and register services from a shell.

Exit codes: 0 ok, 1 anything unforeseen, 2 wrong usage, 3 no such service, 4 no healthy instance,
5 the registry cannot be asked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from discovery.client import Client
from discovery.config import Config
from discovery.errors import (
    ConfigurationError,
    DiscoveryError,
    NoHealthyInstances,
    RegistryError,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.model import Instance, Snapshot
from discovery.names import env_name

__all__ = ["main"]

EXIT_CODES: Final[Mapping[type[DiscoveryError], int]] = {
    ConfigurationError: 2,
    ServiceNotFound: 3,
    NoHealthyInstances: 4,
    RegistryUnavailable: 5,
    RegistryError: 5,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (``sys.argv`` when None) and return its exit code."""
    logging.basicConfig(format="discovery: %(message)s", level=logging.WARNING)
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, command = _split_command(arguments)
    options = _parser().parse_args(arguments)
    options.command = command
    if not options.lasts:
        logging.getLogger("discovery").setLevel(logging.ERROR)  # the one error that ends it says it all
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        code = run(options)
        sys.stdout.flush()  # here, where a reader that has left is no error, and not at exit, where it is
        return code
    except DiscoveryError as exc:
        print(f"discovery: {exc}", file=sys.stderr)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(exc, kind)), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our pipe left (``discovery watch web | head``); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _split_command(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split at the first ``--``: what follows is somebody else's command line."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="discovery",
        description="Find the instances of a service by its name.",
        epilog="The registry is CONSUL_HTTP_ADDR, else 127.0.0.1:8500, else in a container the host's agent.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        *,
        registry: bool = True,
        lasts: bool = False,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run, lasts=lasts)
        if registry:
            sub.add_argument("--consul", metavar="ADDR", help="the registry: host:port or a URL")
        return sub

    def name_and_filters(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("name", metavar="NAME", help="the service's name")
        sub.add_argument("--tag", action="append", default=[], metavar="T", help="has this tag (repeatable)")
        sub.add_argument("--dc", metavar="DC", help="data centre; the agent's own by default")

    sub = command("lookup", _lookup, "print one instance of a service, or all of them")
    name_and_filters(sub)
    sub.add_argument("--all", action="store_true", help="all healthy instances")
    shape = sub.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="as JSON, with all that is known")
    shape.add_argument("--url", action="store_true", help="as http://host:port")
    shape.add_argument("--env", action="store_true", help="as lines for a shell: NAME_HOST=... NAME_PORT=...")

    sub = command("ls", _ls, "list all services")
    sub.add_argument("--dc", metavar="DC", help="data centre; the agent's own by default")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = command("watch", _watch, "follow the instances of a service until interrupted", lasts=True)
    name_and_filters(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object per change")

    sub = command("wait", _wait, "wait until a service has healthy instances")
    name_and_filters(sub)
    sub.add_argument("--min", type=int, default=1, metavar="N", help="how many (default 1)")
    sub.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default 30)")

    sub = command("exec", _exec, "run a command with NAME_HOST and NAME_PORT of an instance set")
    name_and_filters(sub)
    sub.usage = "discovery exec NAME [--tag T] [--dc DC] -- CMD ..."

    sub = command("register", _register, "register a command while it runs", lasts=True)
    sub.usage = (
        "discovery register NAME --port P [--address A] [--tag T] [--id ID] [--ttl S] "
        "[--check-http PATH] [-- CMD ...]"
    )
    sub.add_argument("name", metavar="NAME", help="the service's name")
    sub.add_argument("--port", type=int, required=True, metavar="P", help="the port that it listens on")
    sub.add_argument("--address", metavar="A", help="where it is reached; the node's address by default")
    sub.add_argument("--tag", action="append", default=[], metavar="T", help="a tag (repeatable)")
    sub.add_argument("--id", metavar="ID", help="the service id; <host>:NAME:P by default")
    sub.add_argument(
        "--ttl", type=float, default=15.0, metavar="S", help="dead after S seconds of silence (15)"
    )
    sub.add_argument("--check-http", metavar="PATH", help="the agent also asks for this path")

    sub = command("agent", _agent, "run the embedded agent: one host's registry, in memory", registry=False)
    sub.add_argument("--http", default="127.0.0.1:8500", metavar="ADDR:PORT", help="where (127.0.0.1:8500)")
    sub.add_argument("--node", metavar="NAME", help="the node's name; this host's by default")
    sub.add_argument("--advertise", default="127.0.0.1", metavar="IP", help="the node's address (127.0.0.1)")
    return parser


# --- the commands ------------------------------------------------------------------------------------


def _lookup(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.all:
            instances: Sequence[Instance] = client.lookup_all(options.name, tags=options.tag)
            if not instances:  # most likely this raises the error that says why
                instances = [client.lookup(options.name, tags=options.tag)]
        else:
            instances = [client.lookup(options.name, tags=options.tag)]
    if options.json:
        rows = [instance_to_json(instance) for instance in instances]
        print(json.dumps(rows if options.all else rows[0], indent=2))
    elif options.env:
        for key, value in _environment(options.name, instances).items():
            print(f"{key}={shlex.quote(value)}")
    else:
        for instance in instances:
            print(instance.url() if options.url else instance)
    return 0


def _ls(options: argparse.Namespace) -> int:
    with _client(options) as client:
        names = client.names()
        where = client.where
    if options.json:
        print(json.dumps({name: list(tags) for name, tags in sorted(names.items())}, indent=2))
    elif not names:
        print(f"no services at {where}", file=sys.stderr)
    else:
        width = max(map(len, names))
        for name, tags in sorted(names.items()):
            print(f"{name:<{width}}  {','.join(tags)}".rstrip())
    return 0


def _watch(options: argparse.Namespace) -> int:
    with _client(options) as client, client.watch(options.name, tags=options.tag) as changes:
        for snapshot in changes:
            print(
                json.dumps(_snapshot_to_json(snapshot)) if options.json else _change_line(snapshot),
                flush=True,
            )
    return 0


def _wait(options: argparse.Namespace) -> int:
    with _client(options) as client:
        for instance in client.wait_for(
            options.name, min_instances=options.min, timeout=options.timeout, tags=options.tag
        ):
            print(instance)
    return 0


def _exec(options: argparse.Namespace) -> int:
    if not options.command:
        raise ConfigurationError(
            "nothing to run: write the command behind --, discovery exec NAME -- CMD ..."
        )
    with _client(options) as client:
        instance = client.lookup(options.name, tags=options.tag)
    os.environ.update(_environment(options.name, [instance]))
    # Python ignores these, and what is ignored stays so in the command: ``yes | head`` would not end.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(options.command[0], options.command)  # noqa: S606 - the user's own command, without a shell
    except OSError as exc:
        raise ConfigurationError(
            f"cannot run {options.command[0]!r}: {(exc.strerror or '').lower()}"
        ) from exc


def _register(options: argparse.Namespace) -> int:
    with _signals() as stopped, _client(options) as client:
        child = None
        if options.command:
            try:
                child = subprocess.Popen(options.command)  # noqa: S603 - the user's own command
            except OSError as exc:
                raise ConfigurationError(
                    f"cannot run {options.command[0]!r}: {(exc.strerror or '').lower()}"
                ) from exc
        try:
            with client.register(
                options.name,
                port=options.port,
                address=options.address,
                tags=options.tag,
                ttl=options.ttl,
                service_id=options.id,
                check_http=options.check_http,
            ):
                while not stopped.wait(0.1) and (child is None or child.poll() is None):
                    pass
            # Deregistered first, stopped second: nobody is sent to a process that is about to end.
        finally:
            if child is not None:
                _end(child)
        return _exit_code(child, stopped.is_set())


def _agent(options: argparse.Namespace) -> int:
    from discovery.agent import Agent

    with (
        _signals() as stopped,
        Agent(http=_listen_address(options.http), node=options.node, address=options.advertise) as agent,
    ):
        print(f"embedded agent at {agent.url} (in memory, one host); stop it with Ctrl-C", flush=True)
        stopped.wait()
    return 0


# --- helpers -----------------------------------------------------------------------------------------


def _listen_address(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port is not None and parts.netloc == text:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigurationError(
        f"cannot listen at {text!r} from --http; write ADDR:PORT, 127.0.0.1:8500 for example"
    )


def _client(options: argparse.Namespace) -> Client:
    config = Config.from_env()
    # A person waits at a prompt, not in a request: patience is cheaper here than a wrong answer.
    overrides: dict[str, Any] = {"timeout": max(config.timeout, 5.0)}
    if options.consul:
        overrides["consul"] = config.consul.at(options.consul, origin="--consul")
    if getattr(options, "dc", None):
        overrides["dc"] = options.dc
    return Client(config, **overrides)


def instance_to_json(instance: Instance) -> dict[str, Any]:
    """Return all that is known of *instance*, with JSON's types."""
    return {
        "service": instance.service,
        "id": instance.id,
        "host": instance.host,
        "port": instance.port,
        "status": instance.status,
        "tags": list(instance.tags),
        "meta": dict(instance.meta),
        "weight": instance.weight,
        "node": instance.node,
        "dc": instance.dc,
        "source": instance.source,
        "stale": instance.stale,
    }


def _snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "service": snapshot.service,
        "stale": snapshot.stale,
        "instances": [instance_to_json(instance) for instance in snapshot],
        "added": [str(instance) for instance in snapshot.added],
        "removed": [str(instance) for instance in snapshot.removed],
    }


def _change_line(snapshot: Snapshot) -> str:
    """Return one line: the time, what came and went, and how many there are now."""
    changes = [f"+ {i}" for i in snapshot.added] + [f"- {i}" for i in snapshot.removed]
    count = f"{len(snapshot)} instance{'' if len(snapshot) == 1 else 's'}"
    stale = ", not confirmed: the registry cannot be asked" if snapshot.stale else ""
    return f"{time.strftime('%H:%M:%S')}  {'  '.join(changes) or '='}  ({count}{stale})"


def _environment(name: str, instances: Sequence[Instance]) -> dict[str, str]:
    """Return ``NAME_HOST`` and ``NAME_PORT`` of the first instance, and ``NAME_<n>_...`` of the others."""
    stem = env_name(name)
    if stem[0].isdigit():
        stem = f"_{stem}"  # else no shell could read it
    environment = {}
    for n, instance in enumerate(instances):
        prefix = f"{stem}_{n}" if n else stem
        environment[f"{prefix}_HOST"] = instance.host
        environment[f"{prefix}_PORT"] = str(instance.port)
    return environment


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGINT into an event, so that what was registered is deregistered."""
    stopped = threading.Event()
    before = {sig: signal.signal(sig, lambda *_: stopped.set()) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _exit_code(child: subprocess.Popen[bytes] | None, stopped: bool) -> int:
    """Return the child's own exit code; a shell's 128 + signal when a signal ended it and not us."""
    if child is None or stopped:
        return 0
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
