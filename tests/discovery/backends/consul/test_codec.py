"""Consul's JSON, of the shapes that real agents send, and what it means."""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery import durations
from discovery.backends.consul.codec import (
    check_to_json,
    definition_request,
    duration_to_text,
    error_of,
    is_ordered,
    query_request,
    query_value,
    registration_from_json,
    registration_to_json,
    request,
)
from discovery.errors import (
    AccessDenied,
    RegistryError,
    RegistryOverloaded,
    RegistryUnavailable,
    RequestRejected,
    UnknownResource,
)
from discovery.model import (
    Address,
    Check,
    ChecksQuery,
    ConnectQuery,
    HealthCheck,
    IngressQuery,
    MarksQuery,
    NamesQuery,
    Node,
    NodeServicesQuery,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    Registration,
    ServiceEntry,
    ServiceQuery,
    Weights,
)

WEB = ServiceQuery("web")

# One row of /v1/health/service/web as Consul 1.8 sends it, fields that we do not read included.
RAW_NODE: dict[str, Any] = {
    "ID": "40e4a748-2192-161a-0510-9bf59fe950b5",
    "Node": "host-1",
    "Address": "172.28.128.3",
    "Datacenter": "dc1",
    "TaggedAddresses": {"lan": "172.28.128.3", "lan_ipv4": "172.28.128.3", "wan": "172.28.128.3"},
    "Meta": {"consul-network-segment": "", "zone": "a"},
    "CreateIndex": 5,
    "ModifyIndex": 7,
}
RAW_SERVICE: dict[str, Any] = {
    "ID": "registrar:web1:5000",
    "Service": "web",
    "Tags": ["v1", "blue"],
    "Address": "10.0.0.1",
    "TaggedAddresses": {
        "lan_ipv4": {"Address": "10.0.0.1", "Port": 32768},
        "wan_ipv4": {"Address": "192.0.2.1", "Port": 80},
    },
    "Meta": {"team": "shop"},
    "Port": 32768,
    "Weights": {"Passing": 10, "Warning": 1},
    "EnableTagOverride": False,
    "Proxy": {"MeshGateway": {}, "Expose": {}},
    "Connect": {},
    "CreateIndex": 12,
    "ModifyIndex": 12,
}
RAW_SERF: dict[str, Any] = {
    "Node": "host-1",
    "CheckID": "serfHealth",
    "Name": "Serf Health Status",
    "Status": "passing",
    "Notes": "",
    "Output": "Agent alive and reachable",
    "ServiceID": "",
    "ServiceName": "",
    "ServiceTags": [],
    "Type": "",
    "Definition": {},
}
RAW_CHECK: dict[str, Any] = {
    "Node": "host-1",
    "CheckID": "service:registrar:web1:5000",
    "Name": "HTTP GET /health",
    "Status": "warning",
    "Notes": "",
    "Output": "HTTP GET http://10.0.0.1:32768/health: 429 Too Many Requests",
    "ServiceID": "registrar:web1:5000",
    "ServiceName": "web",
    "ServiceTags": ["v1", "blue"],
    "Type": "http",
    "Definition": {},
}
RAW_ROW: dict[str, Any] = {"Node": RAW_NODE, "Service": RAW_SERVICE, "Checks": [RAW_SERF, RAW_CHECK]}

NODE = Node(
    name="host-1",
    address="172.28.128.3",
    dc="dc1",
    id="40e4a748-2192-161a-0510-9bf59fe950b5",
    tagged_addresses={"lan": "172.28.128.3", "lan_ipv4": "172.28.128.3", "wan": "172.28.128.3"},
    meta={"consul-network-segment": "", "zone": "a"},
)
ENTRY = ServiceEntry(
    node=NODE,
    id="registrar:web1:5000",
    name="web",
    address="10.0.0.1",
    port=32768,
    tags=("v1", "blue"),
    meta={"team": "shop"},
    tagged_addresses={"lan_ipv4": Address("10.0.0.1", 32768), "wan_ipv4": Address("192.0.2.1", 80)},
    weights=Weights(10, 1),
    checks=(
        HealthCheck("serfHealth", "Serf Health Status", "passing", "Agent alive and reachable"),
        HealthCheck(
            "service:registrar:web1:5000",
            "HTTP GET /health",
            "warning",
            "HTTP GET http://10.0.0.1:32768/health: 429 Too Many Requests",
            "registrar:web1:5000",
        ),
    ),
)


