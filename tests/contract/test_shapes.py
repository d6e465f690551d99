"""Every answer, key by key: exactly what a current Consul sends, and all that 1.8 did."""

from __future__ import annotations

from typing import Any

from tests.contract.subject import Subject

NEWER = {
    "BuildDate", "Datacenter", "ExposedPort", "Interval", "PeerName", "PrimaryDatacenter", "ServiceLocality",
    "ServiceSocketPath", "Timeout", "consul-version", "Mode",
}  # fmt: skip
"""Keys that came after 1.8, where they came."""


def _masked(raw: Any) -> Any:
    """*raw* with what differs from run to run made the same."""
    if isinstance(raw, list):
        return [_masked(item) for item in raw]
    if not isinstance(raw, dict):
        return raw
    masked = {key: _masked(value) for key, value in raw.items()}
    for key in ("CreateIndex", "ModifyIndex"):
        if masked.get(key, 0) > 0:
            masked[key] = "index"
    if "consul-network-segment" in masked:
        masked.pop("consul-version", None)
    return masked


def _without(raw: Any, keys: set[str]) -> Any:
    if isinstance(raw, list):
        return [_without(item, keys) for item in raw]
    if isinstance(raw, dict):
        return {key: _without(value, keys) for key, value in raw.items() if key not in keys}
    return raw


def _assert_shape(agent: Subject, raw: Any, current: Any, *, newer: set[str] = NEWER) -> None:
    assert _masked(raw) == agent.by_release(consul_1_8=_without(current, newer), current=current)


def _agent_service(**differs: Any) -> dict[str, Any]:
    return {
        "ID": "w", "Service": "web", "Tags": ["b", "a"], "Meta": {"k": "v"}, "Port": 80,
        "Address": "10.0.0.1", "TaggedAddresses": TAGGED, "Weights": {"Passing": 1, "Warning": 1},
        "EnableTagOverride": False, "Datacenter": "dc1", **differs,
    }  # fmt: skip


def _check(node: str, **differs: Any) -> dict[str, Any]:
    return {
        "Node": node, "CheckID": "service:w", "Name": "Service 'web' check", "Status": "critical",
        "Notes": "", "Output": "", "ServiceID": "w", "ServiceName": "web", "ServiceTags": ["b", "a"],
        "Type": "http", "Interval": "1m0s", "Timeout": "2s", "ExposedPort": 0, "Definition": {},
        "CreateIndex": "index", "ModifyIndex": "index", **differs,
    }  # fmt: skip


def _serf(node: str) -> dict[str, Any]:
    return _check(
        node, CheckID="serfHealth", Name="Serf Health Status", Status="passing",
        Output="Agent alive and reachable", ServiceID="", ServiceName="", ServiceTags=[],
        Type="", Interval="", Timeout="",
    )  # fmt: skip


def _node(name: str, node_id: str) -> dict[str, Any]:
    return {
        "ID": node_id, "Node": name, "Address": "127.0.0.1", "Datacenter": "dc1",
        "TaggedAddresses": dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), "127.0.0.1"),
        "Meta": {"consul-network-segment": ""}, "CreateIndex": "index", "ModifyIndex": "index",
    }  # fmt: skip


def _node_service(**differs: Any) -> dict[str, Any]:
    return {
        "ID": "w", "Service": "web", "Tags": ["b", "a"], "Address": "10.0.0.1", "TaggedAddresses": TAGGED,
        "Meta": {"k": "v"}, "Port": 80, "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": False,
        "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}}, "Connect": {}, "PeerName": "",
        "CreateIndex": "index", "ModifyIndex": "index", **differs,
    }  # fmt: skip


TAGGED = {key: {"Address": "10.0.0.1", "Port": 80} for key in ("lan_ipv4", "wan_ipv4")}
NODE_KEYS = NEWER - {"Datacenter"}  # which nodes always had


def _register(agent: Subject) -> tuple[str, str]:
    """Register the instance that the tests look at; return its node's name and id."""
    agent.register(
        "web", ID="w", Port=80, Address="10.0.0.1", Tags=["b", "a"], Meta={"k": "v"},
        Check={"HTTP": "http://127.0.0.1:1/", "Interval": "60s", "Timeout": "2s"},
    )  # fmt: skip
    config = agent.get("/v1/agent/self")["Config"]
    return config["NodeName"], config["NodeID"]


def test_agent_services(agent: Subject) -> None:
    _register(agent)
    _assert_shape(agent, agent.get("/v1/agent/services"), {"w": _agent_service()})
    one = agent.get("/v1/agent/service/w")
    _assert_shape(agent, one, _agent_service(ContentHash=one["ContentHash"]))


def test_agent_checks(agent: Subject) -> None:
    node, _ = _register(agent)
    wanted = {"service:w": _check(node, CreateIndex=0, ModifyIndex=0)}
    _assert_shape(agent, agent.get("/v1/agent/checks"), wanted)


