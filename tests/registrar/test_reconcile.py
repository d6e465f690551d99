"""The loop, against a fake Docker and a fake agent. Numbers in test names are Registrator's issues."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery.errors import AccessDenied, RegistryOverloaded, RegistryUnavailable, RequestRejected
from discovery.model import CheckID, Registration, ServiceID, ServiceName, Status
from registrar.containers import ContainerID
from registrar.desired import Desired
from registrar.owner import META_OWNER, Owner
from registrar.picture import Picture
from registrar.plan import Plan
from registrar.reconcile import GaveUp
from registrar.rules import Rules
from tests.registrar.build import container_id
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.fake_registry import FakeRegistry
from tests.registrar.running import Running
from tests.tools import wait_until

IMAGE = "python-micro-service"


@pytest.fixture
def docker() -> FakeDocker:
    return FakeDocker()


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def start(docker: FakeDocker, registry: FakeRegistry) -> Iterator[Callable[..., Running]]:
    """Start a reconciler over the two fakes; it is stopped when the test ends."""
    running: list[Running] = []

    def start_one(**settings: Any) -> Running:
        one = Running(settings.pop("engine", docker), registry, **settings)
        one.__enter__()
        running.append(one)
        return one

    yield start_one
    for one in running:
        one.__exit__(None, None, None)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "registrar")
    return caplog


def lines(log: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [message for message in log.messages if part in message]


def see(registry: FakeRegistry, *ids: str) -> dict[str, tuple[str, str, int]]:
    """Wait until exactly these ids are registered, and return what they are."""
    wanted = {f"host-1:{each}" for each in ids}
    wait_until(lambda: set(registry.table()) == wanted, message=f"registered is {wanted}")
    return registry.table()


# --- a container's life --------------------------------------------------------------------------------


def test_a_container_is_registered_when_it_starts(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start()
    docker.run("service1", image=IMAGE, publish=["5000/tcp"])
    assert see(registry, "service1:5000") == {"host-1:service1:5000": (IMAGE, "", 32768)}


def test_184_208_308_277_what_already_runs_is_registered_and_what_is_gone_removed(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    owner = Owner("host-1", docker.info.id)
    left = Registration(ServiceID("host-1:old:80"), ServiceName("old"), 80)
    registry.put(owner.sign(left, container_id("old")))  # type: ignore[arg-type]
    docker.run("web", publish=["80/tcp"])
    start()
    see(registry, "web:80")


@pytest.mark.parametrize("end", ["stop", "kill", "die", "remove"])
def test_a_container_that_ends_is_removed(
    docker: FakeDocker, registry: FakeRegistry, start: Any, end: str
) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    getattr(docker, end)("web")
    see(registry)


def test_a_restart_changes_the_port(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.restart("web")
    wait_until(lambda: registry.table().get("host-1:web:80") == ("nginx", "", 32769))


def test_408_224_a_renamed_container_is_never_missing(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    registry.writes.clear()
    docker.rename("web", "shop")
    see(registry, "shop:80")
    assert registry.writes == [("register", "host-1:shop:80"), ("deregister", "host-1:web:80")]


def test_pause_takes_out_and_unpause_brings_back(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.pause("web")
    see(registry)
    docker.pause("web", paused=False)
    see(registry, "web:80")


def test_498_529_316_293_a_late_network_is_noticed(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start(rules=Rules(internal=True, network="front"))
    docker.run("web", expose=["80/tcp"], network="back", networks={"back": "10.1.0.2"})
    assert see(registry, "web:80")["host-1:web:80"] == ("nginx", "10.1.0.2", 80)
    docker.connect_network("web", "front", "10.2.0.2")
    wait_until(lambda: registry.table()["host-1:web:80"] == ("nginx", "10.2.0.2", 80))
    docker.disconnect_network("web", "front")
    wait_until(lambda: registry.table()["host-1:web:80"] == ("nginx", "10.1.0.2", 80))


def test_506_675_a_container_follows_the_one_whose_network_it_uses(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start()
    pod = docker.run("pod", publish=["80/tcp"])
    docker.run("app", expose=["80/tcp"], network=f"container:{pod}")
    assert see(registry, "pod:80", "app:80")["host-1:app:80"] == ("nginx", "", 32768)
    docker.restart("pod")
    wait_until(lambda: registry.table().get("host-1:app:80") == ("nginx", "", 32769))


def test_two_hundred_at_once(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    start()
    for number in range(200):
        docker.run(f"web{number}", publish=["80/tcp"])
    wait_until(lambda: len(registry.table()) == 200)
    assert sorted(registry.writes) == sorted(("register", f"host-1:web{number}:80") for number in range(200))


# --- what an event costs -------------------------------------------------------------------------------


def test_one_event_costs_one_inspect_and_one_write(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    running.settle()
    docker.inspected.clear()
    registry.writes.clear()
    docker.rename("web", "shop")
    see(registry, "shop:80")
    assert docker.inspected == [container_id("web")]


def test_153_449_a_hundred_resyncs_write_nothing(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    for number in range(10):
        docker.run(f"web{number}", publish=["80/tcp"], env={"SERVICE_CHECK_TCP": "1"})
    running = start()
    wait_until(lambda: len(registry.table()) == 10)
    running.settle()
    registry.writes.clear()
    docker.inspected.clear()
    running.reconciler._queue._survey_interval = 0.0  # the pause between surveys is not what is tested
    for _ in range(100):
        running.settle()
    assert registry.writes == []
    assert docker.inspected == []


# --- draining ------------------------------------------------------------------------------------------


def test_127_685_122_431_457_the_stop_signal_drains_before_the_process_ends(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.begin_stop("web")
    see(registry)
    wait_until(lambda: lines(log, "deregistered host-1:web:80 (the container is stopping (signal 15))"))
    docker.end_stop("web")
    docker.start("web")
    see(registry, "web:80")


def test_the_containers_own_stop_signal_counts(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"], StopSignal="SIGQUIT")
    see(registry, "web:80")
    docker.kill("web", "SIGTERM", dies=False)
    running.settle()
    see(registry, "web:80")
    docker.kill("web", "SIGQUIT", dies=False)
    see(registry)


def test_248_another_signal_drains_nothing(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    registry.writes.clear()
    docker.kill("web", "SIGHUP", dies=False)
    running.settle()
    assert registry.writes == []


def test_a_container_that_survives_its_stop_signal_comes_back(
    docker: FakeDocker, registry: FakeRegistry, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registrar.signals.GRACE", 0.1)
    start()
    docker.run("web", publish=["80/tcp"], StopTimeout=0)
    see(registry, "web:80")
    registry.writes.clear()
    docker.kill("web", "SIGTERM", dies=False)
    # It is away for a moment that a busy machine may not show.
    wait_until(lambda: registry.writes == [("deregister", "host-1:web:80"), ("register", "host-1:web:80")])
    see(registry, "web:80")


def test_a_stop_signal_of_an_earlier_life_drains_nothing(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    """The stream replays a second: a container restarted in it must not be drained by its old signal."""
    docker.run("web", publish=["80/tcp"])
    docker.restart("web")
    start()
    see(registry, "web:80")


def test_a_stop_signal_that_was_survived_drains_nothing_when_it_is_replayed(
    docker: FakeDocker, registry: FakeRegistry, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registrar.signals.GRACE", 0.1)
    running = start()
    docker.run("web", publish=["80/tcp"], StopTimeout=0)
    see(registry, "web:80")
    docker.kill("web", "SIGTERM", dies=False)
    wait_until(lambda: [kind for kind, _ in registry.writes] == ["register", "deregister", "register"])
    registry.writes.clear()
    docker.cut()
    docker.run("shop", publish=["80/tcp"])
    see(registry, "web:80", "shop:80")
    running.settle()
    assert registry.writes == [("register", "host-1:shop:80")]


def test_a_stop_signal_that_was_survived_before_the_registrar_began_drains_nothing(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    docker.run("web", publish=["80/tcp"], StopTimeout=40)
    docker.kill("web", "SIGTERM", dies=False)
    docker.now += 50 * 10**9
    start()
    see(registry, "web:80")


def test_draining_can_be_shown_as_critical(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    start(rules=Rules(drain="maintenance"))
    docker.run("web", publish=["80/tcp"])
    before = see(registry, "web:80")
    docker.begin_stop("web")
    wait_until(lambda: registry.checks == {CHECK: ("critical", "stopping (signal 15)")})
    assert registry.table() == before
    docker.end_stop("web")
    see(registry)
    docker.start("web")
    see(registry, "web:80")
    assert registry.checks == {}


# --- the checks that the registrar keeps ---------------------------------------------------------------


CHECK = CheckID("host-1:web:80:container")


def test_578_docker_s_healthcheck_is_told(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start()
    docker.create("web", publish=["80/tcp"])
    docker.start("web")
    docker.health("web", "starting")
    wait_until(lambda: registry.checks == {CHECK: ("warning", "the healthcheck has not passed yet")})
    docker.health("web", "healthy", "ok")
    wait_until(lambda: registry.checks == {CHECK: ("passing", "ok")})
    running.settle()
    registry.writes.clear()
    docker.health("web", "unhealthy", "HTTP 500")
    wait_until(lambda: registry.checks == {CHECK: ("critical", "HTTP 500")})
    assert registry.writes == [], "a state is told, not registered"


def test_578_what_the_agent_lost_is_told_again(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    docker.health("web", "healthy", "ok")
    wait_until(lambda: registry.checks == {CHECK: ("passing", "ok")})
    running.settle()
    registry.restart_empty()
    wait_until(lambda: registry.checks == {CHECK: ("passing", "ok")})
    running.settle()
    # The check alone, by hand: the next news finds that it is gone.
    registry.checks.clear()
    docker.health("web", "unhealthy", "no")
    wait_until(lambda: registry.checks == {CHECK: ("critical", "no")})


def test_81_334_an_agent_that_was_replaced_between_two_reads_has_its_services_back(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    running.settle()
    registry.restart_empty_between_reads()
    assert not registry.table()
    see(registry, "web:80")


def test_ready_waits_for_the_first_success(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start(rules=Rules(ready=True))
    docker.create("web", publish=["80/tcp"])
    docker.start("web")
    docker.health("web", "starting")
    running.settle()
    docker.health("web", "starting")
    see(registry)
    docker.health("web", "healthy", "ok")
    see(registry, "web:80")


def test_a_heartbeat_is_renewed_and_ends_with_the_registrar(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    told: list[str] = []
    real = registry.update_check

    def update_check(check_id: CheckID, status: Status, output: str = "") -> None:
        told.append(check_id)
        real(check_id, status, output)

    registry.update_check = update_check  # type: ignore[method-assign]
    start(rules=Rules(heartbeat=60), heartbeat_interval=0.02)
    docker.run("web", publish=["80/tcp"])
    wait_until(lambda: told.count(CHECK) >= 5)
    assert registry.checks == {CHECK: ("passing", "running")}
    assert registry.writes == [("register", "host-1:web:80")]


@pytest.mark.parametrize("fault", [None, AccessDenied("permission denied", status=403)])
def test_a_check_that_cannot_be_renewed_does_not_keep_the_others_from_it(
    docker: FakeDocker, registry: FakeRegistry, start: Any, fault: Exception | None
) -> None:
    checks = [CheckID(f"host-1:{name}:80:container") for name in ("a", "b", "c")]
    told: list[str] = []
    denied: set[str] = set()
    real = registry.update_check

    def update_check(check_id: CheckID, status: Status, output: str = "") -> None:
        if check_id in denied and fault:
            raise fault
        real(check_id, status, output)
        told.append(check_id)

    registry.update_check = update_check  # type: ignore[method-assign]
    start(rules=Rules(heartbeat=60), heartbeat_interval=0.02, resync=0.0)
    for name in ("a", "b", "c"):
        docker.run(name, publish=["80/tcp"])
    wait_until(lambda: set(told) == set(checks))
    denied.add(checks[0])
    if fault is None:
        del registry.checks[checks[0]]
    told.clear()
    wait_until(lambda: all(told.count(check) >= 5 for check in checks[1:]))
    denied.clear()
    wait_until(lambda: registry.checks == dict.fromkeys(checks, ("passing", "running")))


def test_a_heartbeat_does_not_renew_what_a_command_said(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    """While Docker is away nobody knows, and the TTL of the command's check has to run out."""
    told: list[str] = []
    real = registry.update_check

    def update_check(check_id: CheckID, status: Status, output: str = "") -> None:
        real(check_id, status, output)
        told.append(check_id)

    registry.update_check = update_check  # type: ignore[method-assign]
    start(rules=Rules(heartbeat=60), heartbeat_interval=0.02)
    docker.run("web", publish=["80/tcp"], env={"SERVICE_CHECK_CMD": "/bin/probe"})
    wait_until(lambda: "host-1:web:80:command" in told)
    told.clear()
    wait_until(lambda: told.count(CHECK) >= 5)
    assert set(told) == {CHECK}