def row(**service: Any) -> dict[str, Any]:
    """A copy of RAW_ROW with other values in its service; ... takes the key away."""
    raw = copy.deepcopy(RAW_ROW)
    raw["Service"].update(service)
    raw["Service"] = {key: value for key, value in raw["Service"].items() if value is not ...}
    return raw


# --- questions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "path"),
    [
        (WEB, "/v1/health/service/web"),
        (ServiceQuery("a.b_c~d"), "/v1/health/service/a.b_c~d"),
        (ServiceQuery("ä:&=+"), "/v1/health/service/%C3%A4%3A%26%3D%2B"),
        (NamesQuery(), "/v1/catalog/services"),
        (NodesQuery(), "/v1/catalog/nodes"),
        (NodeServicesQuery("host 1/2"), "/v1/catalog/node/host%201%2F2"),
        (MarksQuery("host 1/2"), "/v1/catalog/node/host%201%2F2"),
        (ChecksQuery("critical"), "/v1/health/state/critical"),
        (ConnectQuery("a/b"), "/v1/health/connect/a%2Fb"),
        (IngressQuery("a/b"), "/v1/health/ingress/a%2Fb"),
        (PreparedQuery("a/b"), "/v1/query/a%2Fb/execute"),
    ],
)
def test_a_question_is_asked_in_stale_mode_at_its_path(query, path):
    asked = query_request(query)
    parts = urlsplit(asked.target)
    assert (asked.method, asked.body, parts.path) == ("GET", None, path)
    assert parse_qs(parts.query, keep_blank_values=True) == {"stale": [""]}


@pytest.mark.parametrize(
    "query",
    [
        WEB,
        NamesQuery(),
        NodesQuery(),
        NodeServicesQuery("n"),
        ConnectQuery("web"),
        IngressQuery("web"),
        PreparedQuery("web"),
    ],
)
def test_a_data_centre_goes_into_the_question(query):
    elsewhere = type(query)(
        *(["web"] if hasattr(query, "name") else ["n"] if hasattr(query, "node") else []), dc="e&w"
    )
    assert parse_qs(urlsplit(query_request(elsewhere).target).query)["dc"] == ["e&w"]


def test_an_index_makes_it_a_blocking_read():
    asked = parse_qs(urlsplit(query_request(WEB, index=42, wait=55.0).target).query)
    assert (asked["index"], asked["wait"]) == (["42"], ["55s"])
    assert "wait" not in parse_qs(urlsplit(query_request(WEB, index=0, wait=55.0).target).query)


def test_parameters_that_are_none_are_left_out_and_underscores_become_hyphens():
    built = request("PUT", "agent/x", body={"a": 1}, replace_existing_checks="true", reason=None, flag="")
    assert (built.target, built.body) == ("/v1/agent/x?replace-existing-checks=true&flag=", b'{"a":1}')


# --- answers -------------------------------------------------------------------------------------------


def test_a_row_of_health_becomes_an_entry():
    (entry,) = query_value(WEB, [RAW_ROW])
    assert entry == ENTRY
    assert (entry.host, entry.status, entry.weight) == ("10.0.0.1", "warning", 1)


def test_catalogue_answers_become_names_and_nodes():
    assert query_value(NamesQuery(), {"consul": [], "web": ["v1", "blue"], "old": None}) == {
        "consul": (),
        "web": ("v1", "blue"),
        "old": (),
    }
    assert query_value(NodesQuery(), [RAW_NODE]) == (NODE,)
    (entry,) = query_value(
        NodeServicesQuery("host-1"), {"Node": RAW_NODE, "Services": {"registrar:web1:5000": RAW_SERVICE}}
    )
    assert entry.checks == ()
    assert (entry.id, entry.node) == (ENTRY.id, NODE)


@pytest.mark.parametrize("query", [ConnectQuery("web"), IngressQuery("web")])
def test_proxies_and_gateways_are_entries_of_their_own_names(query):
    raw = row(ID="web-proxy", Service="web-sidecar-proxy", Kind="connect-proxy")
    (entry,) = query_value(query, [raw])
    assert (entry.name, entry.kind, entry.port) == ("web-sidecar-proxy", "connect-proxy", 32768)


