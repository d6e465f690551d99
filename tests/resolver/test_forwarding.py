"""A good forwarder, seen from outside: what no test of one module shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dns.flags
import dns.rcode
import pytest

from discovery.agent import Agent
from resolver import cache, cli, service
from resolver.config import Endpoint, Settings, SystemUpstreams
from resolver.forward import Upstream
from tests.resolver.conftest import Start, addresses, ask
from tests.resolver.test_forward import RECORD, at
from tests.resolver.test_rfc import register
from tests.resolver.upstream import Upstream as Server
from tests.resolver.upstream import reply
from tests.tools import wait_until


def test_a_name_in_demand_is_fetched_anew_before_it_expires(
    agent: Agent, start_resolver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PREFETCH_SHARE", 1)  # due at once, and not in the last tenth of its TTL
    with Server(lambda request, _: reply(request, RECORD)) as server:
        resolver = start_resolver(agent.uri, Settings(upstreams=(at(server),)))
        assert addresses(ask(resolver, "www.example.test")) == ["192.0.2.1"]

        def again() -> bool:
            assert addresses(ask(resolver, "www.example.test")) == ["192.0.2.1"]
            return len(server.asked) > 1

        wait_until(again, message="the upstream is asked although the answer is fresh")


def test_a_resolv_conf_that_names_this_resolver_makes_no_loop(
    agent: Agent, start_resolver: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nnameserver ::1\nnameserver 192.0.2.1\n")
    own = [Endpoint("127.0.0.1"), Endpoint("::1")]
    assert SystemUpstreams(own, frozenset, path).get(0.0) == (Upstream("192.0.2.1"),)
    path.write_text("nameserver 127.0.0.1\n")
    monkeypatch.setattr(
        service,
        "SystemUpstreams",
        lambda own, addresses: SystemUpstreams([Endpoint("127.0.0.1")], addresses, path),
    )
    resolver = start_resolver(agent.uri, Settings(upstreams=None))
    assert ask(resolver, "www.example.test").rcode() == dns.rcode.REFUSED, "there is nobody else"


def test_one_record_for_clients_that_sort(agent: Agent, start_resolver: Start) -> None:
    """They would all take the lowest address, whichever comes first."""
    hosts = [f"10.0.0.{i}" for i in range(1, 5)]
    register(agent, *hosts)
    options = cli._parser().parse_args(["run", "--answer-limit", "1"])
    resolver = start_resolver(agent.uri, replace(cli._settings(options), upstreams=()))
    for tcp in (False, True):
        found = []
        for _ in range(8):
            told = ask(resolver, "web.service.consul", tcp=tcp, use_edns=0)
            assert not told.flags & dns.flags.TC, "nothing is missing"
            found += addresses(told)
        assert (len(found), set(found)) == (8, set(hosts))
