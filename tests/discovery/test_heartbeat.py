"""A process that is no container: registered while it lives, and not longer."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discovery import heartbeat as heartbeat_module
from discovery import sources
from discovery.agent import Agent
from discovery.backends import Backend, open_backend
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.errors import (
    AccessDenied,
    ConfigurationError,
    DiscoveryError,
    InvalidName,
    RegistryUnavailable,
    UnknownResource,
)
from discovery.heartbeat import Heartbeat
from discovery.model import CheckID, Registration, ServiceID, ServiceQuery, Status
from tests.discovery.rawserver import RawServer, answer
from tests.tools import free_port, wait_until

QUICK = 0.02  # s between two beats


class FakeRegistry:
    """The write side of a registry that remembers what it was told, and fails when it should."""

    where = "a fake"

    def __init__(self) -> None:
        self.services: dict[ServiceID, Registration] = {}
        self.calls: list[str] = []
        self.trouble: DiscoveryError | None = None

    def register(self, registration: Registration) -> None:
        self._called("register")
        self.services[registration.id] = registration

    def deregister(self, service_id: ServiceID) -> None:
        self._called("deregister")
        self.services.pop(service_id, None)

    def update_check(self, check_id: CheckID, status: Status, output: str = "") -> None:
        self._called("beat")
        if not any(check.id == check_id for known in self.services.values() for check in known.checks):
            raise UnknownResource("no such check", status=404)
        assert status == "passing"

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def begin(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Heartbeat]]:
    """Start quick heartbeats that end with the test."""
    monkeypatch.setattr(heartbeat_module, "BEAT", QUICK)
    made: list[Heartbeat] = []

    def make(name: str = "web", **options: object) -> Heartbeat:
        options.setdefault("port", 80)
        made.append(Heartbeat(lambda: registry, name, **options))  # type: ignore[arg-type]
        return made[-1].start()

    yield make
    for one in made:
        one.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]


def beats(registry: FakeRegistry, count: int) -> None:
    """Wait for *count* more beats."""
    before = registry.calls.count("beat")
    wait_until(lambda: registry.calls.count("beat") >= before + count)


# --- what is registered --------------------------------------------------------------------------------


def test_it_is_registered_when_start_returns_and_gone_when_close_does(begin, registry):
    one = begin()
    assert list(registry.services) == [one.registration.id]
    one.close()
    assert not registry.services
    one.close()
    assert registry.calls.count("deregister") == 1


def test_what_is_registered(begin, registry):
    one = begin(address="10.0.0.1", tags=["v1"], meta={"team": "shop"}, ttl=30.0, service_id="mine")
    (check,) = one.registration.checks
    assert registry.services["mine"] == one.registration
    assert (one.registration.name, one.registration.port, one.registration.address) == ("web", 80, "10.0.0.1")
    assert (one.registration.tags, one.registration.meta) == (("v1",), {"team": "shop"})
    assert (check.id, check.ttl, check.initial_status) == ("mine:heartbeat", 30.0, "passing")


def test_workers_of_one_socket_share_one_entry(begin, registry):
    begin()
    begin()
    assert len(registry.services) == 1
    assert begin(port=81).registration.id.endswith(":web:81")


@pytest.mark.parametrize(
    ("address", "path", "url"),
    [
        (None, "/health", "http://127.0.0.1:80/health"),
        ("10.0.0.1", "health", "http://10.0.0.1:80/health"),
        ("fd00::1", "/health", "http://[fd00::1]:80/health"),
    ],
)
def test_the_agent_can_check_a_path_besides(begin, address, path, url):
    _, check = begin(address=address, check_http=path).registration.checks
    assert (check.http, check.interval, check.timeout) == (url, 5.0, 3.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"port": 0}, "port=0 of 'web' is not possible: give 1 to 65535"),
        ({"port": 65536}, "port=65536 of 'web'"),
        ({"port": 80, "ttl": 0.5}, "ttl=0.5 of 'web' is not possible: give 1 to 9223372036 seconds"),
        ({"port": 80, "ttl": float("nan")}, "ttl=nan of 'web'"),
        ({"port": 80, "ttl": float("inf")}, "ttl=inf of 'web'"),
        ({"port": 80, "ttl": 1e30}, "ttl=1e+30 of 'web'"),
    ],
)
def test_what_cannot_be_registered_is_refused_at_once(registry, options, complaint):
    with pytest.raises(ConfigurationError) as caught:
        Heartbeat(lambda: registry, "web", **options)
    assert complaint in str(caught.value)
    with pytest.raises(InvalidName, match="from register"):
        Heartbeat(lambda: registry, "a b", port=80)


def test_in_a_with_statement_it_ends_with_it(registry):
    with Heartbeat(lambda: registry, "web", port=80):
        assert registry.services
    with Heartbeat(lambda: registry, "web", port=80).start():
        assert registry.services
    assert not registry.services
    assert registry.calls.count("register") == 2


def test_what_was_never_started_is_not_deregistered(registry):
    Heartbeat(lambda: registry, "web", port=80).close()
    assert registry.calls == []


# --- while it lives ------------------------------------------------------------------------------------


def test_it_beats_several_times_within_its_ttl(registry):
    for ttl, beat in ((1.5, 0.5), (15.0, 1.0), (600.0, 1.0)):
        assert Heartbeat(lambda: registry, "web", port=80, ttl=ttl)._beat == beat


def test_it_beats_and_does_not_register_again(begin, registry):
    begin()
    beats(registry, 3)
    assert registry.calls.count("register") == 1


def test_what_the_agent_has_forgotten_is_registered_again(begin, registry, caplog):
    one = begin()
    registry.services.clear()
    wait_until(lambda: one.registration.id in registry.services)
    assert "has forgotten" in caplog.text
    beats(registry, 2)
    assert registry.calls.count("register") == 2


def test_what_is_registered_again_passes_before_the_agent_has_checked_it(begin, registry):
    one = begin(check_http="/health")

    def statuses() -> list[Status | None]:
        return [check.initial_status for known in registry.services.values() for check in known.checks]

    assert statuses() == ["passing", None]
    registry.services.clear()
    wait_until(lambda: one.registration.id in registry.services)
    assert statuses() == ["passing", "passing"]


def test_an_agent_that_is_away_at_the_start_is_waited_for_with_one_warning(begin, registry, caplog):
    caplog.set_level(logging.WARNING, "discovery")
    registry.trouble = RegistryUnavailable("connection refused")
    one = begin()
    wait_until(lambda: registry.calls.count("register") >= 4)
    assert len(caplog.records) == 1
    assert "cannot register" in caplog.text and "connection refused" in caplog.text
    registry.trouble = None
    wait_until(lambda: one.registration.id in registry.services)
    wait_until(lambda: len(caplog.records) == 2)
    assert caplog.records[1].getMessage().endswith("is registered now")
    assert "forgotten" not in caplog.text


def test_an_outage_is_survived_with_one_warning(begin, registry, caplog):
    caplog.set_level(logging.WARNING, "discovery")
    begin()
    registry.trouble = RegistryUnavailable("connection reset")
    beats(registry, 3)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        f"the heartbeat of {next(iter(registry.services))} does not arrive"
    ]
    registry.trouble = None
    wait_until(lambda: len(caplog.records) == 2)
    assert registry.calls.count("register") == 1


def test_a_refusal_at_the_start_is_raised_and_leaves_nothing_behind(registry):
    registry.trouble = AccessDenied("not allowed", status=403)
    one = Heartbeat(lambda: registry, "web", port=80)
    with pytest.raises(AccessDenied):
        one.start()
    one.close()
    assert registry.calls == ["register"]


def test_a_refusal_later_is_warned_of_once_and_may_end(begin, registry, caplog):
    caplog.set_level(logging.WARNING, "discovery")
    begin()
    registry.trouble = AccessDenied("the token was revoked", status=403)
    beats(registry, 3)
    assert len(caplog.records) == 1
    assert "the token was revoked" in caplog.text
    registry.trouble = None
    wait_until(lambda: len(caplog.records) == 2)


def test_an_agent_that_cannot_be_found_is_looked_for_until_it_is(registry, monkeypatch, caplog):
    monkeypatch.setattr(heartbeat_module, "BEAT", QUICK)
    caplog.set_level(logging.WARNING, "discovery")
    searches: list[str] = []

    def find() -> FakeRegistry:
        searches.append("found" if len(searches) == 3 else "nobody")
        if searches[-1] == "nobody":
            raise RegistryUnavailable("no Consul agent found")
        return registry

    with Heartbeat(find, "web", port=80).start() as one:
        assert "cannot register" in caplog.text and "no Consul agent found" in caplog.text
        wait_until(lambda: one.registration.id in registry.services)
        beats(registry, 3)
    assert searches == ["nobody"] * 3 + ["found"]  # and not again
    assert [record.getMessage().split(" ", 1)[1] for record in caplog.records][1:] == ["is registered now"]
    assert not registry.services


def test_where_there_was_never_an_agent_nothing_is_deregistered(caplog):
    def find() -> FakeRegistry:
        raise RegistryUnavailable("no Consul agent found")

    Heartbeat(find, "web", port=80).start().close()
    assert "deregister" not in caplog.text


def test_closing_without_an_agent_is_no_error(begin, registry, caplog):
    one = begin()
    registry.trouble = RegistryUnavailable("connection refused")
    one.close()
    assert "cannot deregister" in caplog.text


@pytest.mark.parametrize("silent_from", ["beat", "deregister"])
def test_closing_waits_only_so_long_for_a_silent_agent(begin, registry, monkeypatch, caplog, silent_from):
    monkeypatch.setattr(heartbeat_module, "FAREWELL", 0.05)
    answering = threading.Event()

    def called(what: str) -> None:
        registry.calls.append(what)
        if what == silent_from:
            answering.wait(60)

    monkeypatch.setattr(registry, "_called", called)
    one = begin()
    wait_until(lambda: "beat" in registry.calls)
    one.close()
    assert "no answer within 0.05 s" in caplog.text
    assert registry.services  # left to its TTL
    answering.set()
    wait_until(lambda: not registry.services)  # what the agent hears after all is no harm
    wait_until(lambda: not one._thread.is_alive())


# --- with an agent -------------------------------------------------------------------------------------


@pytest.fixture
def agents_registry(agent: Agent) -> Iterator[Backend]:
    backend = open_backend(agent.uri, Config())
    yield backend
    backend.close()


def test_the_entry_passes_while_the_process_beats(agent, client):
    with client.register("web", port=8080, meta={"a": "1"}, tags="v1"):
        (instance,) = client.wait_for("web", timeout=5)
        assert instance == ("127.0.0.1", 8080)
        assert (instance.status, instance.tags, instance.meta) == ("passing", ("v1",), {"a": "1"})
    with client.watch("web") as watch:
        while watch.next(5):
            pass


def test_an_agent_that_starts_after_the_process_is_registered_with(monkeypatch):
    monkeypatch.setattr(heartbeat_module, "BEAT", QUICK)
    monkeypatch.setattr(sources, "_in_container", lambda: False)  # nobody but this host is asked
    port = free_port()
    # Not explicit: the agent is looked for where it is likely to be.
    with (
        Client(Config(consul=ConsulConfig(port=port)), timeout=5.0) as client,
        client.register("web", port=80),
        Agent(http=("127.0.0.1", port)),
    ):
        assert client.wait_for("web", timeout=20)[0].port == 80


def test_the_entry_is_back_after_the_agent_restarted_empty(agent, client, monkeypatch):
    monkeypatch.setattr(heartbeat_module, "BEAT", 0.1)
    with client.register("web", port=8080):
        client.lookup("web")
        agent.close()
        wait_until(lambda: client.lookup("web").stale)
        agent.start()
        wait_until(lambda: (found := client.lookup_all("web")) and not found.stale)


def test_the_entry_turns_critical_when_the_process_says_nothing_more(client, monkeypatch):
    one = client.register("web", port=8080, ttl=1.0)
    client.wait_for("web", timeout=5)
    monkeypatch.setattr(one, "_try", lambda: None)  # as if the process had been stopped by SIGSTOP
    with client.watch("web", healthy=False) as watch:
        while watch.next(5)[0].status != "critical":
            pass


def test_closing_the_client_deregisters_what_it_registered(agent, client, agents_registry):
    client.register("web", port=8080)
    assert agents_registry.read(ServiceQuery("web")).value
    client.close()
    assert not agents_registry.read(ServiceQuery("web")).value


FORKS = """
    import faulthandler, os, sys
    import discovery

    discovery.register("web", port=8080, service_id="parents")
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(30, exit=True)  # nobody else would end a child that hangs
        with discovery.Client() as own:
            own.register("web", port=8081, service_id="childs")
            assert len(own.wait_for("web", min_instances=2)) == 2
        assert [i.port for i in discovery.lookup_all("web", timeout=5)] == [8080]
        sys.exit(7)  # runs what is registered with atexit, as a forked worker of multiprocessing may
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
    assert [i.id for i in discovery.lookup_all("web", timeout=5)] == ["parents"]
