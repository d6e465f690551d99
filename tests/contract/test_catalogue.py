"""The catalogue: what is written to it directly, and what it answers about services and nodes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.subject import Subject

REGISTER = "/v1/catalog/register"
DEREGISTER = "/v1/catalog/deregister"
UUID = "40e4a748-2192-161a-0510-9bf59fe950b5"


def _node(name: str = "n2", address: str = "10.0.0.2", **fields: Any) -> dict[str, Any]:
    return {"Node": name, "Address": address, **fields}


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (None, 400, "Request decode failed: EOF"),
        ({}, 500, "Must provide node"),
        ({"Address": "10.0.0.1"}, 500, "Must provide node"),
        ({"Node": "n"}, 500, "Must provide address if SkipNodeUpdate is not set"),
        ({"Node": 5, "Address": "x"}, 400, "Request decode failed: json: cannot unmarshal number *"),
        (_node(Bogus=1), 400, 'Request decode failed: json: unknown field "Bogus"'),
        (_node(Datacenter="dc9"), 500, "No path to datacenter"),
        (_node(ID="nonuuid"), 500, "Bad node ID: uuid string is wrong length"),
        (_node(Service={"ID": "x"}), 500, "Must provide service name *"),
        (_node(Service={"Service": "s", "Port": "80"}), 400,
         "Request decode failed: json: cannot unmarshal string *"),
        (_node(Service={"Service": "s", "X": 1}), 400, 'Request decode failed: json: unknown field "X"'),
        (_node(Service={"Service": "s", "Address": "0.0.0.0"}), 500, "Invalid service address"),
        (_node(Service={"Service": "s", "Meta": {"a b": "c"}}), 500,
         "failed inserting service: Invalid Service Meta for node n2 and serviceID s: "
         "Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters"),
        (_node(Check={"Name": "c", "ServiceID": "none", "Status": "passing"}), 500, "*"),
        (_node(Check={"CheckID": "c", "Node": "other"}), 500, "*"),
        (_node(Check={"Status": "passing"}), 500, "failed inserting check*"),
        (_node(Checks={"a": 1}), 400, "Request decode failed: json: cannot unmarshal object *"),
    ],
    ids=str,
)  # fmt: skip
def test_refuses(agent: Subject, body: Any, status: int, text: str) -> None:
    answer = agent.ask("PUT", REGISTER, body)
    assert answer.status == status
    if text.endswith("*"):
        assert answer.text.startswith(text[:-1].removesuffix(" "))
    else:
        assert answer.text == text


def test_refuses_all_or_takes_all(agent: Subject) -> None:
    body = _node(Service={"Service": "s"}, Check={"Name": "c", "ServiceID": "none"})
    assert agent.ask("PUT", REGISTER, body).status == 500
    assert [node["Node"] for node in agent.get("/v1/catalog/nodes")] == [agent.node()]


def test_registers_a_node_with_a_service_and_checks(agent: Subject) -> None:
    answer = agent.ask(
        "PUT",
        REGISTER,
        _node(
            ID=UUID,
            TaggedAddresses={"lan": "10.0.0.2", "wan": "1.1.1.2"},
            NodeMeta={"zone": "a"},
            Service={"Service": "cat", "ID": "c1", "Port": 70, "Tags": ["t"], "Address": "10.0.0.7"},
            Check={"Name": "of the node", "CheckID": "n", "Status": "passing"},
            Checks=[{"Name": "of cat", "ServiceID": "c1", "ServiceName": "wrong", "Output": "o"}],
        ),
    )
    assert (answer.status, answer.json) == (200, True)
    (entry,) = agent.get("/v1/health/service/cat")
    node, service = entry["Node"], entry["Service"]
    assert (node["Node"], node["ID"], node["Address"], node["Datacenter"]) == ("n2", UUID, "10.0.0.2", "dc1")
    assert (node["TaggedAddresses"], node["Meta"]) == ({"lan": "10.0.0.2", "wan": "1.1.1.2"}, {"zone": "a"})
    assert (service["ID"], service["Port"], service["Tags"], service["Address"]) == (
        "c1",
        70,
        ["t"],
        "10.0.0.7",
    )
    assert "TaggedAddresses" not in service, "only agents fill them in"
    assert [
        (check["CheckID"], check["Status"], check["ServiceID"], check["ServiceName"], check["ServiceTags"])
        for check in entry["Checks"]
    ] == [("n", "passing", "", "", []), ("of cat", "critical", "c1", "cat", ["t"])]


def test_a_node_that_comes_back_with_another_name(agent: Subject) -> None:
    agent.put(REGISTER, _node("old", ID=UUID, Service={"Service": "cat"}))
    agent.put(REGISTER, _node("new", ID=UUID))
    assert sorted(node["Node"] for node in agent.get("/v1/catalog/nodes")) == sorted([agent.node(), "new"])
    assert agent.get("/v1/catalog/service/cat") == []


def test_a_node_may_be_left_as_it_is(agent: Subject) -> None:
    agent.put(REGISTER, _node())
    agent.put(REGISTER, {"Node": "n2", "SkipNodeUpdate": True, "Service": {"Service": "cat"}})
    assert agent.get("/v1/catalog/node/n2")["Node"]["Address"] == "10.0.0.2"
    agent.put(REGISTER, {"Node": "n3", "SkipNodeUpdate": True})
    assert agent.get("/v1/catalog/node/n3")["Node"]["Address"] == ""


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (None, 400, "Request decode failed: EOF"),
        ({}, 500, "Must provide node"),
        ({"Node": "n2", "Bogus": 1}, 400, 'Request decode failed: json: unknown field "Bogus"'),
        ({"Node": "n2", "Datacenter": "dc9"}, 500, "No path to datacenter"),
        ({"Node": "none"}, 200, "true"),
        ({"Node": "n2", "ServiceID": "none"}, 200, "true"),
        ({"Node": "n2", "CheckID": "none"}, 200, "true"),
    ],
    ids=str,
)
def test_deregistering_what_is_not_there(agent: Subject, body: Any, status: int, text: str) -> None:
    agent.put(REGISTER, _node())
    answer = agent.ask("PUT", DEREGISTER, body)
    assert (answer.status, answer.text.strip()) == (status, text)
    assert agent.get("/v1/catalog/node/n2") is not None


def test_deregisters_a_check_a_service_a_node(agent: Subject) -> None:
    agent.put(
        REGISTER,
        _node(
            Service={"Service": "cat"},
            Checks=[{"Name": "n"}, {"Name": "c", "ServiceID": "cat"}, {"Name": "d", "ServiceID": "cat"}],
        ),
    )

    def checks() -> list[str]:
        return [check["CheckID"] for check in agent.get("/v1/health/node/n2")]

    assert checks() == ["c", "d", "n"]
    agent.put(DEREGISTER, {"Node": "N2", "CheckID": "c"})
    assert checks() == ["d", "n"]
    agent.put(DEREGISTER, {"Node": "n2", "ServiceID": "cat", "CheckID": "n"})
    assert checks() == ["n"]
    assert agent.get("/v1/catalog/node/n2")["Services"] == {}
    agent.put(DEREGISTER, {"Node": "n2"})
    assert checks() == []
    assert agent.get("/v1/catalog/node/n2") is None


def test_names_are_compared_without_case(agent: Subject) -> None:
    agent.put(REGISTER, _node("Node-A", Service={"Service": "Web", "ID": "1", "Tags": ["A"]}))
    agent.put(REGISTER, _node("node-b", Service={"Service": "web", "ID": "2", "Tags": ["b"]}))
    assert agent.get("/v1/catalog/services") == {"Web": ["A"], "consul": [], "web": ["b"]}
    for name in ("web", "WEB"):
        assert [row["Node"] for row in agent.get(f"/v1/catalog/service/{name}")] == ["Node-A", "node-b"]
        assert [row["Node"]["Node"] for row in agent.get(f"/v1/health/service/{name}")] == [
            "Node-A",
            "node-b",
        ]
    assert [row["Node"] for row in agent.get("/v1/catalog/service/web?tag=a")] == ["Node-A"]
    assert agent.get("/v1/catalog/node/NODE-a")["Node"]["Node"] == "Node-A"
    agent.put(REGISTER, _node("NODE-A", "10.0.0.9"))
    assert agent.get("/v1/catalog/node/node-a")["Node"]["Node"] == "NODE-A"


@pytest.mark.parametrize("path", ["/v1/catalog/service/web", "/v1/health/service/web"])
def test_tags_narrow_down(agent: Subject, path: str) -> None:
    agent.register("web", ID="1", Tags=["a", "b"])
    agent.register("web", ID="2", Tags=["b", ""])

    def found(query: str) -> list[str]:
        return [row.get("ServiceID") or row["Service"]["ID"] for row in agent.get(path + query)]

    assert found("") == ["1", "2"]
    assert found("?tag=b") == ["1", "2"]
    assert found("?tag=b&tag=a") == ["1"]
    assert found("?tag=A") == ["1"]
    assert found("?tag=") == ["2"]
    assert found("?tag=c") == []


def test_names_with_the_tags_of_all_instances(agent: Subject) -> None:
    agent.register("web", ID="1", Tags=["a", "b", "a"])
    agent.register("web", ID="2", Tags=["c", "b"])
    agent.register("plain")
    names = {name: sorted(tags) for name, tags in agent.get("/v1/catalog/services").items()}
    assert names == {"consul": [], "plain": [], "web": ["a", "b", "c"]}


def test_the_answers_are_in_order(agent: Subject) -> None:
    for node in ("n3", "n1", "n2"):
        for service_id in ("b", "c", "a"):
            agent.put(REGISTER, _node(node, Service={"Service": "cat", "ID": service_id}))
    wanted = [(node, service_id) for node in ("n1", "n2", "n3") for service_id in "abc"]
    assert [(row["Node"], row["ServiceID"]) for row in agent.get("/v1/catalog/service/cat")] == wanted
    health = agent.get("/v1/health/service/cat")
    assert [(row["Node"]["Node"], row["Service"]["ID"]) for row in health] == wanted


@pytest.mark.parametrize(
    ("query", "found"),
    [("", "pwc"), ("?passing", "p"), ("?passing=true", "p"), ("?passing=1", "p"), ("?passing=false", "pwc")],
)
def test_passing_leaves_out_what_is_not(agent: Subject, query: str, found: str) -> None:
    for service_id, status in (("p", "passing"), ("w", "warning"), ("c", "critical")):
        agent.register("web", ID=service_id, Check={"TTL": "60s", "Status": status})
    rows = agent.get(f"/v1/health/service/web{query}")
    assert {row["Service"]["ID"] for row in rows} == set(found)


def test_checks_by_service_and_by_state(agent: Subject) -> None:
    agent.register("web", ID="1", Check={"TTL": "60s", "Status": "passing"})
    agent.register("web", ID="2", Check={"TTL": "60s", "Status": "warning"})
    agent.register("other", Check={"TTL": "60s"})

    def ids(path: str) -> list[str]:
        return [check["CheckID"] for check in agent.get(f"/v1/health/{path}")]

    assert ids("checks/web") == ids("checks/WEB") == ["service:1", "service:2"]
    assert ids("checks/none") == []
    assert ids("state/passing") == ["serfHealth", "service:1"]
    assert ids("state/warning") == ["service:2"]
    assert ids("state/critical") == ["service:other"]
    assert ids("state/any") == ["serfHealth", "service:1", "service:2", "service:other"]
    assert ids("state/bogus") == []


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("/v1/catalog/service/none", []),
        ("/v1/health/service/none", []),
        ("/v1/health/checks/none", []),
        ("/v1/health/node/none", []),
        ("/v1/catalog/node/none", None),
        ("/v1/catalog/datacenters", ["dc1"]),
        ("/v1/catalog/datacenters?dc=dc9", ["dc1"]),
        ("/v1/catalog/services?dc=dc1", {"consul": []}),
        ("/v1/catalog/services?dc=", {"consul": []}),
        ("/v1/health/service/none?near=_agent&stale&cached", []),
        ("/v1/agent/services?dc=dc9&index=abc", {}),
    ],
)
def test_answers(agent: Subject, target: str, value: Any) -> None:
    assert agent.get(target) == value


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        *((f"/v1/{path}?dc={dc}", 500, "No path to datacenter")
          for dc in ("dc9", "DC1")
          for path in ("catalog/nodes", "catalog/services", "catalog/service/x", "catalog/node/x",
                       "health/service/x", "health/node/x", "health/checks/x", "health/state/any",
                       "status/leader", "status/peers")),
        ("/v1/catalog/service/", 400, "Missing service name"),
        ("/v1/catalog/node/", 400, "Missing node name"),
        ("/v1/health/service/", 400, "Missing service name"),
        ("/v1/health/checks/", 400, "Missing service name"),
        ("/v1/health/node/", 400, "Missing node name"),
        ("/v1/health/state/", 400, "Missing check state"),
        ("/v1/health/service/x?passing=bogus", 400, "Invalid value for ?passing"),
        ("/v1/health/service/x?stale&consistent", 400,
         "Cannot specify ?stale with ?consistent, conflicting semantics."),
    ],
)  # fmt: skip
def test_refuses_to_read(agent: Subject, target: str, status: int, text: str) -> None:
    answer = agent.ask("GET", target)
    assert (answer.status, answer.text) == (status, text)


@pytest.mark.parametrize(
    ("parameter", "feature"), [("ns", "Namespaces are"), ("partition", "Partitions are")]
)
@pytest.mark.parametrize("method_and_path", ["GET /v1/health/service/x", "PUT /v1/agent/service/register"])
def test_refuses_what_only_enterprise_has(
    agent: Subject, method_and_path: str, parameter: str, feature: str
) -> None:
    if parameter == "partition" and agent.by_release(consul_1_8=True, current=False):
        return  # 1.8 has never heard of them, and passes over the parameter
    method, path = method_and_path.split()
    answer = agent.ask(method, f"{path}?{parameter}=default", {"Name": "x"})
    text = f'Invalid query parameter: "{parameter}" - {feature} a Consul Enterprise feature'
    assert answer.status == 400
    assert answer.text == agent.by_release(consul_1_8=f"Bad request: {text}", current=text)
