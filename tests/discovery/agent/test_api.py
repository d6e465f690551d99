"""The endpoints whatever is sent to them: an answer that can be sent, and a state that makes sense."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent.api import API, DEFAULT_WAIT, MAX_WAIT, BlockingRead, Request, Response
from discovery.agent.state import State
from discovery.model import Node, NodeName


def new_api(*, chance: float = 0.5) -> tuple[API, State]:
    node = Node(NodeName("host"), "10.0.0.1", dc="dc1", id="uuid")
    state = State(node, random=lambda: chance, now=0.0)
    return API(state, random=lambda: chance), state


def send(api: API, method: str, target: str, body: Any = None) -> Response | BlockingRead:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return api.handle(Request.from_target(method, target, raw), 0.0)


# Keys and values that the readers of bodies look for, mixed up with anything else.
KEYS = (
    "Name", "name", "ID", "Port", "Tags", "Meta", "Address", "TaggedAddresses", "Weights", "Passing",
    "Warning", "Check", "Checks", "TTL", "ttl", "HTTP", "TCP", "Interval", "Timeout", "Status",
    "Header", "Notes", "Args", "DeregisterCriticalServiceAfter", "EnableTagOverride", "Output", "Node",
    "Service", "ServiceID", "CheckID", "Datacenter", "SkipNodeUpdate", "Definition", "Kind", "GRPC",
    "Bogus",
)  # fmt: skip
VALUES = ("", "x", "web", "10s", "10", "0s", "-1s", "passing", "critical", "10.0.0.1", "::", "dc1", "1\ud800")
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(VALUES)
    | st.text(max_size=5)
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=20,
)
bodies = (
    documents.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20) | st.just(b"[" * 100_000)
)
PATHS = (
    "/v1/agent/self", "/v1/agent/members", "/v1/agent/services", "/v1/agent/service/web",
    "/v1/agent/checks", "/v1/agent/health/service/name/web", "/v1/agent/health/service/id/web",
    "/v1/agent/service/register", "/v1/agent/service/deregister/web",
    "/v1/agent/service/maintenance/web", "/v1/agent/maintenance", "/v1/agent/check/register",
    "/v1/agent/check/deregister/x", "/v1/agent/check/pass/service:web",
    "/v1/agent/check/update/service:web", "/v1/catalog/datacenters", "/v1/catalog/nodes",
    "/v1/catalog/node/host", "/v1/catalog/services", "/v1/catalog/service/web", "/v1/catalog/register",
    "/v1/catalog/deregister", "/v1/health/service/web", "/v1/health/node/host", "/v1/health/checks/web",
    "/v1/health/state/any", "/v1/status/leader", "/v1/status/peers", "/v1/kv/x", "/",
    "/v1/agent/service/%ff", "*",
)  # fmt: skip
PARAMETERS = (
    "index", "wait", "dc", "stale", "consistent", "passing", "tag", "filter", "hash", "enable",
    "reason", "note", "format", "ns", "replace-existing-checks",
)  # fmt: skip
ARGUMENTS = ("", "1", "true", "99", "10s", "dc1", "text", "(" * 99, "%zz")
queries = st.lists(
    st.tuples(st.sampled_from(PARAMETERS), st.sampled_from(ARGUMENTS)).map("=".join), max_size=4
).map("&".join)
requests = st.tuples(
    st.sampled_from(("GET", "PUT", "PUT", "DELETE", "OPTIONS")), st.sampled_from(PATHS), queries, bodies
)


@given(st.lists(requests, max_size=8))
def test_anything_that_is_sent_has_an_answer(sent: list[tuple[str, str, str, bytes]]) -> None:
    api, state = new_api()
    for method, path, query, body in sent:
        outcome = send(api, method, f"{path}?{query}", body)
        if isinstance(outcome, BlockingRead):
            assert 0 < outcome.wait <= MAX_WAIT * 17 / 16
            outcome.ready()
            outcome = outcome.answer()
        assert HTTPStatus(outcome.status)
        if outcome.is_text:
            assert isinstance(outcome.payload, str)
        else:
            json.dumps(outcome.payload)
    state.tick(1e9)
    for target in ("/v1/agent/services", "/v1/agent/checks", "/v1/catalog/nodes", "/v1/health/state/any"):
        outcome = send(api, "GET", target)
        assert isinstance(outcome, Response)
        assert outcome.status == 200
        json.dumps(outcome.payload)


@given(documents)
def test_a_service_that_was_taken_is_told(document: Any) -> None:
    api, _ = new_api()
    body = {"Name": "web", **document} if isinstance(document, dict) else document
    outcome = send(api, "PUT", "/v1/agent/service/register", body)
    assert isinstance(outcome, Response)
    services = send(api, "GET", "/v1/agent/services")
    assert isinstance(services, Response)
    assert len(services.payload) == (outcome.status == 200)


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        ("", DEFAULT_WAIT),
        ("wait=0s", DEFAULT_WAIT),
        ("wait=-5s", DEFAULT_WAIT),
        ("wait=16s", 16.0),
        ("wait=10m", MAX_WAIT),
        ("wait=11m", MAX_WAIT),
        ("wait=100000h", MAX_WAIT),
    ],
)
def test_how_long_a_read_waits(wait: str, seconds: float) -> None:
    """Consul: "Blocking Queries": 5 minutes, at most 10, and up to a sixteenth at random."""
    for chance in (0.0, 0.5):
        api, _ = new_api(chance=chance)
        read = send(api, "GET", f"/v1/catalog/services?index=1&{wait}")
        assert isinstance(read, BlockingRead)
        assert read.wait == seconds * (1 + chance / 16)


def test_a_read_is_ready_when_the_index_has_passed() -> None:
    api, state = new_api()
    index = state.catalogue.index
    read = send(api, "GET", f"/v1/health/service/web?index={index}")
    assert isinstance(read, BlockingRead)
    send(api, "PUT", "/v1/agent/service/register", {"Name": "other"})
    assert not read.ready()
    send(api, "PUT", "/v1/agent/service/register", {"Name": "web"})
    assert read.ready()
    assert read.topic in state.catalogue.take_touched()
    assert read.answer().payload[0]["Service"]["Service"] == "web"
