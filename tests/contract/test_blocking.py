"""Blocking reads: who wakes, who sleeps, and what index and wait mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from discovery.agent import Agent
from tests.contract.conftest import Block
from tests.contract.subject import Blocked, Subject
from tests.tools import ConsulAgent, wait_until

HEALTH = "/v1/health/service/web"
INSTANCES = "/v1/catalog/service/web"
NAMES = "/v1/catalog/services"
NODES = "/v1/catalog/nodes"
NODE = "/v1/catalog/node/n2"
NODE_CHECKS = "/v1/health/node/n2"
CHECKS = "/v1/health/checks/web"
CRITICAL = "/v1/health/state/critical"
ANY = "/v1/health/state/any"

Act = Callable[[Subject], None]
PASSES = {"TTL": "60s", "Status": "passing"}
QUIET = "100ms"  # how long those are watched who should go on sleeping
WEB_CHECK = {"Name": "web check", "ServiceID": "web"}
OTHER_CHECK = {"Name": "other check", "ServiceID": "other"}


def _prepare(agent: Subject) -> None:
    """web and other, each on the agent's node and on n2; the agent's pass."""
    _web()(agent)
    _other()(agent)
    _add_check(Name="own node", TTL="60s", Status="passing")(agent)
    _on("n2", Service={"Service": "web"}, Check=WEB_CHECK)(agent)
    _on("n2", Service={"Service": "other"}, Check=OTHER_CHECK)(agent)
    _on("n3", Service={"Service": "far"})(agent)


def _web(**fields: Any) -> Act:
    return lambda agent: agent.register("web", **{"ID": "w", "Port": 1, "Check": PASSES, **fields})


def _other(**fields: Any) -> Act:
    return lambda agent: agent.register("other", **{"ID": "o", "Port": 1, "Check": PASSES, **fields})


def _add_check(**fields: Any) -> Act:
    return lambda agent: agent.put("/v1/agent/check/register", fields)


def _report(path: str) -> Act:
    return lambda agent: agent.put(f"/v1/agent/check/{path}")


def _maintain(path: str) -> Act:
    return lambda agent: agent.put(f"/v1/agent/{path}?enable=true")


def _on(node: str, **fields: Any) -> Act:
    return lambda agent: agent.put("/v1/catalog/register", {"Node": node, "Address": "10.0.0.2", **fields})


# What happens -> the questions whose readers wake, of all the QUESTIONS.
QUESTIONS = (HEALTH, INSTANCES, NAMES, NODES, NODE, NODE_CHECKS, CHECKS, CRITICAL, ANY)
WAKES: list[tuple[str, Act, set[str]]] = [
    ("the same again", _web(), set()),
    ("another port", _web(Port=2), {HEALTH, INSTANCES, NAMES}),
    ("another tag", _web(Tags=["t"], Check=None), {HEALTH, INSTANCES, NAMES}),
    ("another tag, also of the check", _web(Tags=["t"]), {HEALTH, INSTANCES, NAMES, CHECKS, ANY}),
    ("another instance", _web(ID="w2", Check=None), {HEALTH, INSTANCES, NAMES}),
    ("an instance goes", lambda agent: agent.deregister("w"), {HEALTH, INSTANCES, NAMES, CHECKS, ANY}),
    ("another service's port", _other(Port=2), {NAMES}),
    ("a check fails", _report("fail/service:w"), {HEALTH, CHECKS, CRITICAL, ANY}),
    ("a check warns", _report("warn/service:w"), {HEALTH, CHECKS, ANY}),
    ("a check passes again", _report("pass/service:w"), set()),
    ("another service's check fails", _report("fail/service:o"), {CRITICAL, ANY}),
    ("the node's check fails", _report("fail/own%20node"), {HEALTH, CRITICAL, ANY}),
    ("a check of the node comes", _add_check(Name="x", TTL="60s"), {HEALTH, CRITICAL, ANY}),
    ("a check of the node goes", _report("deregister/own%20node"), {HEALTH, ANY}),
    ("maintenance of an instance", _maintain("service/maintenance/w"), {HEALTH, CHECKS, CRITICAL, ANY}),
    ("maintenance of the node", _maintain("maintenance"), {HEALTH, CRITICAL, ANY}),
    # the same at another node, written to the catalogue
    ("there, the same again", _on("n2", Service={"Service": "web"}), set()),
    ("there, another port", _on("n2", Service={"Service": "web", "Port": 2}),
     {HEALTH, INSTANCES, NAMES, NODE}),
    ("there, another service", _on("n2", Service={"Service": "new"}), {NAMES, NODE}),
    ("there, another address", _on("n2", Address="10.0.0.9"), {HEALTH, INSTANCES, NODES, NODE}),
    ("there, another output", _on("n2", Check={**WEB_CHECK, "Output": "new"}),
     {HEALTH, NODE_CHECKS, CHECKS, CRITICAL, ANY}),
    ("there, a check passes", _on("n2", Check={**WEB_CHECK, "Status": "passing"}),
     {HEALTH, NODE_CHECKS, CHECKS, CRITICAL, ANY}),
    ("there, another service's check", _on("n2", Check={**OTHER_CHECK, "Output": "new"}),
     {NODE_CHECKS, CRITICAL, ANY}),
    ("there, a check of the node", _on("n2", Check={"Name": "n", "Status": "passing"}),
     {HEALTH, NODE_CHECKS, ANY}),
    ("a node goes", lambda agent: agent.put("/v1/catalog/deregister", {"Node": "n2"}), set(QUESTIONS)),
    ("a node without the service comes", _on("n4"), {NODES}),
    ("a node without the service changes", _on("n3", Address="10.0.0.9"), {NODES}),
]  # fmt: skip


NEVER_WOKEN_BY_1_8 = ("a node goes", NODE)  # it gives what is gone the index 1, which is not news to anybody
WOKEN_FOR_NOTHING_BY_1_8 = {CHECKS, ANY, CRITICAL, NODE_CHECKS}  # by a check that is written as it was


@pytest.mark.parametrize(("name", "act", "woken"), WAKES, ids=[row[0] for row in WAKES])
def test_who_wakes(agent: Subject, block: Block, name: str, act: Act, woken: set[str]) -> None:
    is_1_8 = agent.by_release(consul_1_8=True, current=False)
    _prepare(agent)
    before = {target: agent.get(target) for target in QUESTIONS}
    reads = {
        target: block(target, wait="10s" if target in woken else QUIET)
        for target in QUESTIONS
        if not (is_1_8 and (name, target) == NEVER_WOKEN_BY_1_8)
    }
    act(agent)
    for target, read in reads.items():
        answer = read.answer()
        if target in woken:
            assert answer.elapsed < 10, target
            assert answer.json != before[target] or target == NAMES
        else:
            assert answer.json == before[target]
            if not agent.is_embedded and answer.elapsed < 0.1:
                # A return does not imply a change (Consul: "Blocking Queries"), and rarely comes without one.
                answer = block(target, wait=QUIET).answer()
                assert answer.json == before[target]
            assert answer.elapsed >= 0.1 or (is_1_8 and target in WOKEN_FOR_NOTHING_BY_1_8), target


@pytest.mark.parametrize("target", [HEALTH, INSTANCES, CHECKS])
def test_a_service_that_comes_goes_and_comes_again(agent: Subject, block: Block, target: str) -> None:
    agent.register("other")
    indexes = [agent.index(target)]
    for act, instances in [(_web(), 1), (lambda agent: agent.deregister("w"), 0), (_web(), 1)]:
        read = block(target, index=indexes[-1])
        act(agent)
        answer = read.answer()
        assert len(answer.json) == instances
        indexes.append(answer.index)
    assert indexes == sorted(set(indexes)), "each change has its own index"


def test_news_travels_fast(agent: Subject, block: Block) -> None:
    """The reader has it before a second has passed; here it is milliseconds, but the machine may be busy."""
    agent.register("web", ID="w", Check={"TTL": "60s"})
    reads = [block(HEALTH, wait="30s") for _ in range(50)]
    for read in reads:
        wait_until(read.is_alive)
    started = time.monotonic()
    agent.put("/v1/agent/check/pass/service:w")
    answers = [read.answer() for read in reads]
    assert time.monotonic() - started < 1.0
    assert {answer.json[0]["Checks"][-1]["Status"] for answer in answers} == {"passing"}
    assert len({answer.index for answer in answers}) == 1


def test_what_the_agent_finds_out_wakes_readers(agent: Subject, block: Block) -> None:
    agent.register("web", Check={"TTL": "300ms", "Status": "passing"})
    answer = block(f"{HEALTH}?passing").answer()
    assert answer.json == []
    assert answer.elapsed < 5


def test_a_filter_narrows_the_answer_not_the_wait(agent: Subject, block: Block) -> None:
    agent.register("web", ID="1", Tags=["a"])
    read = block(f"{HEALTH}?tag=a")
    agent.register("web", ID="2", Tags=["b"])
    assert [row["Service"]["ID"] for row in read.answer().json] == ["1"]


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("index=-1", 400, "Invalid index"),
        ("index=abc", 400, "Invalid index"),
        ("index=99999999999999999999999", 400, "Invalid index"),
        ("index=1&wait=abc", 400, "Invalid wait time"),
        ("index=1&wait=5", 400, "Invalid wait time"),
        ("index=0&wait=10s", 200, "[]"),
        ("index=&wait=10s", 200, "[]"),
        ("wait=10s", 200, "[]"),
    ],
)
@pytest.mark.parametrize("target", [HEALTH, NAMES])
def test_index_and_wait(agent: Subject, target: str, query: str, status: int, text: str) -> None:
    answer = agent.ask("GET", f"{target}?{query}", timeout=5)
    assert answer.status == status
    if status != 200:
        assert answer.text == text


def test_an_index_of_the_past_is_answered_at_once(agent: Subject, block: Block) -> None:
    _web()(agent)
    past = agent.index(HEALTH)
    _web(Port=2)(agent)
    answer = block(HEALTH, index=past).answer()
    assert (answer.json[0]["Service"]["Port"], answer.index > past, answer.elapsed < 5) == (2, True, True)


def test_an_index_of_the_future_waits_and_is_corrected(agent: Subject, block: Block) -> None:
    """As after a restart of the agent with empty memory."""
    _web()(agent)
    present = agent.index(HEALTH)
    read = block(HEALTH, index=present + 1000, wait="200ms")
    _web(Port=2)(agent)
    answer = read.answer()
    assert answer.elapsed >= 0.2
    assert present < answer.index < present + 1000


def test_a_wait_ends_a_little_late(agent: Subject, block: Block) -> None:
    """By up to a sixteenth, so that readers who began together do not all come back together."""
    answer = block(HEALTH, wait="320ms").answer()
    assert answer.status == 200
    assert 0.32 <= answer.elapsed < 0.34 + 1.0  # a second for a busy machine


def test_reading_one_service_until_its_content_changes(agent: Subject) -> None:
    agent.register("web", ID="w", Port=1)
    target = "/v1/agent/service/w?hash={}&wait={}"
    known = agent.get("/v1/agent/service/w")["ContentHash"]
    asleep = agent.ask("GET", target.format(known, "150ms"))
    assert (asleep.json["ContentHash"], asleep.elapsed >= 0.15) == (known, True)
    assert agent.ask("GET", target.format("other", "10s")).elapsed < 5
    assert agent.ask("GET", target.format(known, "abc")).text == "Invalid wait time"
    assert agent.ask("GET", "/v1/agent/service/none?hash=x&wait=10s").status == 404
    for act, status in ((_web(Port=2), 200), (lambda agent: agent.deregister("w"), 404)):
        known = agent.get("/v1/agent/service/w")["ContentHash"]
        with ThreadPoolExecutor(1) as reader:
            read = reader.submit(agent.ask, "GET", target.format(known, "9s"))
            act(agent)
        assert (read.result().status, read.result().elapsed < 5) == (status, True)


def test_an_output_alone_reaches_the_catalogue_late(agent: Subject, block: Block) -> None:
    """So that heartbeats with a new text do not wake everybody (Consul: "check_update_interval")."""
    agent.register("web", ID="w", Check={"TTL": "60s", "Status": "passing"})
    read = block(HEALTH, wait="150ms")
    agent.put("/v1/agent/check/pass/service:w?note=new")
    assert agent.check("service:w")["Output"] == "new"
    answer = read.answer()
    assert answer.elapsed >= 0.15
    assert answer.json[0]["Checks"][-1]["Output"] == ""
    agent.put("/v1/agent/check/warn/service:w?note=newer")
    assert agent.get(HEALTH)[0]["Checks"][-1]["Output"] == "newer"


@pytest.mark.parametrize("kind", ["embedded", "consul"])
def test_outputs_are_published_at_once_on_request(
    kind: str, start_consul: Callable[..., ConsulAgent]
) -> None:
    with ExitStack() as stack:
        if kind == "embedded":
            embedded = stack.enter_context(Agent(http=("127.0.0.1", 0), check_update_interval=0))
            agent = Subject(kind, *embedded.http, (1, 20))
        else:
            consul = start_consul(config={"check_update_interval": "0s"})
            agent = Subject(kind, "127.0.0.1", consul.http_port, consul.version)
        agent.register("web", ID="w", Check={"TTL": "60s", "Status": "passing"})
        read = Blocked(agent, HEALTH, wait="10s")
        stack.callback(read.join)
        agent.put("/v1/agent/check/pass/service:w?note=new")
        answer = read.answer()
        assert answer.json[0]["Checks"][-1]["Output"] == "new"
        assert answer.elapsed < 5


def test_indexes_only_grow(agent: Subject) -> None:
    seen: dict[str, list[int]] = {target: [] for target in QUESTIONS}
    _prepare(agent)
    for act in (_web(Port=2), _report("fail/service:w"), _other(Port=3), _on("n2", Address="10.0.0.9")):
        act(agent)
        for target in QUESTIONS:
            seen[target].append(agent.index(target))
    for target, indexes in seen.items():
        assert indexes == sorted(indexes), target
        assert indexes[0] >= 1
