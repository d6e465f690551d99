"""What users of other Consul clients suffer from, by number, and that it does not happen here.

Each test goes through the public interface, against a real server on loopback. Where a pain has a file of
its own, the table says so; numbers that are missing belong to parts with suites of their own.

     2  a blocking query hangs for weeks (py-consul#118, patroni#305)
     4  threads get each other's answers (python-consul#144, requests#4941)
     5  a forked worker's watch is dead (requests#4323, celery#10339)              test_process
     6  a client cannot be made, or closed, just anywhere (python-consul#47, #231)
    15  an outage empties the list (spring-cloud-consul#594); dead ones stay after an authoritative
        empty answer (higress#4390)
    16  hot loops, and an index that went backwards (go-kit#627, consul#2621)       test_engine
    17  one watch per lookup reaches the limit of 200 connections (cortx-hare#1404, consul#7527)
    18  the environment beats an argument (python-consul#217); unix:// in it fails
    19  a transient failure is fatal (patroni#853)
    20  a retry meets the same host again (apiron#120)                              test_client
    23  a registration vanishes with the agent (consul#7285), or workers have one each (gunicorn#3074)
    24  no fake to test with (python-consul#181), no types (cortx-hare#342)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import pytest

from discovery import heartbeat as heartbeat_module
from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.errors import RegistryTimeout, RegistryUnavailable, ServiceNotFound
from discovery.model import ServiceQuery
from tests.discovery.rawserver import Peer, RawServer, answer
from tests.tools import wait_until

PROMPT = 5.0  # s; generous for a loaded machine, and far less than a read may block


def empty_catalogue(peer: Peer) -> None:
    """Answer at once that there is nothing, and blocking reads never."""
    while asked := peer.request():
        if "index=" in asked.split(" ")[1]:
            peer.hang()
        peer.send(answer([], headers="X-Consul-Index: 5\r\n"))


def test_02_a_blocking_read_ends_although_the_agent_says_nothing_more():
    with RawServer(empty_catalogue) as server:
        backend = open_backend(f"consul://127.0.0.1:{server.port}", Config())
        reader = backend.connect()
        begin = time.monotonic()
        with pytest.raises(RegistryTimeout):
            reader.read(ServiceQuery("web"), index=5, wait=0.32, timeout=0.1)
        assert 0.44 <= time.monotonic() - begin < 0.44 + PROMPT  # wait + wait/16 + timeout
        reader.close()
        backend.close()


def test_04_threads_get_their_own_answers(client, register):
    for port in range(1, 9):
        register(f"service-{port}", port)
    begin = threading.Barrier(16)

    def look(n: int) -> set[int]:
        begin.wait()
        return {client.lookup(f"service-{n % 8 + 1}").port for _ in range(200)}

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(look, range(16))) == [{n % 8 + 1} for n in range(16)]


def test_06_a_client_is_made_and_closed_anywhere(agent, register):
    register("web", 8080)
    config = Config(consul=ConsulConfig().at(agent.url, origin="the test"))
    made: list[Client] = []
    thread = threading.Thread(target=lambda: made.append(Client(config, timeout=5.0)))
    thread.start()
    thread.join()
    assert made[0].lookup("web").port == 8080  # made in a thread that is gone
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: made[0].close(), range(4)))
    made[0].close()


def test_15_an_outage_keeps_instances_and_an_empty_answer_removes_them(agent: Agent, client, register):
    register("web", 8080)
    assert client.lookup("web") == ("127.0.0.1", 8080)
    agent.close()
    wait_until(lambda: client.lookup("web").stale)
    assert client.lookup("web") == ("127.0.0.1", 8080)
    agent.start()  # with empty memory

    def gone() -> bool:
        try:
            client.lookup("web")
        except ServiceNotFound:
            return True
        return False

    wait_until(gone, PROMPT)


def test_16_no_change_is_missed_after_an_agent_restarted_and_counts_anew(agent: Agent, client, register):
    for n in range(20):
        register("filler", 9000 + n)  # the index is far beyond what it will be after the restart
    for port in (8080, 8081, 8082):
        register("web", port)
        begin = time.monotonic()
        wait_until(lambda port=port: [i.port for i in client.lookup_all("web") if not i.stale] == [port])
        assert time.monotonic() - begin < PROMPT
        agent.close()
        wait_until(lambda: client.lookup("web").stale)
        agent.start()


def test_17_connections_are_few_however_many_names_and_threads_there_are():
    with (
        RawServer(empty_catalogue) as server,
        Client(Config(consul=server.config), max_watches=8, timeout=5.0) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        list(threads.map(lambda n: client.lookup_all(f"service-{n % 60}"), range(240)))
        assert server.open <= 9  # the watches, and one connection for all that is polled


@pytest.mark.parametrize("in_the_environment", ["CONSUL_HTTP_TOKEN", "CONSUL_HTTP_ADDR"])
def test_18_an_argument_beats_the_environment(monkeypatch, in_the_environment):
    monkeypatch.setenv(in_the_environment, "127.0.0.1:1")
    with RawServer(empty_catalogue) as server:
        given = ConsulConfig(port=server.port, token="given", explicit=True)
        for client in (Client(consul=given, timeout=5.0), Client(Config(consul=given), timeout=5.0)):
            with client:
                assert not client.lookup_all("web")
        assert all("X-Consul-Token: given" in asked for asked in server.requests)


def test_18_a_unix_socket_in_the_environment_works(monkeypatch, tmp_path):
    path = tmp_path / "consul.sock"
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"unix://{path}")
    with RawServer(empty_catalogue, unix=str(path)), Client(timeout=5.0, dns=(), cache=None) as client:
        assert not client.lookup_all("web")
        assert client.where == f"unix://{path}"


def test_19_a_registry_that_comes_late_is_found(agent: Agent, client, register):
    register("other", 1)
    agent.close()
    for _ in range(2):
        with pytest.raises(RegistryUnavailable):
            client.lookup("web")
    agent.start()
    register("web", 8080)
    assert client.wait_for("web", timeout=PROMPT)[0] == ("127.0.0.1", 8080)


def test_23_what_an_agent_forgets_is_registered_again_once_per_socket(
    agent: Agent, client, connect: Callable[..., Client], monkeypatch
):
    monkeypatch.setattr(heartbeat_module, "BEAT", 0.1)
    workers = [connect(timeout=5.0) for _ in range(3)]
    for worker in workers:
        worker.register("web", port=8080)
    assert len(client.lookup_all("web")) == 1
    agent.close()
    wait_until(lambda: client.lookup("web").stale)
    agent.start()
    wait_until(lambda: [i.port for i in client.lookup_all("web") if not i.stale] == [8080], PROMPT)


def test_24_there_are_types_and_a_fake():
    assert resources.files("discovery").joinpath("py.typed").is_file()
    with (
        Agent(http=("127.0.0.1", 0)) as agent,
        Client(Config(consul=ConsulConfig().at(agent.url, origin="the test")), timeout=5.0) as client,
        client.register("web", port=8080),
    ):
        assert client.wait_for("web", timeout=5)[0].port == 8080