@pytest.mark.parametrize(
    ("code", "output", "status", "told"),
    [
        (0, "fine\n", "passing", "fine"),
        (1, "slow", "warning", "slow"),
        (2, "dead", "critical", "dead"),
        (None, "half", "critical", "no answer within 30 s\nhalf"),
    ],
)
def test_414_338_424_a_command_inside_the_container_is_a_check(
    docker: FakeDocker,
    registry: FakeRegistry,
    start: Any,
    code: int | None,
    output: str,
    status: Status,
    told: str,
) -> None:
    docker.exits[("/bin/probe", "-x")] = (code, output)
    start()
    env = {"SERVICE_CHECK_CMD": "/bin/probe -x", "SERVICE_CHECK_INTERVAL": "20ms"}
    web = docker.run("web", publish=["80/tcp"], env=env)
    wait_until(lambda: registry.checks == {CheckID("host-1:web:80:command"): (status, told)})
    wait_until(lambda: len(docker.executed) >= 3, message="it is run again and again")
    docker.remove("web")
    see(registry)
    executed = len(docker.executed)
    assert docker.executed[0] == (web, ("/bin/probe", "-x"))
    docker.run("shop", publish=["80/tcp"])
    see(registry, "shop:80")
    assert len(docker.executed) <= executed + 1, "one may have been under way"


