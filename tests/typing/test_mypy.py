"""Programs that use discovery are clean under ``mypy --strict``; ``make lint`` has pyright read them, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = ("program.py", "integrations.py")
WRONG = """
import discovery

port: str = discovery.lookup("web").port
discovery.lookup("web", tag=["v2"])
discovery.call("web", lambda instance: instance.prot)
"""


def mypy(*arguments: object) -> subprocess.CompletedProcess[str]:
    # Away from the project's own settings: a user's are not ours.
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", *map(str, arguments)],
        cwd=HERE.anchor,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_programs_have_no_errors(tmp_path: Path) -> None:
    done = mypy("--cache-dir", tmp_path, *(HERE / name for name in PROGRAMS))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    return path


def test_mistakes_are_found(wrong: Path, tmp_path: Path) -> None:
    done = mypy("--cache-dir", tmp_path, wrong)
    found = [line.rpartition("[")[2].rstrip("]") for line in done.stdout.splitlines() if "error:" in line]
    assert found == ["assignment", "call-arg", "attr-defined"], done.stdout
