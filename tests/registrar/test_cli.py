"""The ``registrar`` command: usage without anything running, and the real thing as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registrar.cli import main
from tests.registrar.dockerd import IMAGE, Dockerd
from tests.tools import ConsulAgent, free_port, wait_until


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the registry URI is missing"),
        ("-internal", "the registry URI is missing"),
        ("consul://127.0.0.1:1 consul://127.0.0.1:2", "unrecognized arguments: consul://127.0.0.1:2"),
        ("consul://127.0.0.1:1 -internal", "options come before the registry URI"),
        ("run consul://127.0.0.1:1 -internal", "options come before the registry URI"),
        ("-intern consul://127.0.0.1:1", "unrecognized arguments: --intern"),
        ("-frobnicate consul://127.0.0.1:1", "unrecognized arguments: --frobnicate"),
        ("-resync consul://127.0.0.1:1", "the registry URI is missing"),
        ("--drain slowly consul://127.0.0.1:1", "argument --drain: invalid choice: 'slowly'"),
        ("-resync soon consul://127.0.0.1:1", "-resync='soon' is not a whole number"),
        ("etcd://10.0.0.1", "is not one of consul://"),
        ("explain", "CONTAINER"),
        ("bootstrap host-1", "'host-1' in 'host-1' is no IPv4 address"),
        ("bootstrap 10.0.0.3:x", "'x' in '10.0.0.3:x'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("registrar: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "run ", "up ", "plan ", "explain web "])
@pytest.mark.parametrize(
    ("options", "code"),
    [
        # Values that are read and then contradict each other or the program: Registrator ends with 1 ...
        ("-ttl 60", 1),
        ("-ttl-refresh 60", 1),
        ("-ttl 30 -ttl-refresh 30", 1),
        ("-ttl 30 -ttl-refresh 60", 1),
        ("-retry-interval 0", 1),
        ("-deregister sometimes", 1),
        # ... and with 2 at what cannot be read at all.
        ("-ttl soon", 2),
        ("-internal=maybe", 2),
        ("-frobnicate", 2),
        ("-intern", 2),
    ],
)
def test_every_command_refuses_what_registrator_refuses_with_its_exit_code(
    command: str, options: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"{command}{options} consul://127.0.0.1:1".split()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("registrar: ")
    assert printed.err.count("\n") == 1


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("portcall ")


def test_bootstrap_prints_lines_that_a_shell_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "172.28.128.4:172.28.128.3"]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    assert script.count("docker run -d") == 3
    assert "-retry-join=172.28.128.3" in script
    assert "-advertise=172.28.128.4" in script
    assert main(["bootstrap", "172.28.128.4"]) == 0
    assert "-bootstrap-expect=1" in capsys.readouterr().out


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("ip", "internal", "explicit", "useIpFromLabel", "tags", "ttl", "ttl-refresh", "resync"):
        assert f"--{option}" in text
    for option in ("deregister", "cleanup", "retry-attempts", "retry-interval"):
        assert f"--{option}" in text


# --- as a process ----------------------------------------------------------------------------------------


class Process:
    """A running ``registrar``."""

    def __init__(self, env: dict[str, str], log: Path, *arguments: str) -> None:
        self._log = log
        command = [
            sys.executable,
            "-c",
            "from registrar.cli import main; raise SystemExit(main())",
            *arguments,
        ]
        with log.open("wb") as file:
            self.popen = subprocess.Popen(command, env={**os.environ, **env}, stdout=file, stderr=file)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.log, 30, message=f"the log has {text!r}")

    def ends(self) -> int:
        return self.popen.wait(30)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(env: dict[str, str], *arguments: str) -> Process:
        started.append(Process(env, tmp_path / f"log-{len(started)}", *arguments))
        return started[-1]

    yield start
    for one in started:
        one.popen.kill()
        one.popen.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_waits_for_both_sides_and_ends_at_a_signal(
    spawn: Callable[..., Process], tmp_path: Path, number: int
) -> None:
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    process = spawn(env, "-internal", f"consul://127.0.0.1:{free_port()}")
    process.says("waiting for Docker: cannot ask Docker at unix://")
    process.says("waiting for the registry: cannot ask Consul at http://127.0.0.1:")
    process.popen.send_signal(number)
    assert process.ends() == 0
    assert "Traceback" not in process.log
    assert process.log.count("\n") == 2


def test_retry_attempts_ends_with_exit_1(spawn: Callable[..., Process]) -> None:
    options = ("-retry-attempts", "1", "-retry-interval", "10")
    process = spawn({}, *options, f"consul://127.0.0.1:{free_port()}")
    assert process.ends() == 1
    assert "registrar: gave up after 2 attempts: cannot ask Consul" in process.log


@pytest.mark.docker
def test_registrators_command_line_runs(
    dockerd: Dockerd, consul_agent: ConsulAgent, spawn: Callable[..., Process]
) -> None:
    dockerd.run("web", publish_all_ports=True)
    options = ("-internal", "-cleanup", "-resync", "30", "-tags", "site")
    process = spawn(dockerd.env, *options, "-owner", "registrator", consul_agent.uri)
    services = wait_until(lambda: consul_agent.request("GET", "/v1/agent/services"))
    assert list(services) == ["registrator:web:5000"]
    (service,) = services.values()
    inside = dockerd.client.api.inspect_container("web")["NetworkSettings"]["Networks"]["bridge"]
    assert (service["Service"], service["Address"]) == (IMAGE, inside["IPAddress"])
    assert (service["Port"], service["Tags"]) == (5000, ["site"])
    process.says(f"registered registrator:web:5000 as {IMAGE} at {inside['IPAddress']}:5000")
    process.popen.terminate()
    assert process.ends() == 0
    assert consul_agent.request("GET", "/v1/agent/services") == services


@pytest.fixture
def command(dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``registrar`` in this process, against the real dockerd."""
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)

    def run(*arguments: str) -> int:
        return main([*arguments])

    return run