def test_health_service(agent: Subject) -> None:
    node, node_id = _register(agent)
    wanted = [
        {"Node": _node(node, node_id), "Service": _node_service(), "Checks": [_serf(node), _check(node)]}
    ]
    _assert_shape(agent, agent.get("/v1/health/service/web"), wanted, newer=NODE_KEYS)


def test_health_checks_node_and_state(agent: Subject) -> None:
    node, _ = _register(agent)
    _assert_shape(agent, agent.get("/v1/health/checks/web"), [_check(node)])
    _assert_shape(agent, agent.get(f"/v1/health/node/{node}"), [_serf(node), _check(node)])
    _assert_shape(agent, agent.get("/v1/health/state/critical"), [_check(node)])


def test_catalogue_service(agent: Subject) -> None:
    node, node_id = _register(agent)
    service = {
        "ID": node_id, "Node": node, "Address": "127.0.0.1", "Datacenter": "dc1",
        "TaggedAddresses": dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), "127.0.0.1"),
        "NodeMeta": {"consul-network-segment": ""}, "ServiceKind": "", "ServiceID": "w", "ServiceName": "web",
        "ServiceTags": ["b", "a"], "ServiceAddress": "10.0.0.1", "ServiceTaggedAddresses": TAGGED,
        "ServiceWeights": {"Passing": 1, "Warning": 1}, "ServiceMeta": {"k": "v"}, "ServicePort": 80,
        "ServiceSocketPath": "", "ServiceEnableTagOverride": False,
        "ServiceProxy": {"Mode": "", "MeshGateway": {}, "Expose": {}}, "ServiceConnect": {},
        "ServiceLocality": None, "CreateIndex": "index", "ModifyIndex": "index",
    }  # fmt: skip
    _assert_shape(agent, agent.get("/v1/catalog/service/web"), [service], newer=NODE_KEYS)


def test_catalogue_nodes(agent: Subject) -> None:
    name, node_id = _register(agent)
    _assert_shape(agent, agent.get("/v1/catalog/nodes"), [_node(name, node_id)], newer=NODE_KEYS)
    node = agent.get(f"/v1/catalog/node/{name}")
    assert set(node) == {"Node", "Services"}
    assert set(node["Services"]) == {"consul", "w"}
    _assert_shape(agent, node["Node"], _node(name, node_id), newer=NODE_KEYS)
    _assert_shape(agent, node["Services"]["w"], _node_service())


def test_what_is_empty(agent: Subject) -> None:
    """Null, an empty map, or left out: each form has its own way."""
    agent.register("bare")
    agent.put("/v1/catalog/register", {"Node": "n2", "Address": "10.0.0.2", "Service": {"Service": "bare"}})
    own = next(row for row in agent.get("/v1/catalog/service/bare") if row["Node"] != "n2")
    foreign = next(row for row in agent.get("/v1/catalog/service/bare") if row["Node"] == "n2")
    for row in (own, foreign):
        assert (row["ServiceTags"], row["ServiceMeta"], row["ServicePort"]) == ([], {}, 0)
        assert "ServiceTaggedAddresses" not in row
    assert (foreign["ID"], foreign["TaggedAddresses"], foreign["NodeMeta"]) == ("", None, None)
    for entry in agent.get("/v1/health/service/bare"):
        service = entry["Service"]
        assert (service["Tags"], service["Meta"], service["Address"]) == ([], None, "")
        assert "TaggedAddresses" not in service
        assert service.get("Port", "left out") == agent.by_release(consul_1_8=0, current="left out")
    node = agent.get("/v1/catalog/node/n2")["Node"]
    assert (node["ID"], node["TaggedAddresses"], node["Meta"]) == ("", None, None)
    bare = agent.get("/v1/agent/service/bare")
    assert (bare["Tags"], bare["Meta"], bare["Port"]) == ([], {}, 0)
    assert "TaggedAddresses" not in bare


def test_the_agent_about_itself(agent: Subject) -> None:
    raw = agent.get("/v1/agent/self")
    config, member = raw["Config"], raw["Member"]
    assert config["Datacenter"] == "dc1"
    assert config["Server"] is True
    assert tuple(int(part) for part in config["Version"].split(".")[:2]) == agent.version
    assert ("portcall" in config["Version"]) == agent.is_embedded
    assert (member["Name"], member["Addr"], member["Status"]) == (config["NodeName"], "127.0.0.1", 1)
    assert member["Tags"]["dc"] == "dc1"
    assert raw["DebugConfig"]["AdvertiseAddrLAN"] == "127.0.0.1"
    assert raw["Meta"]["consul-network-segment"] == ""
    assert [row["Name"] for row in agent.get("/v1/agent/members")] == [config["NodeName"]]


def test_the_leader(agent: Subject) -> None:
    leader = agent.get("/v1/status/leader")
    address, _, port = leader.rpartition(":")
    assert (address, port.isdigit()) == ("127.0.0.1", True)
    assert agent.get("/v1/status/peers") == [leader]
    consul = agent.get(f"/v1/catalog/node/{agent.node()}")["Services"]["consul"]
    assert consul["Port"] == int(port)
