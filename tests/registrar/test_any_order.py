"""Whatever happens in whatever order: once it is quiet, the agent has what runs, and nothing else changed.

A thousand steps of an operator, of Docker and of the agent against the running loop. What should be
registered is known from the steps alone, not from the code that is tested.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from discovery.model import Registration, ServiceID, ServiceName
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.fake_registry import FakeRegistry
from tests.registrar.running import Running
from tests.tools import wait_until

FOREIGN = Registration(ServiceID("by-hand"), ServiceName("by-hand"), 1, "10.0.0.9")
CALM = 10.0  # s until everything must be right; it takes milliseconds, a loaded machine takes longer


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.docker = FakeDocker()
        self.registry = FakeRegistry()
        self.registry.put(FOREIGN)
        self.stopped: set[str] = set()
        self.running: set[str] = set()
        self.paused: set[str] = set()
        self.stopping: set[str] = set()
        self.count = 0
        self.ends = ExitStack()
        # The pauses between attempts are not what is tested.
        for name, value in {
            "WAIT": 0.5,
            "SURVEY_INTERVAL": 0.01,
            "SETTLE": 0.01,
            "RETRY_FIRST": 0.01,
            "RETRY_LAST": 0.02,
        }.items():
            self.ends.enter_context(patch(f"registrar.reconcile.{name}", value))
        self.loop = Running(self.docker, self.registry)
        self.loop.__enter__()

    # Docker and its operator ------------------------------------------------------------------------------

    def pick(self, names: set[str], data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(names)), label="container")

    @rule()
    @precondition(lambda self: len(self.stopped | self.running) < 6)
    def run(self) -> None:
        name = f"web{self.count}"
        self.count += 1
        self.docker.run(name, publish=["80/tcp"])
        self.running.add(name)

    @rule(data=st.data())
    @precondition(lambda self: self.stopped)
    def start(self, data: st.DataObject) -> None:
        name = self.pick(self.stopped, data)
        self.docker.start(name)
        self.stopped.remove(name)
        self.running.add(name)

    @rule(data=st.data(), how=st.sampled_from(["stop", "kill", "die"]))
    @precondition(lambda self: self.running - self.stopping)
    def end(self, data: st.DataObject, how: str) -> None:
        name = self.pick(self.running - self.stopping, data)
        getattr(self.docker, how)(name)
        self.ended(name)
        self.stopped.add(name)

    def ended(self, name: str) -> None:
        for names in (self.running, self.paused, self.stopping):
            names.discard(name)

    @rule(data=st.data())
    @precondition(lambda self: self.running - self.stopping - self.paused)
    def begin_stop(self, data: st.DataObject) -> None:
        name = self.pick(self.running - self.stopping - self.paused, data)
        self.docker.begin_stop(name)
        self.stopping.add(name)

    @rule(data=st.data())
    @precondition(lambda self: self.stopping)
    def end_stop(self, data: st.DataObject) -> None:
        name = self.pick(self.stopping, data)
        self.docker.end_stop(name)
        self.ended(name)
        self.stopped.add(name)

    @rule(data=st.data())
    @precondition(lambda self: self.running - self.stopping)
    def restart(self, data: st.DataObject) -> None:
        name = self.pick(self.running - self.stopping, data)
        self.docker.restart(name)
        self.paused.discard(name)

    @rule(data=st.data())
    @precondition(lambda self: self.running - self.stopping)
    def pause_or_unpause(self, data: st.DataObject) -> None:
        name = self.pick(self.running - self.stopping, data)
        self.docker.pause(name, paused=name not in self.paused)
        self.paused ^= {name}

    @rule(data=st.data())
    @precondition(lambda self: self.running - self.stopping)
    def hang_up(self, data: st.DataObject) -> None:
        self.docker.kill(self.pick(self.running - self.stopping, data), "SIGHUP", dies=False)

    @rule(data=st.data())
    @precondition(lambda self: self.running | self.stopped)
    def rename(self, data: st.DataObject) -> None:
        name = self.pick(self.running | self.stopped, data)
        new = f"web{self.count}"
        self.count += 1
        self.docker.rename(name, new)
        for names in (self.running, self.stopped, self.paused, self.stopping):
            if name in names:
                names.remove(name)
                names.add(new)

    @rule(data=st.data())
    @precondition(lambda self: self.running | self.stopped)
    def remove(self, data: st.DataObject) -> None:
        name = self.pick(self.running | self.stopped, data)
        self.docker.remove(name)
        self.ended(name)
        self.stopped.discard(name)

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def connect_and_disconnect(self, data: st.DataObject) -> None:
        name = self.pick(self.running, data)
        self.docker.connect_network(name, "back", "10.1.0.9")
        self.docker.disconnect_network(name, "back")

    # What goes wrong --------------------------------------------------------------------------------------

    @rule()
    def cut_the_stream(self) -> None:
        self.docker.cut()

    @rule()
    def restart_docker_s_api(self) -> None:
        self.docker.go_away()
        self.docker.come_back()
        # The signals were told in a stream of which nothing is left: those containers look alive.
        self.lost_signals()

    def lost_signals(self) -> None:
        for name in sorted(self.stopping):
            self.docker.begin_stop(name)

    @rule()
    def restart_the_agent_empty(self) -> None:
        self.registry.restart_empty()
        self.registry.put(FOREIGN)

    @rule()
    def let_the_agent_be_away(self) -> None:
        self.registry.go_away()
        self.registry.come_back()

    @rule()
    def replace_the_registrar(self) -> None:
        self.loop.__exit__(None, None, None)
        self.loop = Running(self.docker, self.registry)
        self.loop.__enter__()

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def remove_one_by_hand(self, data: st.DataObject) -> None:
        self.registry.drop(ServiceID(f"host-1:{self.pick(self.running, data)}:80"))

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def change_one_by_hand(self, data: st.DataObject) -> None:
        service_id = ServiceID(f"host-1:{self.pick(self.running, data)}:80")
        if found := self.registry.registered().get(service_id):
            self.registry.put(replace(found, port=found.port + 1))

    # What must be so ----------------------------------------------------------------------------------------

    def expected(self) -> dict[str, tuple[str, str, int]]:
        serving = self.running - self.paused - self.stopping
        ours = {f"host-1:{name}:80": ("nginx", "", self.docker.port_of(name)) for name in serving}
        return {**ours, "by-hand": ("by-hand", "10.0.0.9", 1)}

    @rule()
    def be_quiet(self) -> None:
        expected = self.expected()
        wait_until(
            lambda: self.registry.table() == expected,
            CALM,
            message=f"registered is {expected}",
            interval=0.002,
        )

    @invariant()
    def what_is_foreign_is_untouched(self) -> None:
        assert self.registry.registered().get(FOREIGN.id) == FOREIGN
        assert ("deregister", FOREIGN.id) not in self.registry.writes

    def teardown(self) -> None:
        try:
            self.be_quiet()
        finally:
            self.loop.__exit__(None, None, None)
            self.ends.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=20,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
