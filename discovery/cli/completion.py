"""Scripts that complete the command's line in bash, zsh and fish, written from the command's own parser.

    source <(discovery completion bash)          the same with zsh; fish: discovery completion fish | source

Laws:
- Names of services come from the registry while somebody waits with a finger on the tab key: they come within
  ``PATIENCE``, or not at all, and no error ever reaches the terminal.
- A completed word ends up in a command line. What is not plainly a word there is not offered, and no shell
  evaluates what a registry told (bash's ``compgen -W`` would).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Final

from discovery.client import Client
from discovery.config import Config
from discovery.errors import DiscoveryError

__all__ = ["print_names", "script"]

PATIENCE: Final = 0.5  # s
_ALARM: Final = 2.0
"""Seconds after which the process ends whatever it is in: only resolving the registry's host name takes
longer than ``PATIENCE``, and that cannot be interrupted otherwise."""
_SAFE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def print_names(consul: str | None) -> int:
    """Print the names of all services that a shell may be given, one on a line."""
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, _ALARM)
    try:
        config = Config.from_env()
        if consul:
            config = config.but(consul=config.consul.at(consul, origin="--consul"))
        with Client(config, timeout=PATIENCE) as client:
            names = client.names()
    except DiscoveryError:
        names = {}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    for name in sorted(filter(_SAFE.fullmatch, names)):
        print(name)
    return 0


def script(shell: str) -> str:
    """Return the script for *shell*: ``bash``, ``zsh`` or ``fish``."""
    from discovery.cli import parser

    commands = [
        _Command(name, text, tuple(_options(sub)), *_positional(sub))
        for name, (text, sub) in parser.subcommands(parser.parser()).items()
    ]
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


@dataclass(frozen=True, slots=True)
class _Option:
    flag: str
    text: str
    metavar: str | None
    """Of its value; None: it takes none."""


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    text: str
    options: tuple[_Option, ...]
    choices: tuple[str, ...] = ()
    """What its first argument is one of."""
    takes_service: bool = False
    """Its first argument is the name of a service that there is."""

    @property
    def runs(self) -> bool:
        """Whether another command line follows behind ``--``."""
        return self.name in ("exec", "register")


def _options(sub: argparse.ArgumentParser) -> Iterator[_Option]:
    for action in sub._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                metavar = None if action.nargs == 0 else action.metavar or action.dest
                yield _Option(flag, action.help or "", str(metavar) if metavar else None)


def _positional(sub: argparse.ArgumentParser) -> tuple[tuple[str, ...], bool]:
    for action in sub._actions:
        if not action.option_strings and action.choices is not None:
            return tuple(choice for choice in action.choices if choice != "names"), False
        if action.dest == "name" and not action.option_strings:
            return (), not sub.prog.endswith(" register")  # what is registered need not be there yet
    return (), False


# --- bash ----------------------------------------------------------------------------------------------

_BASH: Final = """\
# Completion of `discovery` for bash: source <(discovery completion bash)
_discovery() {
    local current=${COMP_WORDS[COMP_CWORD]} command= word= registry=
    local options= values= choices= service= behind=
    local glue=
    local -a words=()
    local -i n last=-1 given=0
    COMPREPLY=()
    # bash breaks words at what COMP_WORDBREAKS holds: host:port and --option=value are three each.
    for word in "${COMP_WORDS[@]:0:COMP_CWORD + 1}"; do
        if ((last > 1)) && [[ -n $glue || $word =~ ^[:=]+$ ]]; then
            words[last]+=$word
        else
            words+=("$word")
            last+=1
        fi
        if [[ $word =~ ^[:=]+$ ]]; then glue=yes; else glue=; fi
    done
    for ((n = 1; n < last; n++)); do
        word=${words[n]}
        if [[ -z $command ]]; then
            command=$word
            case $command in
@CASES@
                *) return ;;
            esac
        elif [[ $word == -- ]]; then
            [[ -n $behind ]] || return
            if ((n == last - 1)); then
                mapfile -t COMPREPLY < <(compgen -c -- "$current")
            else
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
            fi
            return
        elif [[ " $values " == *" $word "* ]]; then
            n+=1
            ((n == last)) && return  # a value, which only its writer knows
            [[ $word == --consul ]] && registry=${words[n]}
        elif [[ $word == --consul=* ]]; then
            registry=${word#*=}
        elif [[ $word != -* ]]; then
            given+=1
        fi
    done
    current=${words[last]}
    if [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W '@COMMANDS@ --help' -- "$current")
    elif [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options${behind:+ --}" -- "$current")
    elif ((given == 0)) && [[ -n $choices ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$current")
    elif ((given == 0)) && [[ -n $service ]]; then
        while IFS= read -r word; do
            [[ $word == "$current"* ]] && COMPREPLY+=("$word")
        done < <("${COMP_WORDS[0]}" completion names ${registry:+--consul "$registry"} 2>/dev/null)
    fi
}
complete -F _discovery discovery
"""


def _bash(commands: list[_Command]) -> str:
    cases = []
    for command in commands:
        parts = [f"options='{' '.join(option.flag for option in command.options)}'"]
        if values := " ".join(option.flag for option in command.options if option.metavar):
            parts.append(f"values='{values}'")
        if command.choices:
            parts.append(f"choices='{' '.join(command.choices)}'")
        parts += ["service=yes"] * command.takes_service + ["behind=yes"] * command.runs
        cases.append(f"{' ' * 16}{command.name}) {' '.join(parts)} ;;")
    names = " ".join(command.name for command in commands)
    return _BASH.replace("@CASES@", "\n".join(cases)).replace("@COMMANDS@", names)


# --- zsh -----------------------------------------------------------------------------------------------

_ZSH: Final = """\
#compdef discovery
# Completion of `discovery` for zsh: source <(discovery completion zsh)
# Or save this as _discovery in a directory of fpath.
_discovery_names() {
    local -a names
    local at=${words[(I)--consul]}
    if (( at )); then
        names=(${(f)"$(_call_program names discovery completion names --consul ${words[at+1]} 2>/dev/null)"})
    else
        names=(${(f)"$(_call_program names discovery completion names 2>/dev/null)"})
    fi
    (( $#names )) && compadd -a names
}
_discovery() {
    local -a commands
    commands=(
@COMMANDS@
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    shift words
    (( CURRENT-- ))
    local behind=${words[(i)--]}
    if [[ $words[1] == (@RUNS@) ]] && (( behind < CURRENT )); then
        shift $behind words
        (( CURRENT -= behind ))
        _normal
        return
    fi
    case $words[1] in
@CASES@
    esac
}
if [[ $funcstack[1] == _discovery ]]; then
    _discovery "$@"
else
    compdef _discovery discovery
fi
"""


def _zsh(commands: list[_Command]) -> str:
    cases = []
    for command in commands:
        words = []
        for option in command.options:
            many = "*" if "repeatable" in option.text else ""
            value = f":{option.metavar}: " if option.metavar else ""
            words.append(f"'{many}{option.flag}[{_zsh_quoted(option.text)}]{value}'")
        if command.choices:
            words.append(f"'1:{command.name}:({' '.join(command.choices)})'")
        elif command.takes_service:
            words.append("'1:service:_discovery_names'")
        cases.append(f"{' ' * 8}{command.name}) _arguments -s {' '.join(words)} ;;")
    described = [f"{' ' * 8}'{command.name}:{_zsh_quoted(command.text)}'" for command in commands]
    runs = "|".join(command.name for command in commands if command.runs)
    text = _ZSH.replace("@COMMANDS@", "\n".join(described)).replace("@CASES@", "\n".join(cases))
    return text.replace("@RUNS@", runs)


def _zsh_quoted(text: str) -> str:
    """Quote *text* for a description in single quotes: a colon and brackets would end it."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")


# --- fish ----------------------------------------------------------------------------------------------


def _fish(commands: list[_Command]) -> str:
    behind = "contains -- -- (commandline -opc)"
    other_line = 'complete -C (string replace -r "^.*? -- " "" -- (commandline -cp))'
    lines = [
        "# Completion of `discovery` for fish: discovery completion fish | source",
        "complete -c discovery -e",
        "complete -c discovery -f",
        f"complete -c discovery -n '{behind}' -a '({other_line})'",
    ]
    for command in commands:
        here = f"complete -c discovery -n '__fish_seen_subcommand_from {command.name}'"
        text = _fish_quoted(command.text)
        lines.append(f"complete -c discovery -n __fish_use_subcommand -a {command.name} -d '{text}'")
        for option in command.options:
            value = " -x" if option.metavar else ""
            lines.append(f"{here} -l {option.flag[2:]}{value} -d '{_fish_quoted(option.text)}'")
        if command.choices:
            lines.append(f"{here} -a '{' '.join(command.choices)}'")
        elif command.takes_service:
            before = (
                f"complete -c discovery -n '__fish_seen_subcommand_from {command.name}; and not {behind}'"
            )
            lines.append(f"{before} -a '(discovery completion names 2>/dev/null)'")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _end(_signal: int, _frame: FrameType | None) -> None:
    os._exit(0)
