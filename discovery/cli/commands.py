"""What the commands do: each a function of its options that returns the exit code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from discovery.cli.text import Terminal, duration, plain, table, wrapped
from discovery.client import Client
from discovery.config import Config
from discovery.errors import ConfigurationError, NoHealthyInstances, RegistryTimeout
from discovery.model import Instance, Snapshot
from discovery.names import env_name
from discovery.service import Explanation

__all__ = [
    "agent",
    "bench",
    "completion",
    "config_of",
    "doctor",
    "exec_",
    "explain",
    "instance_to_json",
    "lookup",
    "ls",
    "register",
    "snapshot_to_json",
    "wait",
    "watch",
]

_TICK: Final = 1.0  # s between two looks whether somebody still reads what ``watch`` writes


def lookup(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.all:
            instances: Sequence[Instance] = client.lookup_all(options.name, tags=options.tag)
            if not instances:  # most likely this raises the error that says why
                instances = [client.lookup(options.name, tags=options.tag)]
        else:
            instances = [client.lookup(options.name, tags=options.tag)]
    _print_instances(options, instances, one=not options.all)
    return 0


def ls(options: argparse.Namespace) -> int:
    with _client(options) as client:
        names = client.names()
        where = client.where
    if options.json:
        print(json.dumps({name: list(tags) for name, tags in sorted(names.items())}, indent=2))
    elif not names:
        print(f"no services at {where}", file=sys.stderr)
    else:
        rows = [(name, ",".join(tags)) for name, tags in sorted(names.items())]
        _print_lines(table(rows, _terminal().width))
    return 0


def watch(options: argparse.Namespace) -> int:
    from discovery.cli.watching import change_line, show

    with _client(options) as client:
        if options.json:
            for snapshot in _changes(client, options):
                print(json.dumps(snapshot_to_json(snapshot)), flush=True)
        elif _terminal().live:
            # The board says what is wrong; a line of the log would move it on the screen.
            show(client, options.name, options.tag, _terminal())
        else:
            for snapshot in _changes(client, options):
                print(change_line(snapshot), flush=True)
    return 0


def wait(options: argparse.Namespace) -> int:
    with _client(options) as client:
        found = client.wait_for(
            options.name, min_instances=options.min, timeout=options.timeout, tags=options.tag
        )
    _print_instances(options, found)
    return 0


def explain(options: argparse.Namespace) -> int:
    with _client(options) as client:
        explanation = client.explain(options.name, tags=options.tag)
        if not explanation.candidates:
            client.lookup(options.name, tags=options.tag)  # raises the error that offers close names
    usable = sum(candidate.why_not is None for candidate in explanation.candidates)
    if options.json:
        print(json.dumps(_explanation_to_json(explanation), indent=2))
    else:
        _print_lines(_explained(explanation, usable, _terminal()))
    if not usable:
        raise NoHealthyInstances(
            f"none of the {len(explanation.candidates)} instances of {options.name!r} can be used"
        )
    return 0


def doctor(options: argparse.Namespace) -> int:
    from discovery.cli.doctor import run

    return run(options.name, options.consul, as_json=options.json, terminal=_terminal())


def bench(options: argparse.Namespace) -> int:
    from discovery.cli.bench import run

    return run(config_of(options), options.name, as_json=options.json, terminal=_terminal())


def completion(options: argparse.Namespace) -> int:
    from discovery.cli.completion import print_names, script

    if options.shell == "names":
        return print_names(options.consul)
    print(script(options.shell), end="")
    return 0


def exec_(options: argparse.Namespace) -> int:
    if not any(options.command[:1]):  # also '', which no program is called
        raise ConfigurationError(
            "nothing to run: write the command behind --, discovery exec NAME -- CMD ..."
        )
    with _client(options) as client:
        instance = client.lookup(options.name, tags=options.tag)
    _warn_of_stale([instance])
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


def register(options: argparse.Namespace) -> int:
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


def agent(options: argparse.Namespace) -> int:
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


def config_of(options: argparse.Namespace) -> Config:
    """Return the environment's settings with those of the command line."""
    config = Config.from_env()
    if options.consul:
        config = config.but(consul=config.consul.at(options.consul, origin="--consul"))
    return config.but(dc=options.dc) if getattr(options, "dc", None) else config