RAW_RESULT: dict[str, Any] = {
    "Service": "web",
    "Nodes": [RAW_ROW],
    "DNS": {"TTL": "1m30s"},
    "Datacenter": "dc2",
    "Failovers": 1,
    "KnownLeader": True,
}


def test_a_prepared_query_tells_what_it_found_and_where():
    assert query_value(PreparedQuery("q"), RAW_RESULT) == PreparedResult(
        entries=(ENTRY,), service="web", dc="dc2", ttl=90.0
    )


@pytest.mark.parametrize("dns", [{"TTL": ""}, {}, None])
def test_a_prepared_query_may_leave_its_ttl_to_others(dns):
    assert query_value(PreparedQuery("q"), {**RAW_RESULT, "DNS": dns}).ttl is None


@pytest.mark.parametrize("nodes", [[], None])
def test_a_prepared_query_may_find_nothing(nodes):
    assert query_value(PreparedQuery("q"), {**RAW_RESULT, "Nodes": nodes}).entries == ()


def test_the_definition_of_a_prepared_query_says_whether_its_order_counts():
    asked = definition_request(PreparedQuery("a/b", "dc2"))
    assert (asked.method, asked.target) == ("GET", "/v1/query/a%2Fb/explain?dc=dc2&stale=")
    assert is_ordered({"Query": {"Service": {"Near": "_agent"}}})
    assert not is_ordered({"Query": {"Service": {"Near": ""}}})
    assert not is_ordered({"Query": {"Service": {}}})


@pytest.mark.parametrize("query", [WEB, NodesQuery()])
def test_an_empty_list_is_empty(query):
    assert query_value(query, []) == ()


def test_marks_tell_how_many_and_when() -> None:
    services = {
        "w1": {"ID": "w1", "Service": "web", "ModifyIndex": 7},
        "w2": {"ID": "w2", "Service": "web", "ModifyIndex": 5},
        "a1": {"ID": "a1", "Service": "api", "ModifyIndex": 6},
    }
    raw = {"Node": {"Node": "n1", "Address": "10.1.0.1"}, "Services": services}
    assert set(query_value(MarksQuery("n1"), raw)) == {("web", 2, 7), ("api", 1, 6)}
    assert query_value(MarksQuery("n1"), None) == ()


def test_checks_of_one_status_are_told_with_what_they_are_of() -> None:
    raw = [
        {"Node": "n1", "CheckID": "alive", "ServiceID": "w1", "ServiceName": "web", "Status": "critical"},
        {"Node": "n1", "CheckID": "serfHealth", "ServiceID": "", "ServiceName": "", "Status": "critical"},
    ]
    assert query_value(ChecksQuery("critical"), raw) == (("n1", "web", "alive"), ("n1", "", "serfHealth"))


def test_a_node_that_consul_does_not_know_has_no_services():
    assert query_value(NodeServicesQuery("gone"), None) == ()
    assert query_value(NodeServicesQuery("bare"), {"Node": RAW_NODE, "Services": None}) == ()


@pytest.mark.parametrize("nothing", [None, ...], ids=["null", "absent"])
@pytest.mark.parametrize(
    ("key", "attribute", "empty"),
    [
        ("Tags", "tags", ()),
        ("Meta", "meta", {}),
        ("Address", "address", ""),
        ("Port", "port", 0),
        ("TaggedAddresses", "tagged_addresses", {}),
        ("Weights", "weights", Weights(1, 1)),
        ("Kind", "kind", ""),
    ],
)
def test_null_and_absent_are_empty(nothing, key, attribute, empty):
    (entry,) = query_value(WEB, [row(**{key: nothing})])
    assert getattr(entry, attribute) == empty


@pytest.mark.parametrize("key", ["Datacenter", "ID", "TaggedAddresses", "Meta"])
def test_null_in_a_node_is_empty(key):
    (node,) = query_value(NodesQuery(), [{**RAW_NODE, key: None}])
    assert not getattr(
        node, {"Datacenter": "dc", "ID": "id", "TaggedAddresses": "tagged_addresses"}.get(key, "meta")
    )


@pytest.mark.parametrize("checks", [None, []])
def test_an_instance_without_checks_is_passing(checks):
    (entry,) = query_value(WEB, [{**RAW_ROW, "Checks": checks}])
    assert (entry.checks, entry.status) == ((), "passing")


