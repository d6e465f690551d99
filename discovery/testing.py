"""For the tests of applications: pytest's fixture ``fake_discovery``, a registry of the test's own.

    def test_greeting(fake_discovery):
        server = fake_discovery.add("python-micro-service", port=5000)
        assert discovery.lookup("python-micro-service") == ("127.0.0.1", 5000)
        fake_discovery.set_status(server, "critical")
        with pytest.raises(discovery.NoHealthyInstances):
            discovery.lookup("python-micro-service")

It is the embedded agent on a free port, so that what works with it works with Consul. Everything in the test
speaks to it: ``discovery.lookup`` and its like, the integrations, and processes that the test starts.

Laws:
- pytest loads this file wherever portcall is installed: it imports nothing but pytest.
- What ``add``, ``set_status`` and ``remove`` did is known to the module functions when they return. Nothing
  of the test's environment, and nothing on this machine, is asked besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from discovery.agent import Agent
    from discovery.backends import Backend
    from discovery.client import Client
    from discovery.model import Instance, ServiceID, Snapshot, Status

__all__ = ["FakeDiscovery", "fake_discovery"]

_PATIENCE = 5.0  # s until a change must have come round; it takes milliseconds
_TTL = 86400.0  # s; longer than any test: nobody renews the checks


class FakeDiscovery:
    """The registry of one test. Use the fixture; the arguments are its own parts."""

    def __init__(self, agent: Agent, backend: Backend, client: Client) -> None:
        self.agent = agent
        self.client = client
        """What the module functions use during the test."""
        self._backend = backend
        self._names: dict[ServiceID, str] = {}

    @property
    def url(self) -> str:
        """Where it is: what CONSUL_HTTP_ADDR says during the test."""
        return self.agent.url

    def add(
        self,
        name: str,
        *,
        port: int,
        host: str = "127.0.0.1",
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        status: Status = "passing",
    ) -> ServiceID:
        """Register an instance of *name* at *host* and *port*, and return its id. Again: replace it."""
        from discovery.model import Check, CheckID, Registration, ServiceID
        from discovery.names import service_name

        service_id = ServiceID(f"{name}:{host}:{port}")
        check = Check(id=CheckID(service_id), name="set by the test", ttl=_TTL, initial_status=status)
        registration = Registration(
            id=service_id,
            name=service_name(name, origin="fake_discovery"),
            port=port,
            address=host,
            tags=tuple(tags),
            meta=dict(meta or {}),
            checks=(check,),
        )
        self._backend.register(registration)
        self._names[service_id] = name

        def is_there(instance: Instance) -> bool:
            return (instance.tags, dict(instance.meta)) == (registration.tags, registration.meta)

        self._until(service_id, lambda found: any(map(is_there, found)))
        self.set_status(service_id, status)
        return service_id

    def set_status(self, service_id: ServiceID, status: Status) -> None:
        """Let the check of an instance say *status*: ``passing``, ``warning`` or ``critical``."""
        from discovery.model import CheckID

        self._backend.update_check(CheckID(service_id), status)
        self._until(service_id, lambda found: [instance.status for instance in found] == [status])

    def remove(self, service_id: ServiceID) -> None:
        """Deregister an instance."""
        self._backend.deregister(service_id)
        self._until(service_id, lambda found: not found)

    def _until(self, service_id: ServiceID, wanted: Callable[[list[Instance]], bool]) -> None:
        """Wait until the client knows a state of the instance that is *wanted*."""

        def reached(snapshot: Snapshot) -> bool:
            return wanted([instance for instance in snapshot if instance.id == service_id])

        with self.client.watch(self._names[service_id], healthy=False) as changes:
            while not reached(changes.next(_PATIENCE)):
                pass


@pytest.fixture
def fake_discovery() -> Iterator[FakeDiscovery]:
    """A registry of the test's own: ``add`` instances to it. See ``discovery.testing``."""
    import os

    import discovery.client
    from discovery.agent import Agent
    from discovery.backends import open_backend
    from discovery.config import Config

    with Agent(http=("127.0.0.1", 0)) as agent:
        other_sources = ("DISCOVERY_DNS", "DISCOVERY_CACHE", "DISCOVERY_SHARE")
        environment = {"CONSUL_HTTP_ADDR": agent.url, **dict.fromkeys(other_sources, "off")}
        config = Config.from_env(environment)
        backend = open_backend(agent.uri, config)
        try:
            # Patches of its own: what the test patches with its monkeypatch is not ours to undo.
            with discovery.client.Client(config) as client, pytest.MonkeyPatch.context() as patch:
                for variable in os.environ:
                    if variable.startswith(("CONSUL_", "DISCOVERY_")):
                        patch.delenv(variable)
                for variable, value in environment.items():
                    patch.setenv(variable, value)
                patch.setattr(discovery.client, "_default", client)
                yield FakeDiscovery(agent, backend, client)
        finally:
            backend.close()
