"""The resolver command as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery.agent import Agent
from resolver.cli import main
from tests.resolver.conftest import Start, ask
from tests.resolver.test_server import register
from tests.tools import wait_until


@contextmanager
def running(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from resolver.cli import main; raise SystemExit(main())",
                "run",
                *arguments,
            ],
            stdout=out,
            stderr=out,
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_serves_until_the_signal_and_exits_well(agent: Agent, tmp_path: Path, number: int) -> None:
    register(agent, "w1", "10.0.0.1")
    config = tmp_path / "agent.json"
    config.write_text(json.dumps({"domain": "sd.example", "server": True, "dns_config": {"node_ttl": "7s"}}))
    with running(tmp_path, "--listen", "127.0.0.1:0", "--consul", agent.url, "--config", str(config)) as (
        process,
        log,
    ):
        found = wait_until(lambda: re.search(r"answering on 127\.0\.0\.1:(\d+)", log.read_text()), 20)
        where = ("127.0.0.1", int(found[1]))
        assert ask(where, "web.service.sd.example").answer
        assert ask(where, "host-1.node.sd.example").answer[0].ttl == 7
        process.send_signal(number)
        assert process.wait(10) == 0
    assert "server in " in log.read_text(), "a key without effect is named"
    assert "Traceback" not in log.read_text()


def test_workers_share_the_address_and_end_together(agent: Agent, tmp_path: Path) -> None:
    register(agent, "w1", "10.0.0.1")
    arguments = ["--listen", "127.0.0.1:0", "--consul", agent.url, "--workers", "3", "--user", "root"]
    with running(tmp_path, *arguments) as (process, log):
        found = wait_until(lambda: re.search(r"answering on 127\.0\.0\.1:(\d+)", log.read_text()), 20)
        where = ("127.0.0.1", int(found[1]))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        for _ in range(30):  # each from a port of its own, so that all of them get some
            assert ask(where, "web.service.consul").answer
            assert ask(where, "web.service.consul", tcp=True).answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}/stat").exists()]
    assert "Traceback" not in log.read_text()


def test_a_worker_that_dies_takes_the_others_with_it(agent: Agent, tmp_path: Path) -> None:
    """Its share of the clients would get no answer; whoever supervises us starts all of them anew."""
    arguments = ["--listen", "127.0.0.1:0", "--consul", agent.url, "--workers", "2", "--user", "root"]
    with running(tmp_path, *arguments) as (process, log):
        wait_until(lambda: "answering on" in log.read_text(), 20)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert process.wait(10) == 1
    assert f"worker {child} ended" in log.read_text()


def test_workers_do_not_outlive_the_process_that_was_started(agent: Agent, tmp_path: Path) -> None:
    arguments = ["--listen", "127.0.0.1:0", "--consul", agent.url, "--workers", "2", "--user", "root"]
    with running(tmp_path, *arguments) as (process, log):
        wait_until(lambda: "answering on" in log.read_text(), 20)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        wait_until(
            lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()
        )


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with running(tmp_path, "--listen", f"127.0.0.1:{port}", "--consul", "127.0.0.1:1") as (process, log):
            assert process.wait(20) == 2
    assert f"resolver: cannot listen on 127.0.0.1:{port}: another process has that port" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_query_prints_the_answer(
    agent: Agent, start_resolver: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    register(agent, "w1", "10.0.0.1")
    server = str(start_resolver(agent.uri).addresses[0])
    assert main(["query", "web", "--server", server]) == 0
    out = capsys.readouterr().out
    assert out.startswith("web.service.consul A: NOERROR, 1 record from ")
    assert "  web.service.consul. 0 A 10.0.0.1\n" in out
    assert main(["query", "web.service.consul", "srv", "--server", server, "--tcp"]) == 0
    assert "also: 0a000001.addr.dc1.consul. 0 A 10.0.0.1" in capsys.readouterr().out
    assert main(["query", "nope", "--server", server]) == 3
    assert "NXDOMAIN" in capsys.readouterr().out
    assert main(["query", "www.example.test", "--server", server]) == 5


def test_explain_says_why(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    register(agent, "w1", "10.0.0.1")
    assert main(["explain", "web", "--consul", agent.url]) == 0
    assert "in   w1 at 10.0.0.1:80 on host-1" in capsys.readouterr().out
    assert main(["explain", "v9.web.service.consul", "--consul", agent.url]) == 3
    assert "it has no tag 'v9'" in capsys.readouterr().out
    assert main(["explain", "web", "--consul", "127.0.0.1:1"]) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--listen", "docker0"],
        ["run", "--upstream", "ns.example.test"],
        ["run", "--upstream", "tls://ns.example.test"],
        ["run", "--forward", "corp.example"],
        ["run", "--upstream", "tls://127.0.0.1", "--upstream-ca", "/nowhere.pem", "--listen", "127.0.0.1:0"],
        ["run", "--max-stale", "-1"],
        ["run", "--allow", "172.17.0.0/33"],
        ["run", "--workers", "0"],
        ["run", "--rate", "-1"],
        ["run", "--metrics", "here"],
        ["run", "--user", "nobody-knows", "--listen", "127.0.0.1:0"],
        ["run", "--config", "/nowhere.json"],
        ["query", "a..b"],
        ["query", "web", "SRVV"],
        ["explain", "web", "--consul", "ftp://127.0.0.1"],
    ],
)
def test_wrong_arguments_are_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("resolver: ")