def _client(options: argparse.Namespace) -> Client:
    config = config_of(options)
    # A person waits at a prompt, not in a request: patience is cheaper here than a wrong answer.
    return Client(config, timeout=max(config.timeout, 5.0))


def _changes(client: Client, options: argparse.Namespace) -> Iterator[Snapshot]:
    """Follow a service. Once something is known an outage does not end that, and is warned of.

    Raises:
        BrokenPipeError: nobody reads the output any more.
    """
    with client.watch(options.name, tags=options.tag) as changes:
        first = changes.next()
        logging.getLogger("discovery").setLevel(logging.WARNING)
        yield first
        reader = select.poll()
        reader.register(sys.stdout, 0)  # that it is gone is always told
        while True:
            try:
                yield changes.next(_TICK)
            except RegistryTimeout:  # nothing has changed; a write, which would tell, may be far off
                if reader.poll(0):
                    raise BrokenPipeError from None
            except StopIteration:
                return


def _terminal() -> Terminal:
    return Terminal(sys.stdout, os.environ)


def _print_lines(lines: Sequence[str]) -> None:
    print("\n".join(lines))


def _warn_of_stale(instances: Sequence[Instance]) -> None:
    if any(instance.stale for instance in instances):
        print("discovery: not confirmed: the registry cannot be asked", file=sys.stderr, flush=True)


def _print_instances(
    options: argparse.Namespace, instances: Sequence[Instance], *, one: bool = False
) -> None:
    _warn_of_stale(instances)
    if options.json:
        rows = [instance_to_json(instance) for instance in instances]
        print(json.dumps(rows[0] if one else rows, indent=2))
    elif options.env:
        for key, value in _environment(options.name, instances).items():
            print(f"{key}={shlex.quote(value)}")
    else:
        for instance in instances:
            print(plain(instance.url() if options.url else str(instance)))


def _explained(explanation: Explanation, usable: int, terminal: Terminal) -> list[str]:
    """Return the explanation for people: who may be returned, who not and why, and who was asked."""
    width = terminal.width
    rows = [("", "INSTANCE", "STATUS", "TAGS", "VERDICT")]
    for candidate in explanation.candidates:
        i, why_not = candidate.instance, candidate.why_not
        verdict = "in" if why_not is None else f"out: {why_not.removeprefix(f'{i.id} ')}"
        rows.append(("*" if why_not is None else "-", str(i), i.status, ",".join(i.tags) or "-", verdict))
    asked = [("ASKED", "TIME", "RESULT")]
    asked += [(a.source, duration(a.elapsed), a.error) for a in explanation.attempts]
    count, name = len(explanation.candidates), plain(explanation.service)
    return [
        *wrapped(f"{name}: a lookup returns one of {usable} in {count}, by {explanation.strategy}", width),
        "",
        *_painted(table(rows, width, wrap=True, yielding=[3]), terminal),
        "",
        *_painted(table(asked, width, wrap=True), terminal),
    ]


def _painted(lines: Sequence[str], terminal: Terminal) -> list[str]:
    """Colour a table: its heading, and the rows by their mark."""
    colours = {"*": "good", "-": "faint"}
    heading, *rows = lines
    return [terminal.paint(heading, "strong"), *(terminal.paint(r, colours.get(r[:1], "")) for r in rows)]


def _explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    return {
        "service": explanation.service,
        "strategy": explanation.strategy,
        "candidates": [
            {"usable": c.why_not is None, "why_not": c.why_not, **instance_to_json(c.instance)}
            for c in explanation.candidates
        ],
        "asked": [
            {"source": a.source, "seconds": round(a.elapsed, 6), "result": a.error}
            for a in explanation.attempts
        ],
    }


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


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return one change of a service, with JSON's types."""
    return {
        "service": snapshot.service,
        "stale": snapshot.stale,
        "instances": [instance_to_json(instance) for instance in snapshot],
        "added": [str(instance) for instance in snapshot.added],
        "removed": [str(instance) for instance in snapshot.removed],
    }


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
    """Turn what asks us to end into an event, so that what was registered is deregistered."""
    stopped = threading.Event()
    asking = [signal.SIGTERM, signal.SIGINT]
    # A lost terminal and Ctrl-\, unless ignored at the start: what runs under ``nohup`` outlives its shell.
    asking += [s for s in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {sig: signal.signal(sig, lambda *_: stopped.set()) for sig in asking}
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