"""


def test_a_forked_child_does_not_deregister_its_parent(agent, agents_registry):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(FORKS)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CONSUL_HTTP_ADDR": agent.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # The parent's end, though it closed nothing itself, deregistered.
    assert not agents_registry.read(ServiceQuery("web")).value


WORKER = """
    import sys
    import discovery

    with discovery.register("web", port=8080):
        print("registered", flush=True)
        sys.stdin.read(1)
    print("closed", flush=True)
"""
FORKING_WORKER = """
    import os, signal, sys
    import discovery

    one = discovery.register("web", port=8080)
    if not (pid := os.fork()):
        signal.pause()
    print("registered", flush=True)
    sys.stdin.read(1)
    one.close()
    print("closed", flush=True)
    sys.stdin.read()
    os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes of this test meet."""
    monkeypatch.setenv("DISCOVERY_SHARE", str(tmp_path / "share"))
    return tmp_path / "share"


@pytest.fixture
def worker(agent: Agent, share: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start processes that share one registration; what is written to one closes it."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "CONSUL_HTTP_ADDR": agent.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "registered\n"
        return process

    yield start
    for process in started:
        process.communicate(timeout=60)


def close_one(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("x")
    process.stdin.flush()
    assert process.stdout.readline() == "closed\n"


def test_the_last_of_the_workers_that_share_an_entry_deregisters_it(worker, agents_registry, share):
    first, second = worker(WORKER), worker(WORKER)
    close_one(first)
    assert len(agents_registry.registered()) == 1
    close_one(second)
    assert not agents_registry.registered()
    assert not list(share.iterdir())


def test_a_worker_that_is_killed_keeps_no_entry(worker, agents_registry):
    first, second = worker(WORKER), worker(WORKER)
    first.kill()
    first.wait(60)
    close_one(second)
    assert not agents_registry.registered()


def test_a_forked_child_keeps_no_entry(worker, agents_registry):
    close_one(worker(FORKING_WORKER))
    assert not agents_registry.registered()


def test_who_was_refused_keeps_no_entry(registry, share):
    registry.trouble = AccessDenied("not allowed", status=403)
    refused = Heartbeat(lambda: registry, "web", port=80, share=str(share))
    with pytest.raises(AccessDenied):
        refused.start()
    registry.trouble = None
    Heartbeat(lambda: registry, "web", port=80, share=str(share)).start().close()
    assert not registry.services


def test_a_directory_that_is_not_private_is_not_used(registry, share):
    share.mkdir(mode=0o755)
    share.chmod(0o755)
    Heartbeat(lambda: registry, "web", port=80, share=str(share)).start().close()
    assert registry.calls == ["register", "deregister"] and not list(share.iterdir())


# --- SIGTERM -------------------------------------------------------------------------------------------

PLAIN = """
    discovery.register("web", port=80)
    print("registered", flush=True)
    time.sleep(60)
