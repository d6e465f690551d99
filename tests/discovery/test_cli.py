"""The `discovery` command: what it prints, and the exit code that scripts rely on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from discovery.agent import Agent
from discovery.cli import commands, main
from discovery.cli.bench import measure
from discovery.model import FrozenDict, ServiceQuery
from tests.discovery.nameserver import NameServer, srv
from tests.discovery.rawserver import RawServer, answer
from tests.tools import free_port, wait_until

COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "discovery.cli"]


@pytest.fixture
def at(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an agent, which the environment names too."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
    return agent.url


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process, which is ended with the test, and what it has started too."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **options: object) -> subprocess.Popen[str]:
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("process_group", 0)
        started.append(
            subprocess.Popen(
                [*COMMAND, *map(str, arguments)], text=True, cwd=Path(__file__).parents[2], **options
            )
        )
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):  # nobody of them is left
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of one command, run in this process."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# --- lookup --------------------------------------------------------------------------------------------


def test_lookup_prints_one_instance(at, register, capsys):
    register("web", 8080)
    assert run(capsys, "lookup", "web") == (0, "127.0.0.1:8080\n", "")


def test_lookup_prints_all(at, register, capsys):
    for port in (1, 2, 3):
        register("web", port, status="critical" if port == 2 else "passing")
    assert run(capsys, "lookup", "web", "--all") == (0, "127.0.0.1:1\n127.0.0.1:3\n", "")


def test_lookup_filters_by_tags(at, register, capsys):
    register("web", 1, tags=("v1",))
    register("web", 2, tags=("v1", "blue"))
    assert run(capsys, "lookup", "web", "--tag", "v1", "--tag", "blue") == (0, "127.0.0.1:2\n", "")


def test_lookup_prints_a_url(at, register, capsys):
    register("web", 8080, meta=FrozenDict(scheme="https"))
    assert run(capsys, "lookup", "web", "--url")[1] == "https://127.0.0.1:8080\n"


def test_lookup_prints_lines_for_a_shell(at, register, capsys):
    register("my-web", 8080)
    register("my-web", 8081)
    register("2web", 1)
    assert run(capsys, "lookup", "my-web", "--env", "--all")[1].splitlines() == [
        "MY_WEB_HOST=127.0.0.1",
        "MY_WEB_PORT=8080",
        "MY_WEB_1_HOST=127.0.0.1",
        "MY_WEB_1_PORT=8081",
    ]
    lines = run(capsys, "lookup", "2web", "--env")[1]
    shell = subprocess.run(["sh", "-euc", f"{lines}\necho $_2WEB_HOST"], capture_output=True, text=True)
    assert (shell.stdout, shell.stderr) == ("127.0.0.1\n", "")


def test_lookup_prints_json(at, agent, register, capsys):
    register("web", 8080, tags=("v1",), meta=FrozenDict(a="1"))
    one = json.loads(run(capsys, "lookup", "web", "--json")[1])
    assert one == {
        "service": "web",
        "id": "web-8080",
        "host": "127.0.0.1",
        "port": 8080,
        "status": "passing",
        "tags": ["v1"],
        "meta": {"a": "1"},
        "weight": 1,
        "node": one["node"],
        "dc": "dc1",
        "source": "http",
        "stale": False,
    }
    assert json.loads(run(capsys, "lookup", "web", "--json", "--all")[1]) == [one]


def test_an_address_on_the_command_line_beats_the_environment(agent, register, capsys, monkeypatch):
    register("web", 8080)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{free_port()}")
    assert run(capsys, "lookup", "web", "--consul", agent.url)[0] == 0


# --- exit codes ----------------------------------------------------------------------------------------


def test_3_is_not_found(at, register, capsys):
    register("web", 8080)
    code, out, err = run(capsys, "lookup", "wep")
    assert (code, out) == (3, "")
    assert err.startswith("discovery: no service is called 'wep'")
    assert "did you mean 'web'?" in err
    assert run(capsys, "lookup", "wep", "--all")[0] == 3
    assert run(capsys, "exec", "wep", "--", "true")[0] == 3
    assert run(capsys, "wait", "wep", "--timeout", "0.5")[0] == 3


def test_4_is_none_healthy(at, register, capsys):
    register("web", 8080, status="critical")
    for command in (["lookup", "web"], ["lookup", "web", "--all"], ["wait", "web", "--timeout", "0.5"]):
        code, out, err = run(capsys, *command)
        assert (code, out) == (4, "")
        assert "web-8080 fails check 'check of web-8080'" in err
    register("other", 1, tags=("v1",))
    assert run(capsys, "lookup", "other", "--tag", "v2")[0] == 4
    assert run(capsys, "wait", "other", "--min", "2", "--timeout", "0.5")[0] == 4


def test_5_is_a_registry_that_cannot_be_asked(capsys, monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("CONSUL_HTTP_ADDR", address)
    for command in (["lookup", "web"], ["ls"], ["watch", "web"], ["wait", "web", "--timeout", "0.5"]):
        code, out, err = run(capsys, *command)
        assert (code, out) == (5, "")
        assert address in err
        assert len(err.splitlines()) == 1  # the error alone, and no warning besides


def test_5_is_also_a_registry_that_refuses(capsys, monkeypatch):
    def refuse(peer) -> None:
        while peer.request():
            peer.send(answer(b"ACL not found", status="403 Forbidden"))

    with RawServer(refuse) as server:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", server.config.url)
        code, _, err = run(capsys, "lookup", "web")
        assert code == 5
        assert "set CONSUL_HTTP_TOKEN" in err
        assert run(capsys, "register", "web", "--port", "80")[0] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["lookup"],
        ["frobnicate"],
        ["lookup", "web", "--json", "--url"],
        ["register", "web"],
        ["register", "web", "--port", "x"],
        ["wait", "web", "--min", "x"],
    ],
)
def test_2_is_a_command_line_that_cannot_be_read(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: discovery" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lookup", "a b"], "the service name 'a b' from lookup holds ' '"),
        (["lookup", "web", "--consul", "ftp://x"], "from --consul: unknown scheme 'ftp'"),
        (["exec", "web"], "nothing to run: write the command behind --"),
        (["wait", "web", "--timeout", "nan"], "timeout=nan for 'web' is not possible: give seconds"),
        (["exec", "web", "--", ""], "nothing to run: write the command behind --"),
        (["register", "web", "--port", "80", "--ttl", "inf"], "ttl=inf of 'web' is not possible"),
        (["register", "web", "--port", "0"], "port=0 of 'web' is not possible"),
        (
            ["register", "web", "--port", "80", "--", "/nonexistent"],
            "cannot run '/nonexistent': no such file",
        ),
        (["agent", "--http", "127.0.0.1"], "cannot listen at '127.0.0.1' from --http; write ADDR:PORT"),
        (["agent", "--http", "unix:///run/x"], "cannot listen at 'unix:///run/x' from --http"),
        (["agent", "--http", "127.0.0.1:x"], "cannot listen at '127.0.0.1:x' from --http"),
    ],
)
def test_2_is_a_value_that_cannot_be_used(at, capsys, arguments, complaint):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith(f"discovery: {complaint}") or complaint in err


def test_2_is_a_wrong_environment(capsys, monkeypatch):
    monkeypatch.setenv("CONSUL_HTTP_SSL", "perhaps")
    code, _, err = run(capsys, "ls")
    assert code == 2
    assert "CONSUL_HTTP_SSL='perhaps' is neither true nor false" in err


def test_exit_codes_arrive_at_the_shell(at, register, spawn):
    register("web", 8080)
    process = spawn("lookup", "web")
    assert (*process.communicate(timeout=20), process.returncode) == ("127.0.0.1:8080\n", "", 0)
    process = spawn("lookup", "nope")
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == ("", 3)
    assert len(err.splitlines()) == 1


# --- ls, wait ------------------------------------------------------------------------------------------


def test_ls_lists_names_and_tags(at, register, capsys):
    register("web", 8080, tags=("v1", "blue"))
    register("database", 5432)
    code, out, _ = run(capsys, "ls")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["database"] in lines
    assert ["web", "v1,blue"] in [
        [name, ",".join(sorted(tags.split(","), reverse=True))]
        for name, tags in (line for line in lines if len(line) == 2)
    ]
    listed = json.loads(run(capsys, "ls", "--json")[1])
    assert sorted(listed["web"]) == ["blue", "v1"]
    assert listed["database"] == []


def test_ls_of_an_empty_registry_says_so_beside_the_output(capsys, monkeypatch):
    def nothing(peer) -> None:
        while peer.request():
            peer.send(answer({}, headers="X-Consul-Index: 5\r\n"))

    with RawServer(nothing) as server:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", server.config.url)
        assert run(capsys, "ls") == (0, "", f"no services at {server.config.url}\n")
        assert run(capsys, "ls", "--json") == (0, "{}\n", "")


def test_wait_prints_the_instances_once_there_are_enough(at, register, spawn):
    register("web", 1)
    process = spawn("wait", "web", "--min", "2")
    register("web", 2)
    out, err = process.communicate(timeout=20)
    assert (out.splitlines(), err, process.returncode) == (["127.0.0.1:1", "127.0.0.1:2"], "", 0)


def test_wait_prints_what_was_waited_for_in_every_shape(at, register, capsys):
    register("web", 8080)
    assert run(capsys, "wait", "web", "--url")[1] == "http://127.0.0.1:8080\n"
    assert run(capsys, "wait", "web", "--env")[1] == "WEB_HOST=127.0.0.1\nWEB_PORT=8080\n"
    (one,) = json.loads(run(capsys, "wait", "web", "--json")[1])
    assert (one["id"], one["port"]) == ("web-8080", 8080)


# --- explain -------------------------------------------------------------------------------------------


def test_explain_says_of_every_candidate_whether_it_is_in_or_out(at, register, capsys):
    register("web", 1, tags=("v1",))
    register("web", 2, status="critical", tags=("v1",))
    register("web", 3)
    code, out, err = run(capsys, "explain", "web", "--tag", "v1")
    assert (code, err) == (0, "")
    head, candidates, asked = out.split("\n\n")
    assert head == "web: a lookup returns one of 1 in 3, by round_robin"
    rows = [line.split(maxsplit=4) for line in candidates.splitlines()]
    assert rows[0] == ["INSTANCE", "STATUS", "TAGS", "VERDICT"]
    assert rows[1] == ["*", "127.0.0.1:1", "passing", "v1", "in"]
    assert rows[2] == ["-", "127.0.0.1:2", "critical", "v1", "out: fails check 'check of web-2'"]
    assert rows[3][:4] == ["-", "127.0.0.1:3", "passing", "-"] and rows[3][4].startswith("out: ")
    source, *took, result = re.split("  +", asked.splitlines()[1])
    assert (source, result) == (at, "2 of 3 healthy")
    assert re.fullmatch(r"[0-9.]+ (us|ms|s)", *took)


def test_explain_writes_json(at, register, capsys):
    register("web", 1)
    register("web", 2, status="critical")
    told = json.loads(run(capsys, "explain", "web", "--json")[1])
    assert (told["service"], told["strategy"]) == ("web", "round_robin")
    first, second = told["candidates"]
    assert (first["usable"], first["why_not"], first["port"]) == (True, None, 1)
    assert second["usable"] is False and "fails check" in second["why_not"]
    (asked,) = told["asked"]
    assert asked["source"] == at and asked["seconds"] > 0


def test_explain_names_the_sources_that_were_asked_in_vain(register, agent, capsys, monkeypatch):
    register("web", 8080)
    with NameServer(srv(("10.0.0.1", 80))) as names:
        away = f"127.0.0.1:{free_port()}"
        monkeypatch.setenv("CONSUL_HTTP_ADDR", away)
        monkeypatch.setenv("DISCOVERY_DNS", str(names.server))
        told = json.loads(run(capsys, "explain", "web", "--json")[1])
    assert [asked["source"] for asked in told["asked"]] == [f"http://{away}", "DNS"]
    assert "connection refused" in told["asked"][0]["result"]


def test_explain_has_the_exit_code_of_a_lookup(at, register, capsys):
    register("web", 1, status="critical")
    code, out, err = run(capsys, "explain", "web")
    assert code == 4
    assert "out: fails check" in out
    assert err == "discovery: none of the 1 instances of 'web' can be used\n"
    code, out, err = run(capsys, "explain", "wep")
    assert (code, out) == (3, "") and "did you mean 'web'?" in err


# --- bench ---------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for a moment: these tests are not about the numbers."""
    monkeypatch.setattr("discovery.cli.bench._BUDGET", 0.02)
    monkeypatch.setattr("discovery.cli.bench._CLOCK_BUDGET", 0.001)


