"""docs/client-reference.md is what the docstrings say, and has all that `discovery` exports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import discovery

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "client-reference.md"
FUNCTIONS = {"lookup", "lookup_all", "watch", "wait_for", "call", "register"}


def test_it_is_what_the_docstrings_say() -> None:
    tool = ROOT / "tools" / "make-reference"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_integration_of_httpx2_is_that_of_httpx() -> None:
    tool = ROOT / "tools" / "make-httpx2"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_has_all_that_is_exported() -> None:
    headings = set(re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE))
    assert set(discovery.__all__) - FUNCTIONS <= headings
    methods = set(re.findall(r"^#### Client\.(\w+)$", PAGE.read_text(), re.MULTILINE))
    assert methods >= FUNCTIONS
