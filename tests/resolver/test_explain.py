"""resolver.explain: the reasons are those of the rules."""

from __future__ import annotations

import pytest

from discovery.model import (
    ConnectQuery,
    NamesQuery,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    Query,
    Reply,
    ServiceName,
)
from resolver.explain import explain
from resolver.zone import ZoneSettings
from tests.resolver.world import entry, node

INSTANCES = (
    entry("web", "10.0.0.1", 1, tags=["v1"]),
    entry("web", "10.0.0.1", 2, tags=["v1"]),
    entry("web", "10.0.0.3", 3, tags=["v2"]),
    entry("web", "10.0.0.4", 4, tags=["v1"], status="critical"),
    entry("web", "2001:db8::5", 5, tags=["v1"]),
    entry("web", "www.example.test", 6, tags=["v1"]),
)


def read(query: Query) -> Reply:
    match query:
        case NamesQuery():
            return Reply({"web": ()}, 1)
        case NodesQuery():
            return Reply((node(),), 1)
        case PreparedQuery():
            return Reply(PreparedResult(INSTANCES, ServiceName("web"), ttl=5.0), 1)
        case ConnectQuery():
            return Reply((entry("web-proxy", "10.9.0.1", 21000, status="critical"),), 1)
    return Reply(INSTANCES, 1)


def test_each_instance_has_its_reason() -> None:
    explanation = explain("v1.web.service.consul", "A", read, ZoneSettings())
    assert explanation.answered
    assert [line.partition(": ")[0].split()[0] for line in explanation.lines[1:]] == [
        "in", "out", "out", "out", "out", "out",
    ]  # fmt: skip
    reasons = [line.partition(": ")[2] for line in explanation.lines[2:]]
    assert "given once" in reasons[0]
    assert reasons[1] == "it has no tag 'v1' (tags: v2)"
    assert "'alive' is critical" in reasons[2]
    assert reasons[3] == "its address '2001:db8::5' makes no A record"
    assert "others have addresses" in reasons[4]


def test_what_a_prepared_query_found_is_explained() -> None:
    explanation = explain("q.query.consul", "A", read, ZoneSettings())
    assert explanation.lines[0] == "NOERROR with 3 records, TTL 5"
    assert [line.split()[0] for line in explanation.lines[1:]] == ["in", "out", "in", "in", "out", "out"]


def test_the_proxies_of_a_service_are_explained() -> None:
    explanation = explain("web.connect.consul", "A", read, ZoneSettings())
    assert explanation.lines[0].startswith("NXDOMAIN")
    assert "'alive' is critical" in explanation.lines[1]


@pytest.mark.parametrize(
    ("name", "answered", "said"),
    [
        ("nope.service.consul", False, "NXDOMAIN"),
        ("www.example.test", False, "forwarded"),
        ("host-1.node.consul", True, "NOERROR with 1 record, TTL 0"),
        ("service.consul", False, "NODATA"),
    ],
)
def test_other_names(name: str, answered: bool, said: str) -> None:
    explanation = explain(name, "A", read, ZoneSettings())
    assert explanation.answered == answered
    assert said in explanation.lines[0]