def test_bench_measures_lookups_and_round_trips(at, register, capsys, hurried, monkeypatch):
    register("web", 8080)
    with NameServer(srv(("10.0.0.1", 80))) as names:
        monkeypatch.setenv("DISCOVERY_DNS", str(names.server))
        code, out, err = run(capsys, "bench", "web")
        told = json.loads(run(capsys, "bench", "web", "--json")[1])
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    whats = ["warm lookup", "the clock alone", "first lookup of a new client"]
    whats += [f"registry round trip, {at}", f"DNS round trip, {names.server}"]
    assert [row["what"] for row in told["measured"]] == whats
    assert all(what in out for what in whats)
    for row in told["measured"]:
        assert 0 < row["least_seconds"] <= row["p50_seconds"] <= row["p99_seconds"]
        assert row["calls"] >= 1
    assert told["not_measured"] == []


def test_bench_takes_a_service_that_there_is_and_leaves_out_what_is_not(at, agent, register, capsys, hurried):
    register("a-sick-one", 1, status="critical")
    register("b", 2)
    told = json.loads(run(capsys, "bench", "--json")[1])
    assert told["service"] == "b"
    assert told["not_measured"] == ["DNS round trip: no answer (none to ask)"]
    assert run(capsys, "bench", "nope")[0] == 3
    agent.close()
    assert run(capsys, "bench")[0] == 5


