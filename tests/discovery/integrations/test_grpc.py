"""The gRPC channel, on real servers."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from discovery import Client, RegistryUnavailable, ServiceNotFound
from discovery.config import Config
from discovery.integrations.grpc import NoInstances, channel
from tests.discovery.integrations.fleet import Fleet, Server, connections_to
from tests.tools import free_port, wait_until

TIMEOUT = 20.0  # s; for the tests' own patience


@pytest.fixture
def web(client: Client) -> Iterator[grpc.Channel]:
    with channel("web", client=client) as web:
        yield web


def who(channel: grpc.Channel) -> int:
    return int(channel.unary_unary("/test.Echo/Who")(b"", timeout=TIMEOUT))


def test_each_call_is_balanced_over_one_connection_per_instance(
    web: grpc.Channel, grpc_servers: list[Server]
) -> None:
    ask = web.unary_unary("/test.Echo/Who")
    wait_until(lambda: len({ask(b"", timeout=TIMEOUT) for _ in range(3)}) == 3, message="all are connected")

    met = Counter(int(ask(b"", timeout=TIMEOUT)) for _ in range(3000))

    assert all(abs(met[server.port] - 1000) <= 20 for server in grpc_servers), met  # 2 %
    assert [connections_to(server.port) for server in grpc_servers] == [1, 1, 1]


def test_12_connections_to_an_instance_that_left_are_closed_without_a_call(
    web: grpc.Channel, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    wait_until(lambda: len({who(web) for _ in range(3)}) == 3)
    leaving, *staying = grpc_servers

    fleet.deregister(leaving.port)

    wait_until(lambda: connections_to(leaving.port) == 0, interval=0.001)
    assert {who(web) for _ in range(6)} <= {server.port for server in staying}
    fleet.register(leaving.port)
    wait_until(lambda: who(web) == leaving.port, interval=0)
    assert [connections_to(server.port) for server in staying] == [1, 1]


def test_no_idempotent_call_fails_when_an_instance_is_killed(
    client: Client, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    servers = [start_server(script="grpc_server.py") for _ in range(3)]
    for server in servers:
        fleet.register(server.port)
    with channel("web", client=client, idempotent=["test.Echo"]) as web:
        ask = web.unary_unary("/test.Echo/Who")
        wait_until(lambda: len({ask(b"", timeout=TIMEOUT) for _ in range(3)}) == 3)
        # Under way all the time: twenty calls, each followed by the next.
        calls = [ask.future(b"", timeout=TIMEOUT) for _ in range(20)]
        for n in range(600):
            if n == 200:
                servers[0].kill()
            calls.append(ask.future(b"", timeout=TIMEOUT))
            calls.pop(0).result()
        met = {int(call.result()) for call in calls}
    assert met == {server.port for server in servers[1:]}


def test_a_call_that_broke_off_is_not_repeated_unless_it_may_be(
    client: Client, fleet: Fleet, start_server: Callable[..., Server]
) -> None:
    servers = [start_server(script="grpc_server.py") for _ in range(3)]
    for server in servers:
        fleet.register(server.port)

    def alive() -> int:
        return sum(server.is_alive() for server in servers)

    with channel("web", client=client) as web, pytest.raises(grpc.RpcError):
        web.unary_unary("/test.Echo/Break")(b"", timeout=TIMEOUT)
    wait_until(lambda: alive() == 2)
    with (
        channel("web", client=client, attempts=2, idempotent=["/test.Echo/Break"]) as web,
        pytest.raises(grpc.RpcError),
    ):
        web.unary_unary("/test.Echo/Break")(b"", timeout=TIMEOUT)
    wait_until(lambda: alive() == 0)


def test_a_stream_outlives_a_change_and_its_channel_goes_with_it(
    web: grpc.Channel, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = web.stream_stream("/test.Echo/Count")(iter(requests.get, None), timeout=TIMEOUT)
    requests.put(b"")
    port = int(next(answers))

    fleet.deregister(port)
    wait_until(lambda: port not in {who(web) for _ in range(3)})
    requests.put(b"")
    assert int(next(answers)) == port
    requests.put(None)

    assert list(answers) == []
    wait_until(lambda: connections_to(port) == 0)


def test_streams_that_end_together_leave_no_channel_open(
    web: grpc.Channel, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    """The last one's end closes the channel; its thread must not be the one that closing waits for."""
    count = web.stream_stream("/test.Echo/Count")
    for round_ in range(30):
        leaves = grpc_servers[round_ % 3].port
        streams = []
        for _ in range(6):
            requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            answers = count(iter(requests.get, None), timeout=TIMEOUT)
            requests.put(b"")
            next(answers)
            streams.append((requests, answers))
        fleet.deregister(leaves)
        wait_until(lambda port=leaves: port not in {who(web) for _ in range(3)})
        for requests, answers in streams:
            requests.put(b"")
            next(answers)
            requests.put(None)
            assert list(answers) == []
        wait_until(lambda port=leaves: connections_to(port) == 0, message=f"round {round_}")
        fleet.register(leaves)
        wait_until(lambda port=leaves: port in {who(web) for _ in range(3)})


