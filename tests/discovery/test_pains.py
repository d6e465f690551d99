"""What users of other Consul clients suffer from, by number, and that it does not happen here.

Each test goes through the public interface, against a real server on loopback, and has its pain's number in
its name, here or in the file that the table names.

     1  two distributions with one import name mix their files (python-consul#210)
     2  a blocking query hangs for weeks (py-consul#118, patroni#305)
     3  the asynchronous client has another time limit, shorter than a blocking query (py-consul)
     4  threads get each other's answers (python-consul#144, requests#4941)
     5  a forked worker's watch is dead (requests#4323, celery#10339)               resilience/test_prefork
     6  a client cannot be made, or closed, just anywhere (python-consul#47, #231)
     7  one client in several event loops (python-eureka-client#70, httpx#2473)     test_aio
     8  a name tells no port, and HTTP clients take 80 (airflow#9186)               integrations/test_http
     9  a pooled connection stays with one instance (curl#403)                      integrations/test_http
    10  getaddrinfo is patched for want of a hook (urllib3#3781, httpx#1319)        integrations/test_http
    11  a scheme of its own loses ``params=`` (requests#3735)                       integrations/test_http
    12  gRPC in Python never learns of new instances (grpc#11685)                   integrations/test_grpc
    13  getaddrinfo sorts addresses, and all clients meet at the first (consul#1481)
    14  DNS tells some of the instances, and not that there are more (consul#2335)  backends/test_dns
    15  an outage empties the list (spring-cloud-consul#594); dead ones stay after an authoritative
        empty answer (higress#4390)
    16  hot loops, and an index that went backwards (go-kit#627, consul#2621)
    17  one watch per lookup reaches the limit of 200 connections (cortx-hare#1404, consul#7527)
    18  the environment beats an argument (python-consul#217); unix:// in it fails
    19  a transient failure is fatal (patroni#853)
    20  a retry meets the same host again (apiron#120)                              test_verbs
    21  what was written down is served for ever (nacos-sdk-python#326)             resilience/test_outages
    22  resolv.conf is read once (grab-site#137, dnspython#248)                     backends/test_dns
    23  a registration vanishes with the agent (consul#7285), or workers have one each (gunicorn#3074)
    24  no fake to test with (python-consul#181), no types (cortx-hare#342)
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import pytest

from discovery import heartbeat as heartbeat_module
from discovery.agent import Agent
from discovery.aio import AsyncClient
from discovery.backends import open_backend
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.errors import RegistryTimeout, RegistryUnavailable, ServiceNotFound
from discovery.model import ServiceQuery
from tests.discovery.rawserver import Peer, RawServer, answer
from tests.tools import free_port, wait_until

PROMPT = 5.0  # s; generous for a loaded machine, and far less than a read may block


def empty_catalogue(peer: Peer) -> None:
    """Answer at once that there is nothing, and blocking reads never."""
    while asked := peer.request():
        if "index=" in asked.split(" ")[1]:
            peer.hang()
        peer.send(answer([], headers="X-Consul-Index: 5\r\n"))


def test_every_pain_has_a_test():
    tests = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    names = [name for text in tests for name in re.findall(r"^def test((?:_\d\d)+)_", text, re.MULTILINE)]
    assert {int(number) for name in names for number in name.split("_")[1:]} >= set(range(1, 25))


def test_01_a_package_that_hides_ours_is_found(tmp_path: Path):
    (tmp_path / "discovery.py").write_text("")
    command = [Path(sys.executable).with_name("discovery"), "doctor", "--json"]
    environment = {**os.environ, "CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port()}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    (finding,) = [one for one in json.loads(done.stdout)["findings"] if one["about"] == "package"]
    assert finding["level"] == "problem"
    assert str(tmp_path / "discovery.py") in finding["says"]


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


def test_03_every_client_lets_the_registry_wait_as_long():
    def blocking(server: RawServer) -> list[str]:
        return [asked for asked in server.requests if "index=5" in asked and "wait=55s" in asked]

    async def look(settings: Config) -> None:
        async with AsyncClient(settings, timeout=5.0) as client:
            await client.lookup_all("web")
            await asyncio.to_thread(wait_until, lambda: blocking(server))

    with RawServer(empty_catalogue) as server:
        asyncio.run(look(Config(consul=server.config)))
    with RawServer(empty_catalogue) as server, Client(Config(consul=server.config), timeout=5.0) as client:
        client.lookup_all("web")
        wait_until(lambda: blocking(server))


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


def test_13_the_order_of_addresses_is_nothing_to_the_choice(client, register):
    """RFC 6724 would sort these by the prefix that they share with ours: always the same one first."""
    for n, address in enumerate(("127.0.0.1", "127.0.0.2", "127.255.0.1", "::1")):
        register("web", 8000 + n, address=address)
    client.wait_for("web", min_instances=4)
    assert set(Counter(client.lookup("web") for _ in range(400)).values()) == {100}


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
        # The watches, and nine for all that is polled: four pollers, the scout, and four watches of its own.
        assert server.open <= 8 + 9


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
