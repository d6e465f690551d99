"""The ``registrar`` command.

    registrar run [options] [URI]               keep the registry in step with Docker
    registrar [options] URI                     the same, as Registrator is called
    registrar plan [--json] [options] [URI]     what would be written; writes nothing
    registrar explain CONTAINER [--json] ...    which rule gives each value
    registrar up [options] [URI]                registrar and resolver in one process
    registrar bootstrap HOST_IP[:JOIN_IP]       the commands that bring up one host

Exit codes: 0 ok (``plan``: in step), 1 a fault, or values that exclude each other, 2 wrong usage (``plan``:
there are differences).
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final, NoReturn

from discovery.backends import open_backend
from discovery.errors import ConfigurationError, DiscoveryError
from registrar.config import Settings, Unusable, add_options, normalised, settings_from
from registrar.containers import Container
from registrar.desired import Decision, Desired, Host, desire
from registrar.docker import Docker
from registrar.monitor import Monitor
from registrar.owner import Owner, owner_name
from registrar.picture import Picture
from registrar.plan import Plan, plan
from registrar.reconcile import Reconciler
from registrar.status import describe_end

__all__ = ["Parser", "main", "obey_signals"]

DIFFERENCES: Final = 2
"""Exit code of ``plan`` when the agent is not in step."""


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see '{self.prog} --help'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (``sys.argv`` when None) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(arguments)
    except ConfigurationError as exc:
        print(f"registrar: {exc}", file=sys.stderr)
        return 1 if isinstance(exc, Unusable) else 2
    except DiscoveryError as exc:
        print(f"registrar: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our pipe left (``registrar plan | head``); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"portcall {version('portcall')}")
        return 0
    if arguments and arguments[0] == "up":
        # By name: the other commands neither need nor load the resolver.
        up: Callable[[list[str]], int] = import_module("registrar.up").main
        return up(arguments[1:])
    named = bool(arguments) and arguments[0] in COMMANDS
    command = arguments[0] if named else "run"
    # Intermixed: ``explain web --json consul://...`` has an option between its two positional arguments.
    options = _parser(command).parse_intermixed_args(normalised(arguments[named:]))
    if command == "run":
        _check_order(arguments, options.uri, required=not named)
    return COMMANDS[command](options)


def _parser(command: str) -> argparse.ArgumentParser:
    description, _, _ = (__doc__ or "").partition("Exit codes")
    parser = Parser(
        prog=f"registrar {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command == "bootstrap":
        parser.add_argument("host", metavar="HOST_IP[:JOIN_IP]", help="this host, and a host of the cluster")
        return parser
    if command == "explain":
        parser.add_argument("container", metavar="CONTAINER", help="name or id")
    if command in ("explain", "plan"):
        parser.add_argument("--json", action="store_true", help="for scripts")
    add_options(parser)
    return parser


def _check_order(arguments: Sequence[str], uri: str | None, *, required: bool) -> None:
    """Hold to Registrator's usage: options first, then exactly one URI."""
    if uri is None and required:
        raise ConfigurationError("the registry URI is missing; end with for example consul://127.0.0.1:8500")
    if uri is not None and arguments[-1] != uri:
        raise ConfigurationError(
            f"options come before the registry URI, and {uri!r} is not the last argument"
        )


# --- run -----------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    settings = settings_from(options, os.environ)
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr
    )
    logging.getLogger("registrar").setLevel(logging.INFO)
    with ExitStack() as stack:
        backend = stack.enter_context(closing(open_backend(settings.uri, settings.discovery)))
        engine = stack.enter_context(closing(Docker()))
        reconciler = Reconciler(engine, backend, settings, hostname=socket.gethostname())
        if settings.metrics:
            stack.enter_context(Monitor(reconciler, *settings.metrics))
        obey_signals(reconciler)
        reconciler.run()
    return 0


def obey_signals(reconciler: Reconciler) -> None:
    """SIGTERM and SIGINT end the process, SIGHUP has it look at everything.

    A signal handler runs in the middle of the main thread, which may hold the very locks that ``stop``
    needs: a thread of its own does it.
    """

    def on(number: int, act: Callable[[], None]) -> None:
        signal.signal(number, lambda *_: threading.Thread(target=act, daemon=True).start())

    on(signal.SIGTERM, reconciler.stop)
    on(signal.SIGINT, reconciler.stop)
    on(signal.SIGHUP, reconciler.look)


# --- plan and explain ----------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> int:
    settings = settings_from(options, os.environ)
    with closing(open_backend(settings.uri, settings.discovery)) as backend, closing(Docker()) as engine:
        owner = _owner(settings, engine)
        picture = Picture()
        picture.replace(backend.registered(), owner)
        host = Host(owner, backend.agent().address)
        containers = (engine.inspect(summary.id) for summary in engine.list())
        desired = [_desire(container, settings, host, picture) for container in containers if container]
        made = plan(
            [registration for one in desired for registration in one.registrations],
            picture.everything(),
            owner,
            default_ids={service_id for one in desired for service_id in one.default_ids},
        )
    problems = [problem for one in desired for problem in one.problems]
    if options.json:
        print(
            json.dumps({**_plan_to_json(made), "problems": [str(problem) for problem in problems]}, indent=2)
        )
    else:
        print("\n".join(_plan_to_text(made)))
        for problem in problems:
            print(f"registrar: {problem}", file=sys.stderr)
    return 0 if made.in_step else DIFFERENCES


def _plan_to_json(made: Plan) -> dict[str, Any]:
    return {
        "in_step": made.in_step,
        "register": [_registration_to_json(w) for w in made.writes if not w.changes],
        "change": [
            {**_registration_to_json(w), "changes": list(w.changes)} for w in made.writes if w.changes
        ],
        "deregister": [_registration_to_json(removal) for removal in made.removals],
        "refused": [{**_registration_to_json(r), "reason": str(r)} for r in made.refusals],
    }


