"""resolver.metrics, and what the resolver counts."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from discovery.agent import Agent
from resolver.config import Settings
from resolver.forward import Upstream
from resolver.metrics import counter, gauge, render
from resolver.server import Resolver
from tests.resolver.conftest import ANYWHERE, Start, ask
from tests.resolver.test_server import register
from tests.resolver.upstream import Upstream as Server
from tests.resolver.upstream import reply
from tests.tools import wait_until


def test_the_text_is_prometheus() -> None:
    text = render(
        [
            counter("answers_total", "Answers.", {(("rcode", "NOERROR"), ("type", "A")): 3}),
            gauge("rtt_seconds", "Time.", {'a"b\\c\n': 0.25}, label="upstream"),
            gauge("waiting", "Waiting.", 1_000_000),
        ]
    )
    assert text == (
        "# HELP portcall_resolver_answers_total Answers.\n"
        "# TYPE portcall_resolver_answers_total counter\n"
        'portcall_resolver_answers_total{rcode="NOERROR",type="A"} 3\n'
        "# HELP portcall_resolver_rtt_seconds Time.\n"
        "# TYPE portcall_resolver_rtt_seconds gauge\n"
        'portcall_resolver_rtt_seconds{upstream="a\\"b\\\\c\\n"} 0.25\n'
        "# HELP portcall_resolver_waiting Waiting.\n"
        "# TYPE portcall_resolver_waiting gauge\n"
        "portcall_resolver_waiting 1000000\n"
    )


def read(resolver: Resolver) -> dict[str, float]:
    assert resolver.metrics is not None
    with urllib.request.urlopen(f"http://{resolver.metrics}/metrics", timeout=5) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = response.read().decode()
    return {
        name.removeprefix("portcall_resolver_"): float(value)
        for name, value in re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE)
    }


def test_every_answer_is_counted_once_wherever_it_came_from(agent: Agent, start_resolver: Start) -> None:
    register(agent, "w1", "10.0.0.1")
    with Server(lambda request, _: reply(request, "www.example.test. 60 IN A 192.0.2.1")) as server:
        settings = Settings(upstreams=(Upstream(*server.address),), metrics=ANYWHERE)
        resolver = start_resolver(agent.uri, settings)
        for _ in range(200):
            ask(resolver, "web.service.consul")  # looked up, decided, hot
        for _ in range(10):
            ask(resolver, "WEB.service.consul")
            ask(resolver, "web.service.consul", tcp=True)
            ask(resolver, "nope.service.consul", "SRV")
            ask(resolver, "www.example.test")
        values = read(resolver)
    assert values['answers_total{rcode="NOERROR",type="A"}'] == 200 + 10 + 10 + 10
    assert values['answers_total{rcode="NXDOMAIN",type="SRV"}'] == 10
    assert values["hits_total"] + values["misses_total"] >= 240
    assert values["hits_total"] > 150
    assert values["stale_answers_total"] == 0
    assert values["followed_queries"] == 3
    assert values["watch_lag_seconds"] < 1
    assert values["catalogue_stale_seconds"] == 0
    assert values["relayed_replies"] == 1
    assert 0 < values[f'upstream_rtt_seconds{{upstream="127.0.0.1:{server.port}"}}'] < 5
    assert values[f'upstream_failures{{upstream="127.0.0.1:{server.port}"}}'] == 0


def test_outages_show(agent: Agent, start_resolver: Start) -> None:
    register(agent, "w1", "10.0.0.1")
    resolver = start_resolver(agent.uri, replace(Settings(upstreams=()), metrics=ANYWHERE))
    ask(resolver, "web.service.consul")
    agent.close()
    wait_until(lambda: ask(resolver, "web.service.consul", use_edns=0).options)
    values = read(resolver)
    assert values["stale_answers_total"] >= 1
    assert values["catalogue_stale_seconds"] > 0


def test_other_paths_are_not_found(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri, replace(Settings(upstreams=()), metrics=ANYWHERE))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://{resolver.metrics}/", timeout=5)
