"""docs/client.md lists every variable, strategy and error that there is, and no other."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import discovery
from discovery import errors
from discovery.balance import STRATEGIES
from discovery.config import _VARIABLES, Config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
CELL = re.compile(r"^\| ((?:`[^`|]+`(?:, )?)+)", re.MULTILINE)
"""The first cell of a table's row, when it holds code alone."""
VARIABLE = re.compile(r"(CONSUL|DISCOVERY)_[A-Z_]+[A-Z]")


def listed(section: str) -> list[str]:
    """The code in the first cells of the tables below the heading *section*."""
    body = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [word for cell in CELL.findall(body) for word in re.findall(r"`([^`]+)`", cell)]


def variables_in_code() -> set[str]:
    """The variables that `discovery.config` reads, which is the one place for that."""
    tree = ast.parse((ROOT / "discovery" / "config.py").read_text())
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {*_VARIABLES.values(), *filter(VARIABLE.fullmatch, words)}


def test_every_variable_is_listed_with_its_argument():
    assert sorted(listed("11. Configuration")) == sorted({"DISCOVERY_<NAME>", *variables_in_code()})
    rows = dict(re.findall(r"^\| `(DISCOVERY_[A-Z_<>]+)` \| `([a-z_]+)` ", PAGE, re.MULTILINE))
    assert rows == {"DISCOVERY_<NAME>": "static", **{variable: name for name, variable in _VARIABLES.items()}}


def test_the_defaults_are_right():
    said = dict(re.findall(r"^\| `DISCOVERY_\w+` \| `(\w+)` \| `?([\w.]+)`? \|", PAGE, re.MULTILINE))
    defaults = {field.name: getattr(Config.from_env({}), field.name) for field in fields(Config)}
    for name in ("timeout", "strategy", "domain", "wait", "max_watches", "idle"):
        assert (
            said[name] == f"{defaults[name]:g}" if isinstance(defaults[name], float) else str(defaults[name])
        )
    assert defaults["dns"] == (said["dns"],)
    assert defaults["share"] == said["share"]


def test_every_strategy_is_listed():
    assert set(listed("2. Choose")) == STRATEGIES.keys() - {"first"}  # what `near=` does


def test_every_error_that_a_lookup_raises_is_listed():
    public = {name for name in discovery.__all__ if name in errors.__all__}
    assert set(listed("6. When nothing is found")) == public - {"DiscoveryError", "LookupFailed"}