def test_all_kinds_of_calls(web: grpc.Channel, grpc_servers: list[Server]) -> None:
    ports = {server.port for server in grpc_servers}
    answer, call = web.unary_unary("/test.Echo/Who").with_call(b"", timeout=TIMEOUT)
    assert int(answer) in ports and call.code() is grpc.StatusCode.OK
    assert int(web.unary_unary("/test.Echo/Who").future(b"", timeout=TIMEOUT).result()) in ports
    # Echo streams both ways; one message is as good as a stream of one.
    assert int(web.stream_unary("/test.Echo/Count")(iter([b""]), timeout=TIMEOUT)) in ports
    assert [int(one) in ports for one in web.unary_stream("/test.Echo/Count")(b"", timeout=TIMEOUT)] == [True]


def test_the_authority_is_the_services_name(
    client: Client, web: grpc.Channel, grpc_servers: list[Server]
) -> None:
    assert web.unary_unary("/test.Echo/Name")(b"", timeout=TIMEOUT) == b"web.service.consul"
    with channel("web.service.dc1.consul", client=client) as other:
        assert other.unary_unary("/test.Echo/Name")(b"", timeout=TIMEOUT) == b"web.service.dc1.consul"


def test_tls_is_checked_against_the_services_name(
    client: Client, fleet: Fleet, backend: Any, start_server: Callable[..., Server], certificate: Path
) -> None:
    server = start_server(str(certificate), script="grpc_server.py")
    fleet.register(server.port)
    Fleet(backend, "other").register(server.port)
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())

    with channel("web", client=client, credentials=credentials) as web:
        assert who(web) == server.port
    with (
        channel("other", client=client, credentials=credentials) as other,
        pytest.raises(grpc.RpcError) as caught,
    ):
        who(other)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_instances_of_both_address_families_are_called(
    web: grpc.Channel, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    fleet.register(free_port(), address="::1")

    everybody = {server.port for server in grpc_servers}
    wait_until(lambda: {who(web) for _ in range(6)} == everybody, message="all three are called")


def test_connectivity_is_told_across_changes(
    web: grpc.Channel, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    told: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    grpc.channel_ready_future(web).result(TIMEOUT)
    web.subscribe(told.put)
    while told.get(timeout=TIMEOUT) is not grpc.ChannelConnectivity.READY:
        pass

    fleet.deregister(grpc_servers[0].port)

    assert told.get(timeout=TIMEOUT) is grpc.ChannelConnectivity.IDLE  # of the new channel
    who(web)
    while told.get(timeout=TIMEOUT) is not grpc.ChannelConnectivity.READY:
        pass
    web.unsubscribe(told.put)


def test_nobody_to_call_is_an_rpc_error_that_says_why(
    client: Client, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    with channel("wed", client=client) as wed, pytest.raises(NoInstances) as caught:
        who(wed)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "did you mean 'web'" in caught.value.details()
    assert isinstance(caught.value.__cause__, ServiceNotFound)

    nowhere = Config.from_env({"CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port()}"})
    with Client(nowhere) as lost, channel("web", client=lost) as web, pytest.raises(NoInstances) as caught:
        who(web)
    assert isinstance(caught.value.__cause__, RegistryUnavailable)


def test_a_service_that_empties_and_fills_again(
    web: grpc.Channel, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    assert who(web)
    for server in grpc_servers:
        fleet.deregister(server.port)

    def nobody() -> bool:
        try:
            who(web)
        except NoInstances:
            return True
        return False

    wait_until(nobody)
    fleet.register(grpc_servers[0].port)
    wait_until(lambda: not nobody())
    assert who(web) == grpc_servers[0].port


def test_a_channel_that_is_made_before_its_service_gets_ready_with_it(
    web: grpc.Channel, fleet: Fleet, shared_grpc_servers: list[Server]
) -> None:
    ready = grpc.channel_ready_future(web)
    assert not ready.done()

    fleet.register(shared_grpc_servers[0].port)

    ready.result(TIMEOUT)
    assert who(web) == shared_grpc_servers[0].port


def test_a_client_that_was_closed_and_is_used_again_is_followed_again(
    web: grpc.Channel, client: Client, fleet: Fleet, grpc_servers: list[Server]
) -> None:
    wait_until(lambda: len({who(web) for _ in range(3)}) == 3)
    client.close()
    assert who(web)
    leaving, *staying = grpc_servers
    fleet.deregister(leaving.port)
    wait_until(lambda: connections_to(leaving.port) == 0)
    assert {who(web) for _ in range(6)} <= {server.port for server in staying}


def test_a_closed_channel_refuses_calls(client: Client, grpc_servers: list[Server]) -> None:
    web = channel("web", client=client)
    ask = web.unary_unary("/test.Echo/Who")
    ask(b"", timeout=TIMEOUT)
    web.close()
    web.close()
    with pytest.raises(ValueError, match="closed channel"):
        ask(b"")
    wait_until(lambda: sum(connections_to(server.port) for server in grpc_servers) == 0)
