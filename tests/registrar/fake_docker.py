"""A Docker engine in memory, as far as a registrar can tell the difference.

It keeps what real ones were seen to do: ports of ``-P`` change with every start, a container that does not
run has none, ``stop`` is ``kill`` then ``die`` then ``stop``, ``docker kill`` emits no ``stop``, a stream
replays the last 256 events from ``since`` on, and ``network connect`` is told with the container among the
attributes. tests/registrar/test_docker.py asks the same of a real dockerd.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from registrar.containers import Container, ContainerID, Summary, signal_number
from registrar.docker import DockerRefused, DockerUnavailable, EngineInfo, Event
from tests.registrar.build import container_id, raw_container

__all__ = ["FakeDocker"]

_SECOND = 1_000_000_000  # ns
_EPOCH = 1714557600 * _SECOND


class _Stream:
    """A subscription; ``close`` ends it from any thread."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        while (event := self.events.get()) is not None:
            yield event

    def close(self) -> None:
        self.events.put(None)


class FakeDocker:
    """One engine. Every method may be called from any thread; containers are named, not numbered."""

    where = "fake://docker"

    def __init__(self, *, engine_id: str = "ENGN:0000:0001", name: str = "host-1") -> None:
        self.info = EngineInfo(engine_id, name, "20.10.24", 0)
        self.up = True
        self.inspected: list[str] = []
        """Ids, in the order they were asked for."""
        self.broken: set[str] = set()
        """Names of containers of which the engine cannot tell."""
        self.lists = 0
        self.executed: list[tuple[ContainerID, tuple[str, ...]]] = []
        self.exits: dict[tuple[str, ...], tuple[int | None, str]] = {}
        """What commands end with; 0 and no output unless given."""
        self._lock = threading.RLock()
        self._containers: dict[str, dict[str, Any]] = {}
        self._published: dict[str, dict[str, int | None]] = {}
        self._streams: list[_Stream] = []
        self._history: deque[tuple[int, Event]] = deque(maxlen=256)
        self.now = _EPOCH
        self._next_port = 32768

    # What the registrar asks ------------------------------------------------------------------------------

    def connect(self) -> EngineInfo:
        with self._lock:
            self._check()
            return EngineInfo(self.info.id, self.info.name, self.info.version, self.now)

    def events(self, since: int) -> _Stream:
        with self._lock:
            self._check()
            stream = _Stream()
            for at, event in self._history:
                if at >= since:
                    stream.events.put(event)
            self._streams.append(stream)
            return stream

    def list(self) -> tuple[Summary, ...]:
        with self._lock:
            self._check()
            self.lists += 1
            return tuple(Summary.from_json(self._row(raw)) for raw in self._containers.values())

    def inspect(self, container: str) -> Container | None:
        with self._lock:
            self._check()
            self.inspected.append(container)
            raw = self._find(container)
            if raw is None:
                return None
            found = Container.from_json(raw)
            if found.name in self.broken:
                raise DockerRefused(f"Docker at {self.where} cannot tell: HTTP 500: RWLayer is nil")
            target = self._find(found.shared_network) if found.shared_network else None
            return found.joined(Container.from_json(target)) if target else found

    def execute(
        self, container: ContainerID, args: tuple[str, ...], timeout: float
    ) -> tuple[int | None, str]:
        with self._lock:
            self._check()
            self.executed.append((container, args))
            return self.exits.get(args, (0, ""))

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    # What an operator does --------------------------------------------------------------------------------

    def run(
        self, name: str, *, publish: Mapping[str, int | None] | Sequence[str] = (), **options: Any
    ) -> str:
        """Create and start; ``publish`` maps ports inside to host ports, None or absent: any free one."""
        self.create(name, publish=publish, **options)
        self.start(name)
        return container_id(name)

    def create(
        self, name: str, *, publish: Mapping[str, int | None] | Sequence[str] = (), **options: Any
    ) -> None:
        with self._lock:
            wanted = dict(publish) if isinstance(publish, Mapping) else dict.fromkeys(publish)
            raw = raw_container(name, expose=[*wanted, *options.pop("expose", ())], **options)
            assert raw["Id"] not in self._containers, f"the name {name} is in use"
            raw["State"] = {"Running": False, "StartedAt": "0001-01-01T00:00:00Z"}
            raw["NetworkSettings"]["Ports"] = {}
            self._containers[raw["Id"]] = raw
            self._published[raw["Id"]] = wanted
            self._tell(raw, "create")

    def start(self, name: str) -> None:
        with self._lock:
            raw = self._named(name)
            if raw["State"]["Running"]:
                return
            raw["State"] = {"Running": True, "StartedAt": _text(self._tick())}
            raw["NetworkSettings"]["Ports"] = self._bind(raw)
            self._tell(raw, "start")

    def kill(self, name: str, signal: str = "SIGKILL", *, dies: bool = True, exit_code: int = 137) -> None:
        """Send a signal; ``dies`` says what the process does with it."""
        with self._lock:
            raw = self._named(name)
            self._tell(raw, "kill", signal=str(signal_number(signal)))
            if dies:
                self.die(name, exit_code)

    def die(self, name: str, exit_code: int = 0, *, oom: bool = False) -> None:
        """Let the process end."""
        with self._lock:
            raw = self._named(name)
            started = raw["State"]["StartedAt"]
            raw["State"] = {
                "Running": False,
                "StartedAt": started,
                "FinishedAt": _text(self._tick()),
                "ExitCode": exit_code,
                "OOMKilled": oom,
            }
            raw["NetworkSettings"]["Ports"] = {}
            self._tell(raw, "die", exitCode=str(exit_code))

    def stop(self, name: str) -> None:
        with self._lock:
            self.begin_stop(name)
            self.end_stop(name)

    def begin_stop(self, name: str) -> None:
        """The first half of ``stop``: the signal is sent, and the process still runs."""
        with self._lock:
            raw = self._named(name)
            self.kill(name, raw["Config"].get("StopSignal") or "SIGTERM", dies=False)

    def end_stop(self, name: str) -> None:
        with self._lock:
            self.die(name, 143)
            self._tell(self._named(name), "stop")

    def restart(self, name: str) -> None:
        with self._lock:
            self.stop(name)
            self.start(name)
            self._tell(self._named(name), "restart")

    def pause(self, name: str, *, paused: bool = True) -> None:
        with self._lock:
            raw = self._named(name)
            raw["State"]["Paused"] = paused
            self._tell(raw, "pause" if paused else "unpause")

    def rename(self, name: str, new_name: str) -> None:
        with self._lock:
            raw = self._named(name)
            raw["Name"] = f"/{new_name}"
            self._tell(raw, "rename", oldName=f"/{name}")

    def remove(self, name: str) -> None:
        with self._lock:
            raw = self._named(name)
            if raw["State"]["Running"]:
                self.kill(name)
            del self._containers[raw["Id"]]
            self._tell(raw, "destroy")

    def connect_network(self, name: str, network: str, address: str) -> None:
        with self._lock:
            raw = self._named(name)
            raw["NetworkSettings"]["Networks"][network] = {"IPAddress": address}
            self._tell_network(raw, network, "connect")

    def disconnect_network(self, name: str, network: str) -> None:
        with self._lock:
            raw = self._named(name)
            raw["NetworkSettings"]["Networks"].pop(network, None)
            self._tell_network(raw, network, "disconnect")

    def health(self, name: str, status: str, output: str = "") -> None:
        with self._lock:
            raw = self._named(name)
            raw["State"]["Health"] = {"Status": status, "Log": [{"Output": output}]}
            self._tell(raw, f"health_status: {status}")

    def port_of(self, name: str, port: str = "80/tcp") -> int:
        """The host port that a running container's port is published at."""
        with self._lock:
            return int(self._named(name)["NetworkSettings"]["Ports"][port][0]["HostPort"])

    # What goes wrong --------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End every stream."""
        with self._lock:
            for stream in self._streams:
                stream.close()
            self._streams = []

    def go_away(self) -> None:
        """Answer nothing any more; events are lost, as those before a daemon's restart are."""
        with self._lock:
            self.up = False
            self._history.clear()
            self.cut()

    def come_back(self) -> None:
        with self._lock:
            self.up = True

    # Inside -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if not self.up:
            raise DockerUnavailable("cannot ask Docker at fake://docker: connection refused")

    def _tick(self) -> int:
        self.now += _SECOND // 1000
        return self.now

    def _find(self, container: str) -> dict[str, Any] | None:
        for raw in self._containers.values():
            if raw["Id"] == container or raw["Name"] == f"/{container}":
                return raw
        return None

    def _named(self, name: str) -> dict[str, Any]:
        raw = self._find(name)
        assert raw is not None, f"there is no container {name}"
        return raw

    def _bind(self, raw: dict[str, Any]) -> dict[str, Any]:
        mode = raw["HostConfig"]["NetworkMode"]
        if mode in ("host", "none") or mode.startswith("container:"):
            return {}
        ports: dict[str, Any] = dict.fromkeys(raw["Config"]["ExposedPorts"])
        for port, host_port in self._published[raw["Id"]].items():
            if host_port is None:
                host_port = self._next_port
                self._next_port += 1
            ports[port] = [{"HostIp": host, "HostPort": str(host_port)} for host in ("0.0.0.0", "::")]
        return ports

    def _row(self, raw: dict[str, Any]) -> dict[str, Any]:
        state = raw["State"]
        running = "paused" if state.get("Paused") else "running"
        health = state.get("Health", {}).get("Status")
        up = f"Up 5 minutes{f' ({health})' if health else ''}"
        return {
            "Id": raw["Id"],
            "Names": [raw["Name"]],
            "State": running if state["Running"] else "exited",
            "Status": up if state["Running"] else f"Exited ({state.get('ExitCode', 0)}) 5 minutes ago",
            "Ports": [
                {
                    "IP": binding["HostIp"],
                    "PublicPort": int(binding["HostPort"]),
                    "PrivatePort": int(port.partition("/")[0]),
                    "Type": port.partition("/")[2],
                }
                for port, bindings in raw["NetworkSettings"]["Ports"].items()
                for binding in bindings or ()
            ],
            "NetworkSettings": {"Networks": raw["NetworkSettings"]["Networks"]},
        }

    def _tell(self, raw: dict[str, Any], action: str, **attributes: str) -> None:
        actor = {"ID": raw["Id"], "Attributes": {"name": raw["Name"].lstrip("/"), **attributes}}
        self._send({"Type": "container", "Action": action, "Actor": actor})

    def _tell_network(self, raw: dict[str, Any], network: str, action: str) -> None:
        actor = {"ID": f"id of {network}", "Attributes": {"container": raw["Id"], "name": network}}
        self._send({"Type": "network", "Action": action, "Actor": actor})

    def _send(self, raw: dict[str, Any]) -> None:
        at = self._tick()
        event = Event.from_json({**raw, "timeNano": at})
        assert event is not None
        self._history.append((at, event))
        for stream in self._streams:
            stream.events.put(event)


def _text(at: int) -> str:
    moment = datetime.fromtimestamp(at // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{at % _SECOND:09}Z"