def test_bench_counts_in_order():
    ticks = iter(range(0, 10**9, 10))
    measured = measure("x", lambda: None, 1e-6, clock=lambda: next(ticks))
    assert (measured.p50, measured.p99, measured.least) == (1e-8, 1e-8, 1e-8)
    assert measured.calls == 50


# --- watch ---------------------------------------------------------------------------------------------


def test_watch_prints_a_line_per_change_at_once_also_into_a_pipe(at, register, registry, spawn):
    register("web", 1)
    process = spawn("watch", "web")
    assert process.stdout.readline().split(None, 1)[1] == "+ 127.0.0.1:1  (1 instance)\n"
    register("web", 2)
    assert process.stdout.readline().split(None, 1)[1] == "+ 127.0.0.1:2  (2 instances)\n"
    registry.deregister("web-1")
    assert process.stdout.readline().split(None, 1)[1] == "- 127.0.0.1:1  (1 instance)\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("", "", 130)


def test_watch_says_once_why_it_ends(spawn, monkeypatch):
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"127.0.0.1:{free_port()}")
    process = spawn("watch", "web")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, len(err.splitlines())) == (5, 1)
    assert "connection refused" in err and "trying again" not in err


def test_watch_says_when_it_cannot_be_sure(agent, at, register, spawn):
    register("web", 1)
    process = spawn("watch", "web", "--json")
    first = json.loads(process.stdout.readline())
    assert (first["service"], first["stale"], first["added"]) == ("web", False, ["127.0.0.1:1"])
    assert first["instances"][0]["id"] == "web-1"
    agent.close()
    lost = json.loads(process.stdout.readline())
    assert (lost["stale"], lost["added"], lost["removed"]) == (True, [], [])
    assert len(lost["instances"]) == 1
    assert "trying again until it answers" in process.stderr.readline()


