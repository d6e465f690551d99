"""docs/dns.md says what there is: every option, every metric, and for every RFC clause code and a test."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path
from urllib.request import urlopen

import pytest

from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from resolver.cli import _parser
from resolver.config import Endpoint, Settings
from resolver.server import Resolver
from tests.docs.test_documents import ROOT

PAGE = (ROOT / "docs" / "dns.md").read_text()
MAPPED = PAGE[PAGE.index("## RFC clauses") :]
HEADS = {"Clause", "Option", "Metric", "Name", "Code", "Limit", "Difference"}
CODE_SPAN = re.compile(r"`([^`]+)`")


def rows(section: str) -> list[list[str]]:
    """The cells of the tables in *section*, without heads."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-| ") and row[0] not in HEADS]


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def named_in(folder: Path) -> dict[str, set[str]]:
    """The names of the tests in each file of *folder*."""
    return {
        path.stem: {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        for path in folder.glob("test_*.py")
    }


TESTS = named_in(ROOT / "tests" / "resolver")


@pytest.mark.parametrize("row", rows(MAPPED), ids=lambda row: row[0])
def test_every_clause_has_code_and_a_test(row: list[str]) -> None:
    clause, obligation, code, test = row
    assert clause
    assert obligation
    for path in CODE_SPAN.findall(code):
        module, _, name = path.partition(".")
        found = importlib.import_module(f"resolver.{module}")
        for part in name.split("."):
            found = getattr(found, part)
    named = CODE_SPAN.findall(test)
    assert named
    for one in named:
        assert any(one in names for names in TESTS.values()), f"there is no {one} in tests/resolver"


def test_every_rfc_that_the_code_cites_has_a_row() -> None:
    clauses = " ".join(row[0] for row in rows(MAPPED))
    cited = {
        number
        for path in (ROOT / "resolver").glob("*.py")
        for number in re.findall(r"RFC (\d+)", path.read_text())
    }
    assert cited - set(re.findall(r"RFC (\d+)", clauses)) == set()


def test_every_test_named_by_a_clause_has_a_row() -> None:
    assert TESTS["test_rfc"] - set(CODE_SPAN.findall(MAPPED)) == set()


def run_actions() -> list[argparse.Action]:
    (commands,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return [one for one in commands.choices["run"]._actions if one.dest != "help"]


def test_the_options_are_those_of_the_command() -> None:
    described = {
        CODE_SPAN.findall(option)[0]: default
        for option, default, _ in rows(section("Options of `resolver run`"))
    }
    assert set(described) == {f"{one.option_strings[0]} {one.metavar}" for one in run_actions()}
    defaults = {field.name: getattr(Settings(), field.name) for field in fields(Settings)}
    defaults["answer_limit"] = Settings().zone.a_record_limit
    for action in run_actions():
        default = defaults.get(action.dest)
        if isinstance(default, int | float):
            told = described[f"{action.option_strings[0]} {action.metavar}"]
            assert told == f"{default:g}", action.dest


def test_the_keys_of_consul_are_those_that_have_an_effect() -> None:
    source = (ROOT / "resolver" / "config.py").read_text()
    read = set(re.findall(r'\b(?:read|dns)\.(?!inside)\w+\(\s*"(\w+)"', source))
    read |= {f"soa.{key}" for key in re.findall(r'\bsoa\.\w+\(\s*"(\w+)"', source)}
    told = section("Options of `resolver run`").rpartition("every other key")[2]
    assert set(CODE_SPAN.findall(told)) - {"dns_config"} == read


def test_the_metrics_are_those_that_are_served(agent_metrics: set[str]) -> None:
    told = " ".join(row[0] for row in rows(section("Metrics and query log")))
    assert {name.partition("{")[0] for name in CODE_SPAN.findall(told)} == agent_metrics


@pytest.fixture
def agent_metrics() -> set[str]:
    """The names of the metrics of a resolver that runs."""
    listen = Endpoint("127.0.0.1", 0)
    settings = Settings(listen=(listen,), metrics=listen, upstreams=())
    with Agent(http=("127.0.0.1", 0)) as agent:
        backend = open_backend(agent.uri, Config())
        with Resolver(settings, backend) as resolver, urlopen(f"http://{resolver.metrics}/metrics") as told:
            text = told.read().decode()
        backend.close()
    return set(re.findall(r"^# TYPE portcall_resolver_(\w+)", text, re.MULTILINE))
