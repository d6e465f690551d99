"""Registering services: what is refused and with which words, what is filled in, what is kept."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.contract.subject import Subject

REGISTER = "/v1/agent/service/register"

# What stands before a * is what the text begins with: the rest are names of Go's types, or what it repeats.
DECODE = "Request decode failed: "
UNKNOWN = f"{DECODE}json: unknown field "
CANNOT = f"{DECODE}json: cannot unmarshal "
META = "Invalid Service Meta: "
PAIR = f"{META}Couldn't load metadata pair "
WEIGHTS = "Invalid Weights: "
CHECK = "Invalid check: "
NO_TTL = f"{CHECK}TTL must be > 0 for TTL checks"
INTERVAL = (
    f"{CHECK}Interval must be > 0 for Script, HTTP, or TCP checks",
    f"{CHECK}Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
)
SCRIPTS = (
    "Scripts are disabled on this agent from remote calls; "
    "to enable, configure 'enable_script_checks' to true"
)


def _with(**check: Any) -> dict[str, Any]:
    return {"Name": "x", "Check": check}


REFUSED: list[tuple[str, Any, int, str | tuple[str, str]]] = [
    # body -> status, text (or a pair: Consul 1.8's, the current one's)
    ("no body", None, 400, DECODE + "EOF"),
    ("no json", b"not json", 400, DECODE + "*"),
    ("array", [], 400, CANNOT + "array into Go *"),
    ("null", b"null", 400, "Missing service name"),
    ("empty", {}, 400, "Missing service name"),
    ("empty name", {"Name": ""}, 400, "Missing service name"),
    ("id only", {"ID": "x"}, 400, "Missing service name"),
    ("unknown field", {"Name": "x", "Bogus": 1}, 400, UNKNOWN + '"Bogus"'),
    ("namespace", {"Name": "x", "Namespace": "n"}, 400, UNKNOWN + '"Namespace"'),
    ("name is a number", {"Name": 5}, 400, CANNOT + "number into Go *"),
    ("port is a string", {"Name": "x", "Port": "80"}, 400, CANNOT + "string *"),
    ("port is a fraction", {"Name": "x", "Port": 80.5}, 400, CANNOT + "number 80.5 *"),
    ("port is 80.0", b'{"Name":"x","Port":80.0}', 400, CANNOT + "number 80.0 *"),
    ("port is true", {"Name": "x", "Port": True}, 400, CANNOT + "bool *"),
    ("port of 70 bits", b'{"Name":"x","Port":999999999999999999999}', 400, CANNOT + "*"),
    ("address is a number", {"Name": "x", "Address": 5}, 400, CANNOT + "number *"),
    ("tags are a string", {"Name": "x", "Tags": "a"}, 400, CANNOT + "string *"),
    ("tag is a number", {"Name": "x", "Tags": [1]}, 400, CANNOT + "number *"),
    ("meta is a list", {"Name": "x", "Meta": []}, 400, CANNOT + "array *"),
    ("meta is a number", {"Name": "x", "Meta": {"a": 1}}, 400, CANNOT + "number *"),
    ("override is a string", {"Name": "x", "EnableTagOverride": "yes"}, 400, CANNOT + "*"),
    ("tagged address is a string", {"Name": "x", "TaggedAddresses": {"lan": "10.0.0.1"}}, 400, DECODE + "*"),
    ("tagged port is a string", {"Name": "x", "TaggedAddresses": {"lan": {"Port": "7"}}}, 400, DECODE + "*"),
    ("tagged unknown field", {"Name": "x", "TaggedAddresses": {"lan": {"X": 1}}}, 400, UNKNOWN + '"X"'),
    ("any address", {"Name": "x", "Address": "0.0.0.0"}, 400, "Invalid service address"),
    ("any IPv6 address", {"Name": "x", "Address": "::"}, 400, "Invalid service address"),
    ("any address in brackets", {"Name": "x", "Address": "[::]"}, 400, "Invalid service address"),
    ("meta key with a space", {"Name": "x", "Meta": {"a b": "1"}}, 400,
     PAIR + "('a b', '1'): Key contains invalid characters"),
    ("meta key with a dot", {"Name": "x", "Meta": {"a.b": "1"}}, 400,
     PAIR + "('a.b', '1'): Key contains invalid characters"),
    ("meta key empty", {"Name": "x", "Meta": {"": "1"}}, 400, PAIR + "('', '1'): Key cannot be blank"),
    ("meta key too long", {"Name": "x", "Meta": {"k" * 129: "1"}}, 400, META + "*"),
    ("meta key reserved", {"Name": "x", "Meta": {"consul-x": "1"}}, 400,
     PAIR + "('consul-x', '1'): Key prefix 'consul-' is reserved for internal use"),
    ("meta value with too many octets", {"Name": "x", "Meta": {"k": "ü" * 257}}, 400, PAIR + "('k', *"),
    ("meta value too long", {"Name": "x", "Meta": {"k": "v" * 513}}, 400, PAIR + "('k', *"),
    ("65 metas", {"Name": "x", "Meta": {f"k{n}": "v" for n in range(65)}}, 400,
     META + "Node metadata cannot contain more than 64 key/value pairs"),
    ("weight 0", {"Name": "x", "Weights": {"Passing": 0}}, 400, WEIGHTS + "Passing must be greater than 0"),
    ("weights empty", {"Name": "x", "Weights": {}}, 400, WEIGHTS + "Passing must be greater than 0"),
    ("weight too large", {"Name": "x", "Weights": {"Passing": 65536}}, 400,
     WEIGHTS + "DNS Weight must be between 0 and 65535"),
    ("warning weight < 0", {"Name": "x", "Weights": {"Passing": 1, "Warning": -1}}, 400,
     WEIGHTS + "Warning must be greater or equal than 0"),
    ("check is a list", {"Name": "x", "Check": []}, 400, CANNOT + "array *"),
    ("checks are an object", {"Name": "x", "Checks": {}}, 400, CANNOT + "object *"),
    ("a check is a number", {"Name": "x", "Checks": [5]}, 400, CANNOT + "number *"),
    ("an empty one of the checks", {"Name": "x", "Checks": [{}]}, 400, NO_TTL),
    ("check with an unknown field", _with(TTL="10s", Bogus=1), 400, UNKNOWN + '"Bogus"'),
    ("check with ID", _with(TTL="10s", ID="y"), 400, UNKNOWN + '"ID"'),
    ("check with Script", _with(Script="true", Interval="10s"), 400, UNKNOWN + '"Script"'),
    ("ttl without a unit", _with(TTL="10"), 400, DECODE + 'time: missing unit in duration "10"'),
    ("ttl empty", _with(TTL=""), 400, DECODE + 'time: invalid duration ""'),
    ("ttl no duration", _with(TTL="abc"), 400, DECODE + 'time: invalid duration "abc"'),
    ("ttl of an unknown unit", _with(TTL="1x"), 400, DECODE + 'time: unknown unit "x" in duration "1x"'),
    ("ttl with a space", _with(TTL="5 s"), 400, DECODE + 'time: unknown unit " s" in duration "5 s"'),
    ("ttl < 0", _with(TTL="-5s"), 400, NO_TTL),
    ("ttl with interval", _with(TTL="10s", Interval="10s"), 400,
     CHECK + "Interval and TTL cannot both be specified"),
    ("interval without a unit", _with(HTTP="http://127.0.0.1/", Interval="10"), 400,
     DECODE + 'time: missing unit in duration "10"'),
    ("deregister without a unit", _with(TTL="10s", DeregisterCriticalServiceAfter="1"), 400,
     DECODE + 'time: missing unit in duration "1"'),
    ("http without interval", _with(HTTP="http://127.0.0.1/"), 400, INTERVAL),
    ("http with interval < 0", _with(HTTP="http://127.0.0.1/", Interval="-1s"), 400, INTERVAL),
    ("http with ttl", _with(HTTP="http://127.0.0.1/", TTL="10s"), 400, INTERVAL),
    ("tcp without interval", _with(TCP="127.0.0.1:1"), 400, INTERVAL),
    ("grpc without interval", _with(GRPC="127.0.0.1:1"), 400, INTERVAL),
    ("http is a number", _with(HTTP=5), 400, CANNOT + "number *"),
    ("header is a string", _with(HTTP="x", Interval="9s", Header={"a": "b"}), 400, CANNOT + "string *"),
    ("check of nothing", _with(Name="n"), 400, NO_TTL),
    ("interval alone", _with(Interval="10s"), 400, NO_TTL),
    ("deregister alone", _with(DeregisterCriticalServiceAfter="1m"), 400, NO_TTL),
    ("unknown status", _with(TTL="10s", Status="bogus"), 400,
     "Status for checks must 'passing', 'warning', 'critical'"),
    ("script", _with(Args=["true"], Interval="10s"), 500, SCRIPTS),
    ("script, other spelling", _with(script_args=["true"], interval="10s"), 500, SCRIPTS),
    ("script without interval", _with(Args=["true"]), 400, INTERVAL),
    ("docker", _with(DockerContainerID="abc", Args=["true"], Interval="10s"), 500, SCRIPTS),
    ("docker without a command", _with(DockerContainerID="abc", Interval="10s"), 400, NO_TTL),
]  # fmt: skip


def _assert_text(agent: Subject, text: str, wanted: str | tuple[str, str]) -> None:
    if isinstance(wanted, tuple):
        wanted = agent.by_release(consul_1_8=wanted[0], current=wanted[1])
    if wanted.endswith("*"):
        assert text.startswith(wanted[:-1])
    else:
        assert text == wanted


@pytest.mark.parametrize(
    ("body", "status", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refuses(agent: Subject, body: Any, status: int, text: str | tuple[str, str]) -> None:
    answer = agent.ask("PUT", REGISTER, body)
    assert answer.status == status, answer
    _assert_text(agent, answer.text, text)
    assert agent.get("/v1/agent/services") == {}
    assert agent.get("/v1/agent/checks") == {}


ACCEPTED: list[tuple[str, Any, dict[str, Any]]] = [
    # body -> what /v1/agent/services says of it, where it differs from DEFAULTS
    ("name alone", {"Name": "x"}, {}),
    ("keys in lower case", {"name": "x", "port": 1, "tags": ["a"]}, {"Port": 1, "Tags": ["a"]}),
    ("keys in snake case",
     {"Name": "x", "enable_tag_override": True, "tagged_addresses": {"a": {"address": "b", "port": 1}}},
     {"EnableTagOverride": True, "TaggedAddresses": {"a": {"Address": "b", "Port": 1}}}),
    ("nulls", {"Name": "x", **dict.fromkeys(
        ("Port", "Tags", "Meta", "Weights", "TaggedAddresses", "Check", "Checks", "Address", "ID"))}, {}),
    ("null tag", b'{"Name":"x","Tags":[null,"a"]}', {"Tags": ["", "a"]}),
    ("something after the object", b'{"Name":"x"} {"Name":"y"}', {}),
    ("port < 0", {"Name": "x", "Port": -1}, {"Port": -1}),
    ("port of 17 bits", {"Name": "x", "Port": 99999}, {"Port": 99999}),
    ("a host name", {"Name": "x", "Address": "h.example", "Port": 7}, {"Address": "h.example", "Port": 7}),
    ("no address at all", {"Name": "x", "Address": "not an address"}, {"Address": "not an address"}),
    ("tags twice", {"Name": "x", "Tags": ["b", "a", "a", ""]}, {"Tags": ["b", "a", "a", ""]}),
    ("meta", {"Name": "x", "Meta": {"k_-A1": "", "b": "é"}}, {"Meta": {"k_-A1": "", "b": "é"}}),
    ("weights", {"Name": "x", "Weights": {"Passing": 65535, "Warning": 0}},
     {"Weights": {"Passing": 65535, "Warning": 0}}),
    ("half of the weights", {"Name": "x", "Weights": {"Passing": 3}},
     {"Weights": {"Passing": 3, "Warning": 0}}),
    ("mesh fields, empty", {"Name": "x", "Kind": "", "Proxy": {}, "Connect": {}}, {}),
    ("token", {"Name": "x", "Token": "t"}, {}),
    ("an IPv4 address", {"Name": "x", "Address": "10.0.0.1", "Port": 7},
     {"Address": "10.0.0.1", "Port": 7, "TaggedAddresses": {
         "lan_ipv4": {"Address": "10.0.0.1", "Port": 7}, "wan_ipv4": {"Address": "10.0.0.1", "Port": 7}}}),
    ("an IPv6 address", {"Name": "x", "Address": "fd00::1", "Port": 7},
     {"Address": "fd00::1", "Port": 7, "TaggedAddresses": {
         "lan_ipv6": {"Address": "fd00::1", "Port": 7}, "wan_ipv6": {"Address": "fd00::1", "Port": 7}}}),
    ("an IPv4 address and its own lan", {"Name": "x", "Address": "10.0.0.1", "TaggedAddresses": {
        "lan_ipv4": {"Address": "10.0.0.2", "Port": 9}, "lan": {"Address": "10.0.0.3", "Port": 8}}},
     {"Address": "10.0.0.1", "TaggedAddresses": {
         "lan": {"Address": "10.0.0.3", "Port": 8}, "lan_ipv4": {"Address": "10.0.0.2", "Port": 9},
         "wan_ipv4": {"Address": "10.0.0.1", "Port": 0}}}),
]  # fmt: skip
DEFAULTS = {
    "ID": "x",
    "Service": "x",
    "Tags": [],
    "Meta": {},
    "Port": 0,
    "Address": "",
    "Weights": {"Passing": 1, "Warning": 1},
    "EnableTagOverride": False,
}


@pytest.mark.parametrize(("body", "differs"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepts(agent: Subject, body: Any, differs: dict[str, Any]) -> None:
    agent.put(REGISTER, body)
    dc = agent.by_release(consul_1_8={}, current={"Datacenter": "dc1"})
    assert agent.get("/v1/agent/services") == {"x": {**DEFAULTS, **differs, **dc}}


@pytest.mark.parametrize(
    ("check", "status"),
    [
        ({"TTL": "10s"}, "critical"),
        ({"TTL": "10s", "Status": "passing"}, "passing"),
        ({"TTL": "1m0.5s", "Status": ""}, "critical"),
        ({"TTL": 10_000_000_000}, "critical"),
        ({"TTL": 1e10}, "critical"),
        ({"ttl": "10s", "serviceid": "y"}, "critical"),
        ({"HTTP": "nourl", "Interval": "60s"}, "critical"),
        (
            {"HTTP": "http://127.0.0.1:1/", "TCP": "127.0.0.1:1", "Interval": "60s", "Status": "warning"},
            "warning",
        ),
        ({"TTL": "10s", "DeregisterCriticalServiceAfter": "1s", "tls_skip_verify": True}, "critical"),
    ],
    ids=str,
)
def test_accepts_checks(agent: Subject, check: dict[str, Any], status: str) -> None:
    agent.put(REGISTER, _with(**check))
    assert agent.check("service:x")["Status"] == status


@pytest.mark.parametrize("fields", [{"Check": {}}, {"Check": {"TTL": "0s"}}, {"Checks": []}], ids=str)
def test_an_empty_check_is_none(agent: Subject, fields: dict[str, Any]) -> None:
    agent.register("x", **fields)
    assert agent.get("/v1/agent/checks") == {}


def test_names_checks_after_their_service(agent: Subject) -> None:
    agent.register("one", ID="1", Check={"TTL": "10s"})
    agent.register("two", ID="2", Check={"TTL": "10s", "Name": "first"}, Checks=[{"TTL": "10s"}])
    agent.register("own", ID="3", Checks=[{"TTL": "10s", "CheckID": "mine", "Notes": "note"}, {"TTL": "10s"}])
    checks = agent.get("/v1/agent/checks")
    assert {key: (row["Name"], row["Notes"], row["ServiceID"]) for key, row in checks.items()} == {
        "service:1": ("Service 'one' check", "", "1"),
        "service:2:1": ("first", "", "2"),
        "service:2:2": ("Service 'two' check", "", "2"),
        "mine": ("Service 'own' check", "note", "3"),
        "service:3:2": ("Service 'own' check", "", "3"),
    }


def test_registering_again_keeps_checks_and_their_state(agent: Subject) -> None:
    agent.register("web", ID="w", Checks=[{"TTL": "60s", "CheckID": "a"}, {"TTL": "60s", "CheckID": "b"}])
    agent.put("/v1/agent/check/pass/a?note=fine")
    agent.register("web", ID="w", Port=2)
    assert set(agent.get("/v1/agent/checks")) == {"a", "b"}
    agent.register(
        "web", ID="w", Check={"TTL": "60s", "CheckID": "a", "Status": "critical", "Name": "renamed"}
    )
    check = agent.check("a")
    assert (check["Status"], check["Output"], check["Name"]) == ("passing", "fine", "renamed")


@pytest.mark.parametrize(
    ("parameter", "left"),
    [
        ("replace-existing-checks", {"b"}),
        ("replace-existing-checks=true", {"b"}),
        ("replace-existing-checks=false", {"a", "b"}),
    ],
)
def test_replacing_checks(agent: Subject, parameter: str, left: set[str]) -> None:
    agent.register("web", Checks=[{"TTL": "60s", "CheckID": "a"}, {"TTL": "60s", "CheckID": "b"}])
    agent.put(f"{REGISTER}?{parameter}", {"Name": "web", "Check": {"TTL": "60s", "CheckID": "b"}})
    assert set(agent.get("/v1/agent/checks")) == left


def test_replacing_checks_ends_maintenance(agent: Subject) -> None:
    agent.register("web")
    agent.put("/v1/agent/service/maintenance/web?enable=true")
    agent.register("web")
    assert set(agent.get("/v1/agent/checks")) == {"_service_maintenance:web"}
    agent.put(f"{REGISTER}?replace-existing-checks=true", {"Name": "web"})
    assert agent.get("/v1/agent/checks") == {}


def test_an_id_may_change_its_name(agent: Subject) -> None:
    agent.register("old", ID="w", Check={"TTL": "60s"})
    agent.register("new", ID="w")
    assert agent.get("/v1/health/service/old") == []
    entry = agent.get("/v1/health/service/new")[0]
    assert (entry["Service"]["Service"], entry["Checks"][1]["ServiceName"]) == ("new", "old")


def test_a_check_id_is_of_whoever_registered_it_last(agent: Subject) -> None:
    agent.register("a", Check={"TTL": "60s", "CheckID": "shared"})
    agent.register("b", Check={"TTL": "60s", "CheckID": "shared"})
    agent.deregister("a")
    assert agent.check("shared")["ServiceID"] == "b"


def test_deregistering_takes_the_checks_along(agent: Subject) -> None:
    agent.register("web", Checks=[{"TTL": "60s"}, {"TTL": "60s"}])
    agent.put("/v1/agent/service/maintenance/web?enable=true")
    agent.deregister("web")
    assert agent.get("/v1/agent/services") == {}
    assert agent.get("/v1/agent/checks") == {}
    assert agent.get("/v1/catalog/service/web") == []
    assert agent.get("/v1/health/checks/web") == []


@pytest.mark.parametrize("service_id", ["none", "consul"])
def test_deregistering_what_is_unknown(agent: Subject, service_id: str) -> None:
    answer = agent.ask("PUT", f"/v1/agent/service/deregister/{service_id}")
    unknown = (
        f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.'
    )
    assert (answer.status, answer.text) == agent.by_release(consul_1_8=(200, ""), current=(404, unknown))


@pytest.mark.parametrize("service_id", ["a b/c:1?#%", "ü", "host:container:80:udp", "Case"])
def test_ids_of_any_characters(agent: Subject, service_id: str) -> None:
    agent.register("web", ID=service_id, Port=1, Check={"TTL": "60s"})
    quoted = quote(service_id, safe="")
    assert agent.get(f"/v1/agent/service/{quoted}")["ID"] == service_id
    agent.put(f"/v1/agent/check/pass/service:{quoted}")
    agent.put(f"/v1/agent/service/maintenance/{quoted}?enable=true&reason=a%20b")
    assert agent.check(f"_service_maintenance:{service_id}")["Notes"] == "a b"
    agent.deregister(service_id)
    assert agent.get("/v1/agent/services") == {}


@pytest.mark.parametrize("name", ["a b/c", "Ünïcode", "a.b", "a+b"])
def test_names_of_any_characters(agent: Subject, name: str) -> None:
    agent.register(name, ID="1", Port=1)
    assert [row["ServiceName"] for row in agent.get(f"/v1/catalog/service/{quote(name, safe='')}")] == [name]
    assert [row["Service"]["Service"] for row in agent.get(f"/v1/health/service/{quote(name, safe='')}")] == [
        name
    ]


def test_one_service(agent: Subject) -> None:
    agent.register("web", ID="w", Port=80)
    row = agent.get("/v1/agent/service/w")
    assert (row["ID"], row["Service"], row["Port"]) == ("w", "web", 80)
    answer = agent.ask("GET", "/v1/agent/service/w")
    assert row["ContentHash"] == answer.headers["X-Consul-ContentHash"] != ""
    missing = agent.ask("GET", "/v1/agent/service/none")
    assert (missing.status, missing.text) == (404, "unknown service ID: none")


NOT_DONE: list[dict[str, Any]] = [
    {"Check": {"GRPC": "127.0.0.1:1", "Interval": "10s"}},
    {"Check": {"UDP": "127.0.0.1:1", "Interval": "10s"}},
    {"Check": {"H2PING": "127.0.0.1:1", "Interval": "10s"}},
    {"Check": {"OSService": "cron", "Interval": "10s"}},
    {"Check": {"AliasNode": "n"}},
    {"Check": {"AliasService": "s"}},
    {"Check": {"TTL": "10s", "SuccessBeforePassing": 3}},
    {"Check": {"TTL": "10s", "OutputMaxSize": 10}},
    {"Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "web"}, "Port": 1},
    {"Connect": {"Native": True}},
    {"SocketPath": "/run/web.sock"},
]


@pytest.mark.parametrize("agent", ["embedded"], indirect=True)
@pytest.mark.parametrize("fields", NOT_DONE, ids=str)
def test_the_embedded_agent_refuses_what_it_cannot_do(agent: Subject, fields: dict[str, Any]) -> None:
    """On purpose different from Consul: a check that nobody runs would be worse than none."""
    answer = agent.ask("PUT", REGISTER, {"Name": "x", **fields})
    assert answer.status == 400
    assert answer.text.startswith("portcall's embedded agent does not do ")
    assert answer.text.endswith("Register this with a Consul agent")
    assert agent.get("/v1/agent/services") == {}
