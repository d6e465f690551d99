"""What the image does with the words that stand after its name in ``docker run``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINT = str(ROOT / "tools" / "docker-entrypoint")
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "CONSUL_HTTP_ADDR": "127.0.0.1:1"}


def environment(**more: str) -> dict[str, str]:
    """As in the image: its programs come first on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **NOWHERE, **more}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ENTRYPOINT, *words], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("words", [[], ["-internal"], ["-cleanup", "-resync", "30"]])
def test_a_missing_uri_is_refused_with_exit_2_and_a_sentence(words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("registrar: the registry URI is missing; end with for example consul://")
    assert done.stderr.count("\n") == 1


def test_the_version_is_told() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("portcall ")


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["--help"], "registrar run"),
        (["plan", "--help"], "registrar plan"),
        (["explain", "--help"], "registrar explain"),
        (["up", "--help"], "registrar up"),
        (["registrar", "plan", "--help"], "registrar plan"),
        (["resolver", "query", "--help"], "resolver query"),
        (["discovery", "lookup", "--help"], "discovery lookup"),
    ],
)
def test_every_program_and_command_is_reached(words: list[str], program: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program} ")


def test_a_command_s_own_faults_and_exit_codes_come_through() -> None:
    asked = run("plan", "consul://127.0.0.1:1")
    assert asked.returncode == 1
    assert "unix:///nowhere/docker.sock" in asked.stderr
    missing = run("explain")
    assert missing.returncode == 2
    assert "CONTAINER" in missing.stderr
    assert run("bootstrap", "10.0.0.3").stdout.count("docker run -d") == 3


def test_the_program_is_the_process_itself_and_gets_the_stop_signal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        words = ["-internal", f"consul://127.0.0.1:{free_port()}"]
        process = subprocess.Popen([ENTRYPOINT, *words], env=environment(), stdout=file, stderr=file)
    try:
        wait_until(lambda: "waiting for Docker" in log.read_text(), 30, message=log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