@pytest.mark.parametrize(
    ("raw", "weights"),
    [
        ({"Passing": 1, "Warning": 1}, Weights(1, 1)),
        ({"Passing": 5, "Warning": 0}, Weights(5, 0)),
        ({"Passing": 0, "Warning": 2}, Weights(1, 2)),
        ({"Passing": 5}, Weights(5, 1)),
        ({"Passing": 5, "Warning": None}, Weights(5, 1)),
        ({"Passing": None, "Warning": None}, Weights(1, 1)),
    ],
)
def test_weights(raw, weights):
    (entry,) = query_value(WEB, [row(Weights=raw)])
    assert entry.weights == weights


@pytest.mark.parametrize("status", ["critical", "maintenance", "", "PASSING"])
def test_a_status_that_cannot_be_read_counts_as_critical(status):
    raw = copy.deepcopy(RAW_ROW)
    raw["Checks"][1]["Status"] = status
    (entry,) = query_value(WEB, [raw])
    assert entry.status == "critical"


def test_a_check_of_the_node_belongs_to_no_service():
    (entry,) = query_value(WEB, [RAW_ROW])
    assert [check.service_id for check in entry.checks] == [None, "registrar:web1:5000"]


def test_equal_parts_of_one_reply_are_one_object():
    raw = json.loads(
        json.dumps([{**RAW_ROW, "Service": {**RAW_SERVICE, "ID": f"web-{n}"}} for n in range(3)])
    )
    one, two, three = query_value(WEB, raw)
    for share in (
        lambda entry: entry.node,
        lambda entry: entry.name,
        lambda entry: entry.tags,
        lambda entry: entry.meta,
        lambda entry: entry.address,
        lambda entry: entry.checks[0],
    ):
        assert share(one) is share(two) is share(three)
    bare = query_value(WEB, [row(Meta=None), row(Meta={})])
    assert bare[0].meta is bare[1].meta
    alone = json.loads(json.dumps([{**RAW_ROW, "Checks": [RAW_SERF]}, {**RAW_ROW, "Checks": [RAW_SERF]}]))
    one, two, checked = query_value(WEB, [*alone, RAW_ROW])
    assert one.checks is two.checks
    assert checked.checks[0] is one.checks[0]
    assert checked.checks[1].service_id is checked.id


def test_replies_share_a_node_until_it_changes():
    def told(**changes: Any) -> Node:
        raw = json.loads(json.dumps({**RAW_ROW, "Node": {**RAW_NODE, **changes}}))
        (entry,) = query_value(WEB, [raw])
        return entry.node

    first = told()
    assert told() is first
    moved = told(Address="10.9.9.9")
    assert (moved.address, first.address) == ("10.9.9.9", RAW_NODE["Address"])
    assert told(Address="10.9.9.9") is moved


def test_tagged_addresses_that_repeat_the_address_are_not_kept():
    own, other = {"Address": "10.0.0.1", "Port": 32768}, {"Address": "192.0.2.1", "Port": 32768}
    here, elsewhere = Address("10.0.0.1", 32768), Address("192.0.2.1", 32768)
    for raw, kept in (
        ({"lan_ipv4": own, "wan_ipv4": own}, {}),
        ({"lan_ipv4": own, "wan": other}, {"lan_ipv4": here, "wan": elsewhere}),
        ({"lan_ipv4": {**own, "Port": 1}}, {"lan_ipv4": Address("10.0.0.1", 1)}),
    ):
        (entry,) = query_value(WEB, [row(TaggedAddresses=raw)])
        assert entry.tagged_addresses == kept
    nothing = {"Address": "", "Port": 0}
    (nowhere,) = query_value(WEB, [row(**nothing, TaggedAddresses={"lan": nothing})])
    assert nowhere.tagged_addresses == {"lan": Address("", 0)}


def test_what_was_read_cannot_be_changed():
    (entry,) = query_value(WEB, [RAW_ROW])
    for mapping in (
        entry.meta,
        entry.node.meta,
        entry.tagged_addresses,
        query_value(NamesQuery(), {"a": []}),
    ):
        with pytest.raises(TypeError):
            mapping["x"] = "y"