@pytest.mark.docker
def test_plan_shows_what_would_be_written_and_writes_nothing(
    dockerd: Dockerd, consul_agent: ConsulAgent, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dockerd.run("web", publish_all_ports=True, environment={"SERVICE_CHECK_INTERVAL": "5"})
    arguments = ("-owner", "host-1", consul_agent.uri)
    assert command("plan", *arguments) == 2
    printed = capsys.readouterr()
    assert "register" in printed.out
    assert "host-1:web:5000" in printed.out
    assert "SERVICE_CHECK_INTERVAL='5'" in printed.err
    assert command("plan", "--json", *arguments) == 2
    plan = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in plan["register"]] == ["host-1:web:5000"]
    assert plan["in_step"] is False
    assert consul_agent.request("GET", "/v1/agent/services") == {}


@pytest.mark.docker
def test_plan_ends_with_0_when_in_step_and_shows_what_is_left_over(
    dockerd: Dockerd,
    consul_agent: ConsulAgent,
    command: Any,
    spawn: Callable[..., Process],
    capsys: pytest.CaptureFixture[str],
) -> None:
    web = dockerd.run("web", publish_all_ports=True)
    arguments = ("-owner", "host-1", consul_agent.uri)
    process = spawn(dockerd.env, *arguments)
    wait_until(lambda: consul_agent.request("GET", "/v1/agent/services"))
    process.popen.kill()
    process.ends()
    assert command("plan", *arguments) == 0
    assert capsys.readouterr().out == "in step: nothing to write\n"
    web.remove(force=True)
    assert command("plan", "--json", *arguments) == 2
    plan = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in plan["deregister"]] == ["host-1:web:5000"]


@pytest.mark.docker
def test_explain_gives_the_rule_of_every_value(
    dockerd: Dockerd, consul_agent: ConsulAgent, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dockerd.run("web", publish_all_ports=True, labels={"SERVICE_NAME": "shop"}, ports={"80/udp": None})
    arguments = ("-owner", "host-1", consul_agent.uri)
    assert command("explain", "web", *arguments) == 0
    text = capsys.readouterr().out
    assert "port 5000/tcp: registered: published as *:" in text
    assert "label SERVICE_NAME, with the port because there are several" in text
    assert command("explain", "web", "--json", *arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["container"] == "web"
    assert [(port["port"], port["registered"]) for port in told["ports"]] == [
        ("80/udp", True),
        ("5000/tcp", True),
    ]
    values = {value["field"]: value for value in told["ports"][1]["values"]}
    assert values["name"]["value"] == "shop-5000"
    assert values["id"] == {"field": "id", "value": "host-1:web:5000", "rule": "owner:container:port"}


@pytest.mark.docker
def test_what_is_kept_is_planned_and_explained(
    dockerd: Dockerd,
    consul_agent: ConsulAgent,
    command: Any,
    spawn: Callable[..., Process],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("-deregister", "on-success", "-owner", "host-1", consul_agent.uri)
    process = spawn(dockerd.env, *arguments)
    crashing = ["sh", "-c", "trap 'exit 7' USR1; sleep 1000 & wait"]
    web = dockerd.run("web", publish_all_ports=True, command=crashing)
    process.says("registered host-1:web:5000")
    web.kill("USR1")
    process.says("changed host-1:web:5000")
    process.popen.terminate()
    assert process.ends() == 0
    assert command("plan", *arguments) == 0
    capsys.readouterr()
    assert command("explain", "web", *arguments) == 0
    text = capsys.readouterr().out
    assert "port 5000/tcp: not registered: the container does not run" in text
    assert "kept: host-1:web:5000 stays registered, as critical: exited with code 7" in text


@pytest.mark.docker
def test_explain_of_an_unknown_container(
    dockerd: Dockerd, consul_agent: ConsulAgent, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("explain", "nobody", consul_agent.uri) == 2
    assert capsys.readouterr().err == "registrar: there is no container 'nobody'; see 'docker ps --all'\n"