"""
AWAITED = """
    async def main():
        client = discovery.AsyncClient()
        await client.register("web", port=80)
        print("registered", flush=True)
        await asyncio.sleep(60)
    asyncio.run(main())
"""
HANDLED = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))  # which runs what is to be run at exit
    discovery.register("web", port=80)
    print("registered", flush=True)
    time.sleep(60)
"""
FORKED = """
    discovery.register("web", port=80)
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "said", "code"),
    [
        (PLAIN, "registered", -signal.SIGTERM),
        (AWAITED, "registered", -signal.SIGTERM),
        (HANDLED, "registered", 7),
        (FORKED, f"{-signal.SIGTERM:d}", -signal.SIGTERM),
    ],
    ids=["plain", "in an event loop", "handled by the application", "after the end of a forked child"],
)
def test_sigterm_deregisters_and_ends_the_process_as_it_would(agent, agents_registry, program, said, code):
    imports = "import asyncio, os, signal, sys, time\nimport discovery\n"
    with subprocess.Popen(
        [sys.executable, "-c", imports + textwrap.dedent(program)],
        env={**os.environ, "CONSUL_HTTP_ADDR": agent.url},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == said
            assert len(agents_registry.registered()) == 1
            process.terminate()
            assert process.wait(30) == code
        finally:
            process.kill()
    assert not agents_registry.registered()


def test_sigterm_waits_only_so_long_for_a_silent_agent():
    def silent(peer) -> None:
        if peer.request():
            peer.send(answer(b"", headers="X-Consul-Index: 1\r\n"))
        peer.hang()

    program = "import discovery, time\n" + textwrap.dedent(PLAIN)
    with (
        RawServer(silent) as server,
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "CONSUL_HTTP_ADDR": server.config.url},
            stdout=subprocess.PIPE,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM
        finally:
            process.kill()