@pytest.mark.parametrize(
    ("query", "raw"),
    [
        (WEB, None),
        (WEB, {"errors": []}),
        (WEB, [{"Service": RAW_SERVICE}]),
        (WEB, [{"Node": RAW_NODE, "Service": {"Service": "web"}}]),
        (WEB, ["web"]),
        (WEB, 42),
        (WEB, [row(Meta=["a"])]),
        (NamesQuery(), ["web"]),
        (NamesQuery(), None),
        (NodesQuery(), [{"Node": "n"}]),
        (NodeServicesQuery("n"), []),
        (NodeServicesQuery("n"), {"Services": {"a": RAW_SERVICE}}),
        (ConnectQuery("web"), None),
        (PreparedQuery("q"), None),
        (PreparedQuery("q"), {"Nodes": []}),
        (PreparedQuery("q"), {**RAW_RESULT, "DNS": {"TTL": "soon"}}),
    ],
)
def test_json_of_another_shape_is_an_error_that_the_caller_expects(query, raw):
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        query_value(query, raw)


# --- registrations -------------------------------------------------------------------------------------


def test_a_full_registration_is_written_in_consuls_words():
    registration = Registration(
        id="registrar:web1:5000",
        name="web",
        port=32768,
        address="10.0.0.1",
        tags=("v1",),
        meta={"team": "shop"},
        tagged_addresses={"lan_ipv4": Address("10.0.0.1", 32768)},
        weights=Weights(10, 2),
        enable_tag_override=True,
        checks=(
            Check(
                id="c1",
                name="health",
                http="http://10.0.0.1:32768/health",
                method="HEAD",
                header={"Host": ("web",)},
                body="x",
                interval=10.0,
                timeout=1.5,
                initial_status="passing",
                deregister_after=600.0,
                tls_skip_verify=True,
                notes="as asked",
            ),
            Check(ttl=15.0),
            Check(tcp="10.0.0.1:32768", interval=10.0),
            Check(grpc="10.0.0.1:32768/x", grpc_use_tls=True, interval=10.0),
            Check(args=("/bin/check", "x"), docker_container_id="abc", shell="/bin/sh", interval=10.0),
        ),
    )
    assert registration_to_json(registration) == {
        "ID": "registrar:web1:5000",
        "Name": "web",
        "Port": 32768,
        "Address": "10.0.0.1",
        "Tags": ["v1"],
        "Meta": {"team": "shop"},
        "TaggedAddresses": {"lan_ipv4": {"Address": "10.0.0.1", "Port": 32768}},
        "Weights": {"Passing": 10, "Warning": 2},
        "EnableTagOverride": True,
        "Checks": [
            {
                "CheckID": "c1",
                "Name": "health",
                "HTTP": "http://10.0.0.1:32768/health",
                "Method": "HEAD",
                "Header": {"Host": ["web"]},
                "Body": "x",
                "Interval": "10s",
                "Timeout": "1500ms",
                "Status": "passing",
                "DeregisterCriticalServiceAfter": "600s",
                "TLSSkipVerify": True,
                "Notes": "as asked",
            },
            {"TTL": "15s"},
            {"TCP": "10.0.0.1:32768", "Interval": "10s"},
            {"GRPC": "10.0.0.1:32768/x", "GRPCUseTLS": True, "Interval": "10s"},
            {
                "Args": ["/bin/check", "x"],
                "DockerContainerID": "abc",
                "Shell": "/bin/sh",
                "Interval": "10s",
            },
        ],
    }


def test_what_is_empty_is_left_to_consul():
    assert registration_to_json(Registration(id="web", name="web")) == {"ID": "web", "Name": "web"}
    assert check_to_json(Check()) == {}


def test_every_attribute_of_a_check_is_written():
    given_all = Check(**{name: _example(name) for name in Check.__dataclass_fields__})
    assert len(check_to_json(given_all)) == len(Check.__dataclass_fields__)


def _example(name: str) -> Any:
    if name in ("ttl", "interval", "timeout", "deregister_after"):
        return 1.0
    if name in ("grpc_use_tls", "tls_skip_verify"):
        return True
    return {"args": ("a",), "header": {"A": ("b",)}, "initial_status": "passing"}.get(name, "x")