def test_a_reader_that_leaves_is_no_error(at, register, spawn):
    register("web", 1)
    process = spawn("watch", "web")
    process.stdout.readline()
    process.stdout.close()
    register("web", 2)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_the_watch_though_nothing_changes(at, register, spawn):
    register("web", 1)
    process = spawn("watch", "web")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_a_reader_that_was_never_there_is_no_error(at, register, spawn):
    register("web", 1)
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("lookup", "web", stdout=writing)
    os.close(writing)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_an_output_that_cannot_be_written_is_said(at, register, spawn):
    register("web", 1)
    with open("/dev/full", "w") as full:
        process = spawn("lookup", "web", "--all", stdout=full)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "discovery: cannot write the output: no space left on device\n")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ls >&-", 0),
        ("lookup web >&-", 0),
        ("lookup web >&- 2>&-", 0),
        ("lookup nope >&- 2>&-", 3),
        ("lookup nope 2>&-", 3),
        ("register web --port 80 >&- 2>&- <&- -- true", 0),
    ],
)
def test_an_output_that_is_closed_is_not_written_to(at, register, line, code):
    register("web", 1)
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(COMMAND)} {line}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "command",
    [["lookup", "web"], ["ls"], ["explain", "web"], ["watch", "web"], ["wait", "web"], ["doctor"], ["bench"]],
)
def test_ctrl_c_is_silent_in_the_midst_of_everything(spawn, command, monkeypatch):
    def hang(peer) -> None:
        peer.request()
        peer.hang()

    with RawServer(hang) as server:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", server.config.url)
        monkeypatch.setenv("DISCOVERY_TIMEOUT", "60")
        process = spawn(*command)
        wait_until(lambda: server.requests, 60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def test_what_cannot_be_confirmed_is_said_beside_the_output(
    at, agent, register, capsys, spawn, monkeypatch, tmp_path
):
    monkeypatch.setenv("DISCOVERY_CACHE", str(tmp_path / "cache"))
    register("web", 8080)
    assert run(capsys, "lookup", "web") == (0, "127.0.0.1:8080\n", "")
    agent.close()
    said = "discovery: not confirmed: the registry cannot be asked\n"
    assert run(capsys, "lookup", "web") == (0, "127.0.0.1:8080\n", said)
    process = spawn("exec", "web", "--", "sh", "-c", "echo $WEB_PORT")
    assert process.communicate(timeout=20) == ("8080\n", said)


def test_an_error_cannot_move_the_cursor(at, capsys):
    code, _, err = run(capsys, "lookup", "web\x1b[2J")
    assert code == 2 and err.count("\n") == 1 and "\x1b" not in err


def test_what_was_registered_cannot_write_to_the_terminal(at, register, capsys, spawn):
    register("web", 8080, address="10.0.0.1\x1b[2J\nEVIL=1")
    shown = r"10.0.0.1\x1b[2J\nEVIL=1"
    assert run(capsys, "lookup", "web")[1] == f"{shown}:8080\n"
    assert run(capsys, "lookup", "web", "--all")[1] == f"{shown}:8080\n"
    assert run(capsys, "wait", "web", "--url")[1] == f"http://{shown}:8080\n"
    line = spawn("watch", "web").stdout.readline()
    assert line.split(None, 1)[1] == f"+ {shown}:8080  (1 instance)\n"


# --- exec ----------------------------------------------------------------------------------------------


def test_exec_becomes_the_command_with_the_instance_in_its_environment(at, register, spawn):
    register("my-web", 8080)
    process = spawn("exec", "my-web", "--", "sh", "-c", "echo $$ $MY_WEB_HOST $MY_WEB_PORT; exit 7")
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == (f"{process.pid} 127.0.0.1 8080\n", "", 7)


def test_exec_hands_on_no_ignored_signals(at, register, spawn):
    register("web", 8080)
    process = spawn("exec", "web", "--", "grep", "SigIgn", "/proc/self/status")
    out, _ = process.communicate(timeout=20)
    python_ignores = (signal.SIGPIPE, signal.SIGXFSZ)  # others may have been ignored before we came
    assert not int(out.split()[1], 16) & sum(1 << number - 1 for number in python_ignores)


def test_exec_of_what_does_not_exist(at, register, spawn):
    register("web", 8080)
    process = spawn("exec", "web", "--", "/nonexistent")
    assert process.communicate(timeout=20) == (
        "",
        "discovery: cannot run '/nonexistent': no such file or directory\n",
    )
    assert process.returncode == 2


# --- register ------------------------------------------------------------------------------------------


def registered(registry, name: str = "web"):
    return registry.read(ServiceQuery(name)).value


def test_register_keeps_an_entry_while_the_command_runs(at, registry, spawn, tmp_path):
    stop = tmp_path / "stop"
    process = spawn(
        "register", "web", "--port", 8080, "--tag", "v1", "--id", "mine", "--address", "127.0.0.9",
        "--", "sh", "-c", f"while [ ! -e {stop} ]; do sleep 0.05; done; exit 7",
    )  # fmt: skip
    (entry,) = wait_until(lambda: registered(registry), 20)
    assert (entry.id, entry.port, entry.address, entry.tags) == ("mine", 8080, "127.0.0.9", ("v1",))
    assert entry.status == "passing"
    stop.touch()
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 7
    assert not registered(registry)


CHILD = """
    import os, signal, sys, urllib.request

    def stopped(*_):
        with urllib.request.urlopen(os.environ["CONSUL_HTTP_ADDR"] + "/v1/agent/services") as answer:
            print("still registered" if b"8080" in answer.read() else "deregistered", flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, stopped)
    print("ready", flush=True)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_on_a_signal_the_entry_goes_before_the_command_is_told(at, registry, spawn, number):
    process = spawn("register", "web", "--port", 8080, "--", sys.executable, "-c", textwrap.dedent(CHILD))
    assert process.stdout.readline() == "ready\n"
    wait_until(lambda: registered(registry), 20)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("deregistered\n", "", 0)
    assert not registered(registry)


def test_a_hang_up_that_nohup_ignores_is_ignored():
    assert signal.signal(signal.SIGHUP, signal.SIG_IGN) is signal.SIG_DFL
    try:
        with commands._signals() as stopped:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopped.is_set()
            os.kill(os.getpid(), signal.SIGQUIT)
            wait_until(stopped.is_set)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_command_that_a_signal_ends_is_reported_as_a_shell_does(at, registry, spawn):
    process = spawn("register", "web", "--port", 8080, "--", "sh", "-c", "kill -KILL $$")
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    assert not registered(registry)


def test_register_without_a_command_lasts_until_it_is_stopped(at, registry, spawn):
    process = spawn("register", "web", "--port", 8080)
    wait_until(lambda: registered(registry), 20)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
    assert not registered(registry)


def test_a_refused_registration_ends_the_command(spawn, tmp_path):
    def refuse(peer) -> None:
        while peer.request():
            peer.send(answer(b"Permission denied", status="403 Forbidden"))

    with RawServer(refuse) as server:
        process = spawn("register", "web", "--port", 80, "--consul", server.config.url, "--", "sleep", "600")
        _, err = process.communicate(timeout=20)
    assert process.returncode == 5
    assert "Permission denied" in err


# --- agent ---------------------------------------------------------------------------------------------


def test_agent_serves_until_it_is_stopped(spawn, capsys):
    process = spawn("agent", "--http", "127.0.0.1:0", "--node", "host-1", "--advertise", "10.0.0.1")
    line = process.stdout.readline()
    assert line.startswith("embedded agent at http://127.0.0.1:")
    url = line.split()[3]
    assert run(capsys, "lookup", "web", "--consul", url)[0] == 3
    process.terminate()
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


def test_agent_says_when_somebody_else_listens_there(agent, capsys):
    host, port = agent.http
    code, _, err = run(capsys, "agent", "--http", f"{host}:{port}")
    assert code == 2
    assert f"port {port}" in err


def test_signals_are_handled_as_before_when_a_command_has_ended(at, registry):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    killer = threading.Thread(
        target=lambda: (wait_until(lambda: registered(registry)), os.kill(os.getpid(), signal.SIGTERM))
    )
    killer.start()
    assert main(["register", "web", "--port", "8080"]) == 0
    killer.join()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
