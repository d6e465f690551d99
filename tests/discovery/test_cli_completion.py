"""Completion: bash really completes, and the scripts of the other shells say the same."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery.agent import Agent
from discovery.cli import main
from discovery.cli.completion import script
from discovery.cli.parser import parser, subcommands
from tests.discovery.rawserver import RawServer, answer
from tests.tools import free_port, wait_until

COMMANDS = subcommands(parser())


@pytest.fixture
def complete(agent: Agent, tmp_path: Path) -> Callable[..., list[str]]:
    """What bash offers for the last of these words; `discovery` is found, and the registry is the agent."""
    command = tmp_path / "bin" / "discovery"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m discovery.cli "$@"\n')
    command.chmod(0o755)
    (tmp_path / "script").write_text(script("bash"))

    def offered(*words: str, **env: str) -> list[str]:
        line = " ".join(map(shlex.quote, ["discovery", *words]))
        # The function that `complete` names, called as bash calls it.
        driver = f"""
            set -u
            source {tmp_path / "script"}
            COMP_WORDS=({line}) COMP_CWORD={len(words)}
            read -r _ _ function name < <(complete -p discovery)
            [[ $name == discovery ]] && "$function" discovery "${{COMP_WORDS[COMP_CWORD]}}" ""
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "--noprofile", "-c", driver],
            env={
                **os.environ,
                "CONSUL_HTTP_ADDR": agent.url,
                "PATH": f"{command.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(Path(__file__).parents[2]),
                **env,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return offered


def options_of(command: str) -> set[str]:
    _, sub = COMMANDS[command]
    return {flag for action in sub._actions for flag in action.option_strings if flag.startswith("--")}


# --- bash ----------------------------------------------------------------------------------------------


def test_commands(complete):
    assert set(complete("")) == {*COMMANDS, "--help"}
    assert complete("wa") == ["watch", "wait"]
    assert complete("frobnicate", "") == []


def test_options_of_the_command(complete):
    assert set(complete("lookup", "--")) == options_of("lookup")
    assert complete("lookup", "web", "--u") == ["--url"]
    assert set(complete("exec", "web", "-")) == {*options_of("exec"), "--"}


def test_names_of_services(complete, register):
    register("web", 1)
    register("worker", 2)
    register("db", 3)

    def offers(names: list[str], *words: str) -> bool:
        return sorted(complete(*words)) == names

    # A machine that is busy with other things may not have them within the time limit.
    wait_until(lambda: offers(["web", "worker"], "lookup", "w"), 60)
    wait_until(lambda: offers(["consul", "db", "web", "worker"], "watch", "--tag", "v1", ""), 60)
    wait_until(lambda: offers(["db"], "doctor", "d"), 60)
    assert complete("lookup", "web", "d") == []  # there is one name
    assert complete("register", "w") == []  # a new one, which nobody knows
    assert complete("lookup", "--dc", "") == []


def test_the_registry_that_is_on_the_line_is_asked(complete, agent, register):
    register("web", 1)
    away = f"127.0.0.1:{free_port()}"
    assert complete("lookup", "w", CONSUL_HTTP_ADDR=away) == []
    wait_until(lambda: complete("lookup", "--consul", agent.url, "w", CONSUL_HTTP_ADDR=away) == ["web"], 60)


@pytest.mark.parametrize("option", ["--consul=", "--consul "])
def test_words_that_bash_breaks_are_one(complete, agent, register, option):
    register("web", 1)
    away = f"127.0.0.1:{free_port()}"

    def broken(text: str) -> list[str]:
        """The words as they are with the default COMP_WORDBREAKS, which has ':' and '='."""
        return re.findall(r"[:=]+|[^:= ]+", text)

    address = agent.url.removeprefix("http://")
    for registry in (address, agent.url):
        words = broken(f"lookup {option}{registry}")
        assert complete(*words) == []  # the value, which is still written
        wait_until(lambda words=words: complete(*words, "w", CONSUL_HTTP_ADDR=away) == ["web"], 60)
        assert complete(*words, "web", "--u") == ["--url"]


def test_the_other_command_line(complete, tmp_path):
    (tmp_path / "a-file").touch()
    assert "bash" in complete("exec", "web", "--", "bas")
    assert complete("exec", "web", "--", "cat", "a-f") == ["a-file"]
    assert complete("lookup", "web", "--", "x") == []


def test_shells(complete):
    assert complete("completion", "") == ["bash", "zsh", "fish"]


def test_a_name_is_never_run(complete, monkeypatch, tmp_path):
    """Whoever registers a service does not run commands in the shells of those who press tab."""
    evil = ["$(touch${IFS}owned)", "`touch${IFS}owned`", "a;touch", "web", "two words", "-rf", "~root"]

    def serve(peer) -> None:
        while peer.request():
            peer.send(answer({name: [] for name in evil}, headers="X-Consul-Index: 5\r\n"))

    with RawServer(serve) as server:
        wait_until(lambda: complete("lookup", "", CONSUL_HTTP_ADDR=server.config.url) == ["web"], 60)
    assert not (tmp_path / "owned").exists()


# --- names ---------------------------------------------------------------------------------------------


def test_names_are_silent_about_every_failure(capfd, monkeypatch):
    def hang(peer) -> None:
        peer.request()
        peer.hang()

    with RawServer(hang) as server:
        for address in (f"127.0.0.1:{free_port()}", server.config.url, "ftp://x"):
            monkeypatch.setenv("CONSUL_HTTP_ADDR", address)
            assert main(["completion", "names"]) == 0
        assert main(["completion", "names", "--consul", "ftp://x"]) == 0
    assert capfd.readouterr() == ("", "")


def test_names_have_an_end_even_where_a_host_name_is_looked_up_for_ever():
    """The C library cannot be interrupted; the process can."""
    stuck = """
        import socket, threading
        socket.getaddrinfo = lambda *a, **k: threading.Event().wait()
        from discovery.cli import main
        main(["completion", "names"])
        print("not stuck")
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in stuck.splitlines())],
        env={**os.environ, "CONSUL_HTTP_ADDR": "consul.example:8500", "DISCOVERY_DNS": "off"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- all shells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert text == script(shell)
    for name, (_, sub) in COMMANDS.items():
        own = rf"(seen_subcommand_from|-a) {name}\b" if shell == "fish" else rf"^ +{name}\) "
        lines = [line for line in text.splitlines() if re.search(own, line)]
        assert lines, name
        for flag in options_of(name):
            written = f"-l {flag[2:]} " if shell == "fish" else flag
            assert any(written in line for line in lines), (name, flag)
        takes_name = any(action.dest == "name" for action in sub._actions)
        offers_names = {"bash": "service=yes", "zsh": "_discovery_names", "fish": "completion names"}[shell]
        assert any(offers_names in line for line in lines) == (takes_name and name != "register"), name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_quotes_in_a_script_are_closed(shell):
    """zsh and fish need not be here; an apostrophe in a help text is what would break them."""
    for line in script(shell).replace("'\\''", "").replace("\\'", "").splitlines():
        if not line.lstrip().startswith("#"):
            assert line.count("'") % 2 == 0, line


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_fits_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", text, re.MULTILINE) for name in COMMANDS)