registrations = st.builds(
    Registration,
    id=st.text(min_size=1),
    name=st.text(min_size=1),
    port=st.integers(0, 65535),
    address=st.text(),
    tags=st.lists(st.text()).map(tuple),
    meta=st.dictionaries(st.text(), st.text()),
    tagged_addresses=st.dictionaries(st.text(), st.builds(Address, st.text(), st.integers(0, 65535))),
    weights=st.builds(Weights, st.integers(1, 65535), st.integers(0, 65535)),
    enable_tag_override=st.booleans(),
)


@given(registrations)
def test_a_registration_is_read_back_as_it_was_written(registration):
    """Through the agent's own naming: it takes `Name` and tells `Service`."""
    raw = json.loads(json.dumps(registration_to_json(registration)))
    assert registration_from_json({**raw, "Service": raw.pop("Name")}) == registration


def test_what_an_agent_tells_of_a_service_is_read():
    found = registration_from_json(RAW_SERVICE)
    assert found == Registration(
        id="registrar:web1:5000",
        name="web",
        port=32768,
        address="10.0.0.1",
        tags=("v1", "blue"),
        meta={"team": "shop"},
        tagged_addresses={"lan_ipv4": Address("10.0.0.1", 32768), "wan_ipv4": Address("192.0.2.1", 80)},
        weights=Weights(10, 1),
    )


# --- durations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (10, "10s"), (1.5, "1500ms"), (0.25, "250ms"), (90.0, "90s"), (0.0001, "1ms"), (55.0, "55s")],
)
def test_a_duration_is_written_as_go_reads_it(seconds, text):
    assert duration_to_text(seconds) == text


@given(st.floats(0.0005, 1e6))
def test_a_duration_is_right_to_the_millisecond(seconds):
    assert durations.from_text(duration_to_text(seconds)) == pytest.approx(seconds, abs=0.0005)


@given(st.floats(min_value=0, max_value=1e6, exclude_min=True))
def test_a_duration_above_zero_stays_so(seconds):
    """`wait=0s` means five minutes to Consul."""
    assert durations.from_text(duration_to_text(seconds)) > 0


# --- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, "Request decode failed: json: unknown field", RequestRejected),
        (401, "", AccessDenied),
        (403, "ACL not found", AccessDenied),
        (403, "Permission denied", AccessDenied),
        (404, 'Unknown check ID "web"', UnknownResource),
        (405, "method GET not allowed", RequestRejected),
        (429, "rate limit exceeded", RegistryOverloaded),
        (500, "No cluster leader", RegistryUnavailable),
        (500, "No known Consul servers", RegistryUnavailable),
        (500, "rpc error making call: EOF", RegistryUnavailable),
        (500, "No path to datacenter", RequestRejected),
        (500, 'CheckID "web" does not have associated TTL', UnknownResource),
        (500, "Scripts are disabled on this agent; to enable, configure ...", RequestRejected),
        (502, "<html>Bad Gateway</html>", RegistryUnavailable),
        (503, "", RegistryUnavailable),
        (301, "Moved", RegistryUnavailable),
    ],
)
def test_a_status_becomes_the_error_that_says_whose_fault_it_is(status, body, kind):
    error = error_of(status, body, asked="GET /v1/x", where="http://agent", token=False)
    assert type(error) is kind
    assert str(error).startswith(
        f"http://agent answered GET /v1/x with HTTP {status}: {body or 'no explanation'}"
    )
    if isinstance(error, RegistryError):
        assert error.status == status


@pytest.mark.parametrize("status", [200, 204])
def test_a_success_is_no_error(status):
    assert error_of(status, "true", asked="GET /v1/x", where="http://agent", token=True) is None


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        (True, "check what the policy of this token allows"),
        (False, "set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE"),
    ],
)
def test_the_advice_of_a_denial_depends_on_whether_there_was_a_token(token, advice):
    for status in (401, 403):
        error = error_of(status, "ACL not found", asked="GET /v1/x", where="http://agent", token=token)
        assert str(error).endswith(advice)


def test_a_long_answer_is_cut_and_kept_on_one_line():
    error = error_of(
        400, "bad\n\trequest " + "x" * 1000, asked="PUT /v1/x", where="http://agent", token=False
    )
    assert "\n" not in str(error)
    assert "bad request xxx" in str(error)
    assert len(str(error)) < 300
