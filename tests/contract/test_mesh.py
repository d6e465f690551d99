"""Service mesh and prepared queries: what an agent answers that has none of either."""

from __future__ import annotations

import pytest

from discovery.backends import open_backend
from discovery.config import Config
from discovery.model import ConnectQuery, IngressQuery, PreparedQuery, PreparedResult, ServiceName
from tests.contract.conftest import Block
from tests.contract.subject import Subject


@pytest.mark.parametrize("kind", ["connect", "ingress"])
def test_a_service_without_proxies_or_gateways_has_an_empty_list(agent: Subject, kind: str) -> None:
    agent.register("web", Port=80)
    answer = agent.ask("GET", f"/v1/health/{kind}/web")
    assert (answer.status, answer.json) == (200, [])
    assert answer.index >= 1


@pytest.mark.parametrize("kind", ["connect", "ingress"])
def test_the_name_of_a_service_is_needed(agent: Subject, kind: str) -> None:
    answer = agent.ask("GET", f"/v1/health/{kind}/")
    assert (answer.status, answer.text) == (400, "Missing service name")


@pytest.mark.parametrize("kind", ["connect", "ingress"])
def test_an_empty_list_can_be_waited_for(agent: Subject, block: Block, kind: str) -> None:
    answer = block(f"/v1/health/{kind}/web", wait="100ms").answer()
    assert (answer.status, answer.json) == (200, [])


def test_there_are_no_prepared_queries(agent: Subject) -> None:
    answer = agent.ask("GET", "/v1/query")
    assert (answer.status, answer.json) == (200, [])


@pytest.mark.parametrize("verb", ["execute", "explain"])
def test_an_unknown_prepared_query_is_not_found(agent: Subject, verb: str) -> None:
    answer = agent.ask("GET", f"/v1/query/nope/{verb}")
    assert (answer.status, answer.text.strip()) == (404, "Query not found")


@pytest.mark.parametrize(
    "target", ["/v1/health/connect/web", "/v1/health/ingress/web", "/v1/query/nope/execute", "/v1/query"]
)
def test_an_unknown_data_centre_is_an_error(agent: Subject, target: str) -> None:
    answer = agent.ask("GET", f"{target}?dc=elsewhere")
    assert (answer.status, answer.text.strip()) == (500, "No path to datacenter")


@pytest.mark.parametrize("target", ["/v1/health/connect/web", "/v1/query/nope/execute"])
def test_they_are_for_reading(agent: Subject, target: str) -> None:
    assert agent.ask("PUT", target, {}).status == 405


def test_the_backend_finds_nothing_there(agent: Subject) -> None:
    backend = open_backend(agent.uri, Config())
    try:
        assert backend.read(ConnectQuery(ServiceName("web"))).value == ()
        assert backend.read(IngressQuery(ServiceName("web"))).value == ()
        assert backend.read(PreparedQuery("nope")).value == PreparedResult()
    finally:
        backend.close()