# --- what ended and stays visible --------------------------------------------------------------------------


def test_82_128_646_a_crash_stays_visible_until_the_container_starts_again(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    running = start(rules=Rules(deregister="on-success"))
    docker.run("web", publish=["80/tcp"])
    before = see(registry, "web:80")
    docker.die("web", 3, oom=True)
    wait_until(lambda: registry.checks == {CHECK: ("critical", "exited with code 3, out of memory")})
    assert registry.table() == before
    running.settle()
    registry.writes.clear()
    running.settle()
    assert registry.writes == []
    docker.start("web")
    wait_until(lambda: registry.table() == {"host-1:web:80": ("nginx", "", 32769)})
    assert registry.checks == {}
    docker.die("web", 0)
    see(registry)


def test_82_128_646_a_crash_is_kept_by_the_next_registrar(docker: FakeDocker, registry: FakeRegistry) -> None:
    rules = Rules(deregister="on-success")
    docker.run("web", publish=["80/tcp"])
    with Running(docker, registry, rules=rules):
        see(registry, "web:80")
    docker.die("web", 1)
    for _ in range(2):
        with Running(docker, registry, rules=rules) as running:
            wait_until(lambda: registry.checks == {CHECK: ("critical", "exited with code 1")})
            running.settle()
    docker.remove("web")
    with Running(docker, registry, rules=rules):
        see(registry)


def test_82_128_646_a_crash_is_forgotten_after_a_while(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start(rules=Rules(deregister="on-success", keep_failed=0.2), wall_clock=lambda: docker.now)
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.die("web", 1)
    wait_until(lambda: registry.checks == {CHECK: ("critical", "exited with code 1")})
    docker.now += 10**9
    see(registry)


# --- ownership -----------------------------------------------------------------------------------------


def hand_made(service_id: str, port: int = 1) -> Registration:
    return Registration(ServiceID(service_id), ServiceName("hand-made"), port, "10.0.0.9")


def test_505_202_nothing_foreign_is_touched(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    foreign = [
        hand_made("by-hand"),
        hand_made("host-1:gone:80"),  # looks like one of ours
        Owner("host-1", "another engine").sign(hand_made("host-1:other:80"), container_id("x")),  # type: ignore[arg-type]
    ]
    for one in foreign:
        registry.put(one)
    running = start()
    docker.run("web", publish=["80/tcp"])
    wait_until(lambda: len(registry.table()) == 4)
    docker.remove("web")
    wait_until(lambda: len(registry.table()) == 3)
    running.settle()
    assert registry.registered() == {one.id: one for one in foreign}


def test_an_id_of_somebody_elses_is_refused_with_one_line(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    registry.put(hand_made("db"))
    running = start()
    docker.run("web", publish=["80/tcp"], env={"SERVICE_ID": "db"})
    refusal = "the id 'db' belongs to a service that no registrar made"
    wait_until(lambda: lines(log, refusal))
    for _ in range(3):
        running.settle()
    assert len(lines(log, refusal)) == 1
    assert registry.writes == []
    registry.drop(ServiceID("db"))
    wait_until(lambda: registry.table().get("db") == ("nginx", "", 32768))


def test_of_two_containers_with_one_id_the_second_waits_for_it(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start()
    docker.run("a", publish=["80/tcp"], env={"SERVICE_ID": "db"})
    wait_until(lambda: registry.table().get("db") == ("nginx", "", 32768))
    docker.run("b", publish=["80/tcp"], env={"SERVICE_ID": "db"})
    docker.remove("a")
    wait_until(lambda: registry.table().get("db") == ("nginx", "", 32769))


def test_an_id_that_goes_free_while_it_is_refused_is_not_missed(
    docker: FakeDocker, registry: FakeRegistry, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Picture.plan

    def plan_slowly(self: Picture, container: ContainerID, desired: Desired | None, **how: Any) -> Plan:
        made = plan(self, container, desired, **how)
        if made.refusals and how.get("claim") and registry.table():
            docker.remove("a")
            wait_until(lambda: not registry.table(), message="a is gone, and has told who waited")
        return made

    monkeypatch.setattr(Picture, "plan", plan_slowly)
    start(resync=0)
    docker.run("a", publish=["80/tcp"], env={"SERVICE_ID": "db"})
    wait_until(lambda: registry.table().get("db") == ("nginx", "", 32768))
    docker.run("b", publish=["80/tcp"], env={"SERVICE_ID": "db"})
    wait_until(lambda: registry.table().get("db") == ("nginx", "", 32769))


def test_a_container_that_docker_cannot_tell_of_costs_only_itself(
    docker: FakeDocker,
    registry: FakeRegistry,
    start: Any,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registrar.reconcile.PROBE_INTERVAL", 0.01)
    docker.broken.add("bad")
    docker.run("bad", publish=["80/tcp"])
    start(resync=0)
    wait_until(lambda: lines(log, "cannot tell"))
    lists, asked = docker.lists, docker.inspected.count(container_id("bad"))
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    wait_until(lambda: docker.inspected.count(container_id("bad")) >= asked + 5)
    assert docker.lists <= lists + 1, "no outage, so nothing is looked at anew"
    assert len(lines(log, "cannot tell")) == 1
    docker.broken.clear()
    see(registry, "bad:80", "web:80")


def test_drift_made_by_hand_is_undone(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    running.settle()
    before = registry.registered()
    registry.drop(ServiceID("host-1:web:80"))
    see(registry, "web:80")
    registry.put(replace(before[ServiceID("host-1:web:80")], port=9))
    wait_until(lambda: registry.registered() == before)


# --- both sides come and go ----------------------------------------------------------------------------


def test_81_334_an_agent_that_forgot_everything_has_it_back(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    running.settle()
    docker.inspected.clear()
    registry.restart_empty()
    see(registry, "web:80")
    assert docker.inspected == [container_id("web")]


def test_264_327_440_593_an_absent_registry_is_waited_for_with_one_line(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    registry.go_away()
    docker.run("web", publish=["80/tcp"])
    start()
    wait_until(lambda: lines(log, "waiting for the registry: cannot ask Consul at fake://registry"))
    wait_until(lambda: lines(log, "watching Docker"))
    registry.come_back()
    see(registry, "web:80")
    assert len(lines(log, "waiting for the registry")) == 1


def test_an_outage_of_the_registry_is_caught_up_with(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    start()
    docker.run("gone", publish=["80/tcp"])
    docker.run("stays", publish=["80/tcp"])
    see(registry, "gone:80", "stays:80")
    registry.go_away()
    docker.remove("gone")
    docker.run("new", publish=["80/tcp"])
    registry.come_back()
    see(registry, "stays:80", "new:80")


def test_377_a_cut_stream_is_replaced_and_nothing_is_missed(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.cut()
    docker.remove("web")
    docker.run("shop", publish=["80/tcp"])
    see(registry, "shop:80")
    wait_until(lambda: len(lines(log, "watching Docker")) == 2)


def test_while_docker_is_away_nothing_is_removed(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    running = start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.go_away()
    wait_until(lambda: lines(log, "waiting for Docker"))
    registry.go_away()
    wait_until(lambda: lines(log, "waiting for the registry"))
    registry.come_back()
    wait_until(lambda: len(lines(log, "connected to the registry")) == 2)
    registry.writes.clear()
    docker.come_back()
    wait_until(lambda: len(lines(log, "watching Docker")) == 2)
    running.settle()
    assert registry.writes == []
    see(registry, "web:80")


def test_73_87_what_starts_while_everything_begins_is_not_missed(
    docker: FakeDocker, registry: FakeRegistry, start: Any
) -> None:
    threads = [
        threading.Thread(target=lambda number=number: docker.run(f"web{number}", publish=["80/tcp"]))
        for number in range(20)
    ]
    for thread in threads[:10]:
        thread.start()
    start()
    for thread in threads[10:]:
        thread.start()
    for thread in threads:
        thread.join()
    see(registry, *(f"web{number}:80" for number in range(20)))


def test_325_339_712_a_missed_event_is_found_by_the_resync(
    docker: FakeDocker, registry: FakeRegistry, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registrar.reconcile.PROBE_INTERVAL", 0.05)
    start(resync=0.1)
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    with docker._lock:
        streams, docker._streams = docker._streams, []
        docker.die("web")
        docker._streams = streams
    see(registry)


@pytest.mark.parametrize(
    "fault",
    [
        RegistryUnavailable("fake://registry answered PUT with HTTP 500: oops"),
        RegistryOverloaded("fake://registry answered PUT with HTTP 429: slow down", status=429),
        AccessDenied("fake://registry answered PUT with HTTP 403: Permission denied", status=403),
        RequestRejected("fake://registry answered PUT with HTTP 400: Invalid check", status=400),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_failed_write_is_tried_again_and_told_once(
    docker: FakeDocker,
    registry: FakeRegistry,
    start: Any,
    log: pytest.LogCaptureFixture,
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registrar.reconcile.PROBE_INTERVAL", 0.05)
    registry.faults["register"] = fault
    start()
    docker.run("web", publish=["80/tcp"])
    docker.run("shop", publish=["80/tcp"])
    wait_until(lambda: len(registry.writes) >= 4, message="both were tried twice")
    assert registry.table() == {}
    assert 1 <= len(lines(log, str(fault))) <= 2
    del registry.faults["register"]
    see(registry, "web:80", "shop:80")


def test_one_refused_registration_does_not_hold_up_the_others(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    real = registry.register

    def register(registration: Registration, *, new: bool = False) -> None:
        if registration.name == "secret":
            raise AccessDenied("fake://registry answered PUT with HTTP 403: Permission denied", status=403)
        real(registration, new=new)

    registry.register = register  # type: ignore[method-assign]
    start()
    docker.run("web", publish={"80/tcp": None, "81/tcp": None}, env={"SERVICE_80_NAME": "secret"})
    see(registry, "web:81")
    assert len(lines(log, "the registry refuses host-1:web:80")) == 1


def test_135_411_538_565_604_what_may_not_be_removed_is_removed_later(
    docker: FakeDocker,
    registry: FakeRegistry,
    start: Any,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registrar.reconcile.PROBE_INTERVAL", 0.05)
    start(resync=0)
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    registry.faults["deregister"] = AccessDenied(
        "fake://registry answered PUT with HTTP 403: Permission denied", status=403
    )
    docker.remove("web")
    wait_until(lambda: registry.writes.count(("deregister", ServiceID("host-1:web:80"))) >= 3)
    assert len(lines(log, "the registry refuses host-1:web:80")) == 1
    del registry.faults["deregister"]
    see(registry)


def test_135_411_538_565_604_without_a_blocking_read_the_registry_is_polled(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    denied = AccessDenied("fake://registry answered GET with HTTP 403: no; set CONSUL_HTTP_TOKEN", status=403)
    registry.faults["read"] = denied
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    assert len(lines(log, "set CONSUL_HTTP_TOKEN")) == 1


def test_a_registry_that_is_polled_is_not_told_the_same_again(
    docker: FakeDocker, registry: FakeRegistry, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registrar.reconcile.POLL_INTERVAL", 0.02)
    monkeypatch.setattr("registrar.reconcile.SURVEY_INTERVAL", 0.01)
    registry.faults["read"] = AccessDenied("fake://registry answered GET with HTTP 403: no", status=403)
    running = start()
    docker.run("web", publish=["80/tcp"])
    docker.health("web", "healthy", "ok")
    wait_until(lambda: registry.checks == {CHECK: ("passing", "ok")})
    running.settle()
    surveys, inspected = docker.lists, len(docker.inspected)
    wait_until(lambda: docker.lists >= surveys + 5)
    assert len(docker.inspected) == inspected
    registry.faults["registered"] = RegistryUnavailable("connection refused")
    wait_until(lambda: running.reconciler.faults())
    registry.checks[CHECK] = ("critical", "")
    del registry.faults["registered"]
    wait_until(lambda: registry.checks == {CHECK: ("passing", "ok")}, message="it may have lost it meanwhile")
    registry.drop(ServiceID("host-1:web:80"))
    see(registry, "web:80")


# --- seen from outside -----------------------------------------------------------------------------------


def test_59_243_551_an_agent_of_another_host_is_warned_of(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    start()
    warning = "the agent is node node-1 at 172.28.128.3, and Docker runs on host-1"
    wait_until(lambda: lines(log, warning))
    start(rules=Rules(ip="10.0.0.5"))
    wait_until(lambda: len(lines(log, "connected to the registry")) == 2)
    assert len(lines(log, warning)) == 1


def metric(running: Running, name: str) -> float:
    """The value of a metric; its labels belong to the name."""
    for line in running.reconciler.metrics().splitlines():
        if line.startswith(f"portcall_registrar_{name} "):
            return float(line.split()[-1])
    return 0.0


def test_what_happens_is_counted(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start(wall_clock=lambda: docker.now)
    running.settle()  # or the first look may find "web" before its event is heard: that is drift
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.run("shop", publish=["80/tcp"])
    docker.kill("shop")
    see(registry, "web:80")
    running.settle()
    registry.drop(ServiceID("host-1:web:80"))
    see(registry, "web:80")
    wait_until(lambda: metric(running, "drift_total") == 1)
    assert metric(running, 'events_total{action="start"}') == 2
    assert metric(running, 'writes_total{kind="register"}') >= 2
    assert metric(running, "docker_up") == metric(running, "registry_up") == 1
    assert metric(running, "containers") == 2
    assert metric(running, "services") == 1
    assert metric(running, "surveys_total") >= 1
    assert metric(running, "lag_seconds_count") >= 1
    assert metric(running, 'lag_seconds_bucket{le="+Inf"}') == metric(running, "lag_seconds_count")


def test_health_says_what_is_missing(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start()
    faults = running.reconciler.faults
    wait_until(lambda: faults() == [])
    docker.go_away()
    wait_until(lambda: faults() == ["Docker at fake://docker does not answer"])
    docker.come_back()
    registry.go_away()
    wait_until(lambda: faults() == ["the registry at fake://registry does not answer"])
    registry.come_back()
    registry.faults["register"] = AccessDenied("no", status=403)
    docker.run("web", publish=["80/tcp"])
    wait_until(lambda: faults() == ["1 containers cannot be registered; the log says why"])


def test_a_look_that_hangs_shows_and_stops_the_watchdogs_file(
    docker: FakeDocker, registry: FakeRegistry, start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("registrar.reconcile.PROBE_INTERVAL", 0.01)
    monkeypatch.setattr("registrar.reconcile.HANGS", 0.1)
    heartbeat = tmp_path / "alive"
    running = start(heartbeat_file=str(heartbeat))
    wait_until(heartbeat.exists)
    hanging, release = threading.Event(), threading.Event()
    real = docker.inspect

    def inspect(container: str) -> Any:
        hanging.set()
        release.wait(10)
        return real(container)

    docker.inspect = inspect  # type: ignore[method-assign]
    docker.run("web", publish=["80/tcp"])
    try:
        assert hanging.wait(5)
        wait_until(lambda: any("under way" in fault for fault in running.reconciler.faults()))
        heartbeat.unlink()
        wait_until(lambda: metric(running, "under_way_seconds") > 0.2)
        assert not heartbeat.exists()
    finally:
        release.set()
    see(registry, "web:80")
    wait_until(heartbeat.exists)


def test_our_own_fault_costs_one_container_and_is_seen(
    docker: FakeDocker, registry: FakeRegistry, start: Any, log: pytest.LogCaptureFixture
) -> None:
    real = docker.inspect

    def inspect(container: str) -> Any:
        if container == container_id("bad"):
            raise ZeroDivisionError
        return real(container)

    docker.inspect = inspect  # type: ignore[method-assign]
    start(resync=0)
    docker.run("bad", publish=["80/tcp"])
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    wait_until(lambda: lines(log, f"cannot look at container {container_id('bad')[:12]}"))


def test_537_memory_is_flat(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    running = start()
    reconciler = running.reconciler
    for number in range(300):
        docker.run(f"web{number}", publish=["80/tcp"], env={"SERVICE_080_X": "a problem"})
        docker.rename(f"web{number}", f"shop{number}")
        docker.remove(f"shop{number}")
    see(registry)
    running.settle()
    kept = [reconciler._containers, reconciler._sharing, reconciler._denied, reconciler._unanswered]
    kept += [reconciler._signals._sent, reconciler._reporter._told]
    wait_until(lambda: not any(kept))
    assert not reconciler._picture.ours()


# --- beginning and end ---------------------------------------------------------------------------------


def test_retry_attempts_ends_the_wait(docker: FakeDocker, registry: FakeRegistry) -> None:
    registry.go_away()
    with (
        pytest.raises(GaveUp, match="gave up after 3 attempts: cannot ask Consul"),
        Running(docker, registry, retry_attempts=2, retry_interval=0.01) as running,
    ):
        wait_until(running.ended)


def test_1_655_services_stay_when_the_registrar_ends(docker: FakeDocker, registry: FakeRegistry) -> None:
    docker.run("web", publish=["80/tcp"])
    with Running(docker, registry):
        see(registry, "web:80")
    see(registry, "web:80")


def test_1_655_services_go_with_the_registrar_where_asked(docker: FakeDocker, registry: FakeRegistry) -> None:
    docker.run("web", publish=["80/tcp"])
    registry.put(hand_made("by-hand"))
    with Running(docker, registry, deregister_on_exit=True):
        wait_until(lambda: len(registry.table()) == 2)
    assert list(registry.table()) == ["by-hand"]


def test_it_stops_while_both_sides_are_away(docker: FakeDocker, registry: FakeRegistry) -> None:
    docker.go_away()
    registry.go_away()
    with Running(docker, registry):
        pass


def test_another_engine_is_another_owner(docker: FakeDocker, registry: FakeRegistry, start: Any) -> None:
    start()
    docker.run("web", publish=["80/tcp"])
    see(registry, "web:80")
    docker.go_away()
    docker.info = replace(docker.info, id="ANOT:HER0")
    docker.come_back()
    docker.run("shop", publish=["80/tcp"])
    see(registry, "web:80", "shop:80")
    owners = {key: one.meta[META_OWNER] for key, one in registry.registered().items()}
    assert owners == {"host-1:web:80": "host-1/ENGN:0000:00", "host-1:shop:80": "host-1/ANOT:HER0"}
