"""Filter expressions of /v1/agent/services."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.contract.subject import Subject

SERVICES = [
    {"Name": "x", "ID": "x", "Port": 5, "Tags": ["a", "b"], "Meta": {"az": "1", "ver": "b"}},
    {"Name": "x", "ID": "x2", "Port": 6, "Tags": ["b"], "Meta": {"az": "2"}, "EnableTagOverride": True},
    {"Name": "y", "ID": "y", "Address": "10.0.0.1", "Weights": {"Passing": 9, "Warning": 1}},
]

FINDS: list[tuple[str, set[str]]] = [
    ("", {"x", "x2", "y"}),
    ("Service == x", {"x", "x2"}),
    ('Service == "x"', {"x", "x2"}),
    ("Service==`x`", {"x", "x2"}),
    (" Service == x\n", {"x", "x2"}),
    ("Service != x", {"y"}),
    ("Service == X", set()),
    ("Service == a.b", set()),
    ('Service == "a/b"', set()),
    ("Meta.az == 1", {"x"}),
    ('Meta.az == "2"', {"x2"}),
    ('Meta["az"] == "1"', {"x"}),
    ('Meta.az != "1"', {"x2", "y"}),
    ('Meta.none == ""', set()),
    ("Meta.az contains 1", {"x"}),
    ("az in Meta", {"x", "x2"}),
    ('"az" not in Meta', {"y"}),
    ("Meta contains ver", {"x"}),
    ("Meta is empty", {"y"}),
    ("Meta is not empty", {"x", "x2"}),
    ('"a" in Tags', {"x"}),
    ("a not in Tags", {"x2", "y"}),
    ("Tags contains b", {"x", "x2"}),
    ("Tags not contains b", {"y"}),
    ("Tags is empty", {"y"}),
    ('"x" in Service', {"x", "x2"}),
    ("Port == 5", {"x"}),
    ('Port == "6"', {"x2"}),
    ("Port != 5", {"x2", "y"}),
    ("EnableTagOverride == true", {"x2"}),
    ("EnableTagOverride == false", {"x", "y"}),
    ("Weights.Passing == 9", {"y"}),
    ('Address == ""', {"x", "x2"}),
    ("Service == x and Port == 6", {"x2"}),
    ("Port == 5 or Service == y", {"x", "y"}),
    ("ID == x or ID == x2 and Port == 9", {"x"}),
    ("(ID == x or ID == x2) and Port == 6", {"x2"}),
    ("not ID == x", {"x2", "y"}),
    ("not not ID == x", {"x"}),
    ("not (ID == x) and Service == x", {"x2"}),
]


@pytest.mark.parametrize(("expression", "found"), FINDS, ids=[row[0] for row in FINDS])
def test_finds(agent: Subject, expression: str, found: set[str]) -> None:
    for service in SERVICES:
        agent.put("/v1/agent/service/register", service)
    assert set(agent.get(f"/v1/agent/services?filter={quote(expression)}")) == found


REFUSED = [
    "bogus",
    "Bogus == 1",
    "meta.az == 1",
    "Meta.az.b == 1",
    "Meta.az is empty",
    "Meta == a",
    "Tags == a",
    "Port == abc",
    "Port == 5.0",
    "Port contains 5",
    "Port is empty",
    "Service is empty",
    "EnableTagOverride == yes",
    "Service = x",
    "Service ==",
    "Service == 'x'",
    "Service == a-b",
    "Meta.a-b == 1",
    'Service == "x',
    '"x" == Service',
    'Service in "xyz"',
    "(Service == x",
    "Service == x)",
    "Service == x and",
    "Service == x AND ID == x",
    "Service == x ID == x",
    "Datacenter == dc1",
]


@pytest.mark.parametrize("expression", REFUSED)
def test_refuses(agent: Subject, expression: str) -> None:
    answer = agent.ask("GET", f"/v1/agent/services?filter={quote(expression)}")
    assert answer.status == 500
    assert answer.text.startswith("Failed to create boolean expression evaluator: ")


@pytest.mark.parametrize("agent", ["embedded"], indirect=True)
@pytest.mark.parametrize(
    "target", ["/v1/agent/checks", "/v1/catalog/nodes", "/v1/catalog/service/web", "/v1/health/service/web"]
)
def test_the_embedded_agent_filters_its_services_only(agent: Subject, target: str) -> None:
    answer = agent.ask("GET", f"{target}?filter=Node%20==%20x")
    assert answer.status == 500
    assert answer.text.endswith("portcall's embedded agent filters /v1/agent/services only")
    matches = agent.ask("GET", '/v1/agent/services?filter=Service%20matches%20"x"')
    assert matches.status == 500


@pytest.mark.parametrize("agent", ["embedded"], indirect=True)
def test_the_embedded_agent_bounds_its_recursion(agent: Subject) -> None:
    for expression in ("(" * 5000, "not " * 5000 + "ID == x"):
        answer = agent.ask("GET", f"/v1/agent/services?filter={quote(expression)}")
        assert answer.status == 500
        assert "within each other" in answer.text
