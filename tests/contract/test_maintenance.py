"""Maintenance: a critical check that stands for a decision."""

from __future__ import annotations

import pytest

from tests.contract.subject import Subject

DEFAULT = "Maintenance mode is enabled for this {}, but no reason was provided. This is a default message."


def test_takes_an_instance_out_and_back(agent: Subject) -> None:
    agent.register("web", ID="1")
    agent.register("web", ID="2")
    agent.put("/v1/agent/service/maintenance/1?enable=true&reason=why+not")
    assert [row["Service"]["ID"] for row in agent.get("/v1/health/service/web?passing")] == ["2"]
    check = agent.check("_service_maintenance:1")
    assert (check["Name"], check["Status"], check["Notes"], check["Output"], check["Type"]) == (
        "Service Maintenance Mode",
        "critical",
        "why not",
        "",
        "maintenance",
    )
    assert (check["ServiceID"], check["ServiceName"]) == ("1", "web")
    agent.put("/v1/agent/service/maintenance/1?enable=true&reason=another")
    assert agent.check("_service_maintenance:1")["Notes"] == "why not"
    agent.put("/v1/agent/service/maintenance/1?enable=false")
    agent.put("/v1/agent/service/maintenance/1?enable=false")
    assert [row["Service"]["ID"] for row in agent.get("/v1/health/service/web?passing")] == ["1", "2"]
    agent.put("/v1/agent/service/maintenance/1?enable=1")
    assert agent.check("_service_maintenance:1")["Notes"] == DEFAULT.format("service")


def test_takes_the_node_out_and_back(agent: Subject) -> None:
    agent.register("web")
    agent.put("/v1/agent/maintenance?enable=true")
    check = agent.check("_node_maintenance")
    assert (check["Name"], check["Status"], check["Notes"], check["Type"], check["ServiceID"]) == (
        "Node Maintenance Mode",
        "critical",
        DEFAULT.format("node"),
        "maintenance",
        "",
    )
    assert agent.get("/v1/health/service/web?passing") == []
    assert agent.get("/v1/health/service/consul?passing") == []
    agent.put("/v1/agent/maintenance?enable=false")
    assert len(agent.get("/v1/health/service/web?passing")) == 1


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("service/maintenance/web", 400, "Missing value for enable"),
        ("service/maintenance/web?enable=", 400, 'Invalid value for enable: ""'),
        ("service/maintenance/web?enable=yes", 400, 'Invalid value for enable: "yes"'),
        ("service/maintenance/?enable=true", 400, "Missing service ID"),
        ("maintenance", 400, "Missing value for enable"),
        ("maintenance?enable=yes", 400, 'Invalid value for enable: "yes"'),
    ],
)
def test_refuses(agent: Subject, target: str, status: int, text: str) -> None:
    agent.register("web")
    answer = agent.ask("PUT", f"/v1/agent/{target}")
    assert (answer.status, answer.text) == (status, text)
    assert agent.get("/v1/agent/checks") == {}


def test_refuses_an_unknown_service(agent: Subject) -> None:
    answer = agent.ask("PUT", "/v1/agent/service/maintenance/none?enable=true")
    assert answer.status == 404
    assert answer.text == agent.by_release(
        consul_1_8='No service registered with ID "none"',
        current='Unknown service ID "none". Ensure that the service ID is passed, not the service name.',
    )
