"""The command line: which commands there are, with which options.

``completion`` writes the shells' scripts from the same parser, so that they never differ from it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence

from discovery.cli import commands

__all__ = ["parser", "run", "subcommands"]

Run = Callable[[argparse.Namespace], int]


def run(arguments: Sequence[str]) -> int:
    """Carry out the command line *arguments* and return its exit code.

    Raises:
        SystemExit: with 2, it cannot be read; with 0, help was all that was asked for.
        DiscoveryError: what the command could not do.
    """
    logging.basicConfig(format="discovery: %(message)s", level=logging.WARNING)
    arguments, command = _split_command(list(arguments))
    options = parser().parse_args(arguments)
    options.command = command
    if not options.lasts:
        logging.getLogger("discovery").setLevel(logging.ERROR)  # the one error that ends it says it all
    runs: Run = options.run
    return runs(options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="discovery",
        description="Find the instances of a service by its name.",
        epilog="The registry is CONSUL_HTTP_ADDR, else 127.0.0.1:8500, else in a container the host's agent. "
        "Exit codes: 0 ok, 2 wrong usage, 3 no such service, 4 no healthy instance, 5 registry down.",
    )
    made = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Run, text: str, *, registry: bool = True, lasts: bool = False
    ) -> argparse.ArgumentParser:
        sub = made.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run, lasts=lasts)
        if registry:
            sub.add_argument("--consul", metavar="ADDR", help="the registry: host:port or a URL")
        return sub

    def name(sub: argparse.ArgumentParser, *, optional: bool = False) -> None:
        said = "a service's name" if optional else "the service's name"
        sub.add_argument("name", metavar="NAME", nargs="?" if optional else None, help=said)

    def data_centre(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--dc", metavar="DC", help="data centre; the agent's own by default")

    def name_and_filters(sub: argparse.ArgumentParser) -> None:
        name(sub)
        sub.add_argument("--tag", action="append", default=[], metavar="T", help="has this tag (repeatable)")
        data_centre(sub)

    def json(sub: argparse.ArgumentParser, text: str = "as JSON") -> None:
        sub.add_argument("--json", action="store_true", help=text)

    def shapes(sub: argparse.ArgumentParser) -> None:
        shape = sub.add_mutually_exclusive_group()
        shape.add_argument("--json", action="store_true", help="as JSON, with all that is known")
        shape.add_argument("--url", action="store_true", help="as http://host:port")
        shape.add_argument(
            "--env", action="store_true", help="as lines for a shell: NAME_HOST=... NAME_PORT=..."
        )

    sub = command("lookup", commands.lookup, "print one instance of a service, or all of them")
    name_and_filters(sub)
    sub.add_argument("--all", action="store_true", help="all healthy instances")
    shapes(sub)

    sub = command("ls", commands.ls, "list all services")
    data_centre(sub)
    json(sub)

    sub = command("watch", commands.watch, "follow the instances of a service until interrupted")
    name_and_filters(sub)
    json(sub, "one JSON object per change")

    sub = command("wait", commands.wait, "wait until a service has healthy instances")
    name_and_filters(sub)
    sub.add_argument("--min", type=int, default=1, metavar="N", help="how many (default 1)")
    sub.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds (default 30)")
    shapes(sub)

    sub = command("explain", commands.explain, "say which instances a lookup may return, and why not others")
    name_and_filters(sub)
    json(sub)

    sub = command("doctor", commands.doctor, "try every source of services, and say what is wrong")
    name(sub, optional=True)
    json(sub)

    sub = command("exec", commands.exec_, "run a command with NAME_HOST and NAME_PORT of an instance set")
    name_and_filters(sub)
    sub.usage = "discovery exec NAME [--tag T] [--dc DC] -- CMD ..."

    sub = command("register", commands.register, "register a command while it runs", lasts=True)
    sub.usage = (
        "discovery register NAME --port P [--address A] [--tag T] [--id ID]\n"
        "                          [--ttl S] [--check-http PATH] [-- CMD ...]"
    )
    name(sub)
    sub.add_argument("--port", type=int, required=True, metavar="P", help="the port that it listens on")
    sub.add_argument("--address", metavar="A", help="where it is reached; the node's address by default")
    sub.add_argument("--tag", action="append", default=[], metavar="T", help="a tag (repeatable)")
    sub.add_argument("--id", metavar="ID", help="the service id; <host>:NAME:P by default")
    sub.add_argument(
        "--ttl", type=float, default=15.0, metavar="S", help="dead after S seconds of silence (15)"
    )
    sub.add_argument("--check-http", metavar="PATH", help="the agent also asks for this path")

    sub = command(
        "agent", commands.agent, "run the embedded agent: one host's registry, in memory", registry=False
    )
    sub.add_argument("--http", default="127.0.0.1:8500", metavar="ADDR:PORT", help="where (127.0.0.1:8500)")
    sub.add_argument("--node", metavar="NAME", help="the node's name; this host's by default")
    sub.add_argument("--advertise", default="127.0.0.1", metavar="IP", help="the node's address (127.0.0.1)")

    sub = command("bench", commands.bench, "measure for two seconds what lookups cost on this machine")
    name(sub, optional=True)
    json(sub)

    sub = command(
        "completion", commands.completion, "print the script that completes this command in a shell"
    )
    sub.add_argument(
        "shell", choices=["bash", "zsh", "fish", "names"], metavar="SHELL", help="bash, zsh or fish"
    )
    sub.epilog = (
        "To load it: source <(discovery completion bash), the same with zsh; "
        "in fish: discovery completion fish | source."
    )
    return whole


def subcommands(whole: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Return the commands of *whole* by name, each with the sentence that helps."""
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (texts[name], sub) for name, sub in action.choices.items()}
    return {}


def _split_command(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split at the first ``--``: what follows is somebody else's command line."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]