def _registration_to_json(item: Any) -> dict[str, Any]:
    registration = item.registration
    return {
        "id": registration.id,
        "name": registration.name,
        "address": registration.address,
        "port": registration.port,
        "tags": list(registration.tags),
        "meta": dict(registration.meta),
    }


def _plan_to_text(made: Plan) -> Iterable[str]:
    rows = [
        *(("register", w.registration, "") for w in made.writes if not w.changes),
        *(("change", w.registration, ", ".join(w.changes)) for w in made.writes if w.changes),
        *(("deregister", removal.registration, "") for removal in made.removals),
        *(("refuse", refusal.registration, str(refusal)) for refusal in made.refusals),
    ]
    if not rows:
        return ["in step: nothing to write"]
    return _table(
        ["", "SERVICE", "ID", "ADDRESS", ""],
        [
            [what, registration.name, registration.id, f"{registration.address}:{registration.port}", note]
            for what, registration, note in rows
        ],
    )


def _explain(options: argparse.Namespace) -> int:
    settings = settings_from(options, os.environ)
    with closing(open_backend(settings.uri, settings.discovery)) as backend, closing(Docker()) as engine:
        owner = _owner(settings, engine)
        container = engine.inspect(options.container)
        if container is None:
            raise ConfigurationError(f"there is no container {options.container!r}; see 'docker ps --all'")
        picture = Picture()
        address = ""
        try:
            address = backend.agent().address
            picture.replace(backend.registered(), owner)
        except DiscoveryError as exc:
            # Nearly all can be explained without it.
            print(f"registrar: without the agent, its address in checks is missing: {exc}", file=sys.stderr)
        desired = _desire(container, settings, Host(owner, address), picture)
    if options.json:
        print(json.dumps(_desired_to_json(desired), indent=2))
    else:
        print("\n".join(_desired_to_text(desired)))
    return 0


def _owner(settings: Settings, engine: Docker) -> Owner:
    info = engine.connect()
    return Owner(owner_name(settings.owner, socket.gethostname(), info.name), info.id)


def _desire(container: Container, settings: Settings, host: Host, picture: Picture) -> Desired:
    previous = picture.of(container.id)
    return desire(container, settings.rules, host, previous=previous, now=time.time_ns())


def _desired_to_json(desired: Desired) -> dict[str, Any]:
    return {
        "container": desired.container.name,
        "id": desired.container.id,
        "ports": [
            {
                "port": str(decision.port),
                "registered": decision.registration is not None,
                "reason": decision.reason,
                "values": [
                    {"field": choice.field, "value": choice.value, "rule": choice.rule}
                    for choice in decision.choices
                ],
            }
            for decision in desired.decisions
        ],
        "kept": [registration.id for registration in desired.kept],
        "problems": [str(problem) for problem in desired.problems],
    }


def _desired_to_text(desired: Desired) -> Iterable[str]:
    container: Container = desired.container
    yield f"container {container.name} ({container.id[:12]}), image {container.image}"
    if not desired.decisions:
        yield "  it exposes and publishes no port, so there is nothing to register"
    for decision in desired.decisions:
        yield from _decision_to_text(decision)
    for registration in desired.kept:
        yield f"kept: {registration.id} stays registered, as critical: {describe_end(container)}"
    for problem in desired.problems:
        yield f"problem: {problem}"


def _decision_to_text(decision: Decision) -> Iterable[str]:
    state = "registered" if decision.registration else "not registered"
    yield f"port {decision.port}: {state}: {decision.reason}"
    if decision.choices:
        rows = [[choice.field, choice.value, choice.rule] for choice in decision.choices]
        yield from (f"  {line}" for line in _table(["VALUE", "IS", "BECAUSE OF"], rows))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


# --- bootstrap -----------------------------------------------------------------------------------------


def _bootstrap(options: argparse.Namespace) -> int:
    host, _, join = options.host.partition(":")
    for address in (host, join) if join else (host,):
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise ConfigurationError(
                f"{address!r} in {options.host!r} is no IPv4 address; write for example 10.0.0.3:10.0.0.4"
            ) from None
    print(_BOOTSTRAP.format(host=host, how=f"-retry-join={join}" if join else "-bootstrap-expect=1"))
    return 0


# The agent and the resolver use the host's network: the agent must see itself at the address that it
# advertises, and the resolver binds docker0.
_BOOTSTRAP: Final = """\
: "${{PORTCALL_IMAGE:=portcall}}" "${{CONSUL_IMAGE:=hashicorp/consul}}"
DOCKER0=$(docker network inspect bridge --format '{{{{(index .IPAM.Config 0).Gateway}}}}')

docker run -d --name consul -h "$(hostname)" --net host --restart always \\
    -v consul-data:/consul/data "$CONSUL_IMAGE" \\
    agent -server {how} -data-dir=/consul/data -bind={host} -advertise={host} -client=0.0.0.0

docker run -d --name registrator -h registrator --restart always \\
    -v /var/run/docker.sock:/tmp/docker.sock "$PORTCALL_IMAGE" \\
    registrar run consul://{host}:8500

docker run -d --name resolver --net host --restart always "$PORTCALL_IMAGE" \\
    resolver run --listen "$DOCKER0:53" --consul http://{host}:8500

# Then, for containers: docker run --dns "$DOCKER0" --dns-search service.consul ..."""


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "run": _run,
    "plan": _plan,
    "explain": _explain,
    "bootstrap": _bootstrap,
}
