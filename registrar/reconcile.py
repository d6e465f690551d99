"""The loop that keeps the agent's services equal to the containers that run.

    Docker's events ──> "look again at this container" ──┐
                                                         ├─> WorkQueue ──> workers
    Consul's blocking read, resync, ──> "look at all" ───┘
    either side coming back

    a pass (one container)               a survey (everything, alone)
      inspect it                           list the containers
      desire()                             read what the agent has: the new picture
      plan() against the picture           mark for a pass what is new, gone, changed,
      write what differs                     or not as it is desired

Laws:
- Level-triggered: an event carries no state, but for the stop signal (see ``signals``).
- Only passes write, and one container has one pass at a time: whatever order its events come in, the last
  pass sees the last state.
- A pass costs one inspect and the writes that are needed. What the agent has it takes from the picture,
  which every write keeps up to date and every survey replaces by the truth.
- Docker away: nothing is known about containers, so nothing is removed. Consul away: nothing can be
  written. In both cases work waits, and a survey follows when both are there.
- What is logged is what changed, once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from discovery.backends import AgentInfo, Backend, Reader
from discovery.errors import (
    AccessDenied,
    DiscoveryError,
    RegistryError,
    RegistryOverloaded,
    UnknownResource,
)
from discovery.model import NodeName, NodeServicesQuery, ServiceID
from registrar.checks import Probe
from registrar.config import Settings
from registrar.containers import Container, ContainerID, Summary
from registrar.desired import Desired, Host, desire
from registrar.docker import DockerRefused, DockerUnavailable, EngineInfo, Event, SocketDeleted
from registrar.metrics import Metrics
from registrar.owner import Owner, container_of, owner_name
from registrar.picture import Picture, Row
from registrar.plan import Plan, Write
from registrar.prober import Executor, Prober
from registrar.reporter import Reporter
from registrar.signals import StopSignals
from registrar.status import Report
from registrar.work import SURVEY, WorkQueue

__all__ = ["Engine", "Events", "GaveUp", "Reconciler"]

log = logging.getLogger("registrar")

SURVEY_INTERVAL: Final = 0.25
"""Seconds between two surveys at least: on a busy cluster the blocking read returns all the time."""
WAIT: Final = 10.0
"""Seconds that the agent may hold the blocking read. An agent that vanished without a word is noticed at
the end of it, and so is one that was replaced in the millisecond between two reads."""
SETTLE: Final = 0.2
"""Seconds that the catalogue may differ from what we believe, because of what we are just writing."""
PATIENCE: Final = 5
"""Looks at a catalogue that differs, after which a survey is made although writing goes on; and the most
``SETTLE`` between two of them."""
REPLAY: Final = 60.0
"""Seconds before the first subscription of which events are still of interest: a container that was sent
its stop signal then may be stopping now."""
RETRY_FIRST: Final = 0.1  # s
RETRY_LAST: Final = 1.0  # s; a fault that ends is followed by a full pass within 2 s
PROBE_INTERVAL: Final = 1.0
"""Seconds between two attempts at what the registry refuses. One container is tried each time, and when
it passes all the others are: a thousand that are denied cost no more than one."""
HANGS: Final = 60.0
"""Seconds that a look may take before the registrar counts as hanging. Every request ends after 10 s."""
POLL_INTERVAL: Final = 1.0
"""Seconds between two surveys where the registry does not let us hold a blocking read."""


class Events(Protocol):
    """A subscription to an engine's events."""

    def __iter__(self) -> Iterator[Event]: ...

    def close(self) -> None:
        """End the subscription, from any thread."""


class Engine(Executor, Protocol):
    """What the loop needs of a container engine; ``registrar.docker.Docker`` is the real one."""

    @property
    def where(self) -> str: ...

    def connect(self) -> EngineInfo: ...

    def events(self, since: int) -> Events: ...

    def list(self) -> tuple[Summary, ...]: ...

    def inspect(self, container: str) -> Container | None: ...

    def close(self) -> None: ...


class GaveUp(DiscoveryError):
    """The registry could not be reached in as many attempts as were allowed."""


@dataclass(slots=True)
class _Known:
    """What is remembered of one container."""

    fingerprint: int | None = None
    """Of its row in the list when a survey last had it inspected, if nothing was heard of it since."""
    desired: Desired | None = None
    """As of the last pass."""
    told: set[str] = field(default_factory=set)
    """Problems and refusals that are in the log already."""
    refused: frozenset[ServiceID] = frozenset()
    """Ids that it wants and somebody else has."""


class _Pauses:
    """The pauses between attempts: 0.1 s, doubling up to 1 s, each shortened by chance.

    By chance, so that the registrars of a cluster do not all come back in the same moment.
    """

    def __init__(self) -> None:
        self._random = random.Random()
        self._next = RETRY_FIRST

    def next(self) -> float:
        pause = self._next
        self._next = min(pause * 2, RETRY_LAST)
        return pause * self._random.uniform(0.7, 1.0)

    def reset(self) -> None:
        self._next = RETRY_FIRST


class Reconciler:
    """Keeps one agent in step with one engine until it is told to stop.

    Args:
        engine: the container engine.
        backend: the registry. Both stay the caller's to close.
        hostname: of this process; may become the owner's name.
        clock: monotonic seconds.
        wall_clock: nanoseconds since the epoch; comparable with Docker's on the same host.
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        settings: Settings,
        *,
        hostname: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._settings = settings
        self._hostname = hostname
        self._clock = clock
        self._wall_clock = wall_clock
        self._queue = WorkQueue(survey_interval=SURVEY_INTERVAL, clock=clock)
        self._stopping = threading.Event()
        self._broken: Exception | None = None
        self._metrics = Metrics()
        self._picture = Picture()
        self._reporter = Reporter(backend)
        self._prober = Prober(engine, self._probed, clock)
        self._pass_pauses = _Pauses()
        # Guards all that follows; held for memory only, never across I/O.
        self._lock = threading.Lock()
        self._host: Host | None = None
        self._engine_info: EngineInfo | None = None
        self._agent: AgentInfo | None = None
        self._engine_here = False
        self._registry_here = False
        self._containers: dict[ContainerID, _Known] = {}
        self._last_event_at = 0
        """Nanoseconds, the engine's clock."""
        self._signals = StopSignals()
        self._unanswered: dict[ContainerID, int] = {}
        """When the first event came that no pass has answered yet; nanoseconds, the engine's clock."""
        self._sharing: dict[ContainerID, ContainerID] = {}
        """Container -> the one whose network it uses."""
        self._denied: dict[ContainerID, None] = {}
        """Containers whose registration the registry refused, the longest waiting first."""
        self._events: Events | None = None
        self._reader: Reader | None = None
        self._said: dict[str, object] = {}

    # --- life --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until ``stop`` is called.

        Raises:
            GaveUp: the registry was not there in as many attempts as the settings allow.
        """
        self._await_registry()
        targets = {
            "registrar-docker": self._follow_engine,
            "registrar-registry": self._follow_registry,
            "registrar-heartbeat": self._beat,
            **{f"registrar-worker-{number}": self._work for number in range(self._settings.workers)},
        }
        threads = [
            threading.Thread(target=self._guard, args=(target,), name=name)
            for name, target in targets.items()
        ]
        for thread in threads:
            thread.start()
        self._guard(self._keep_time)
        self._prober.close()
        for thread in threads:
            thread.join()
        if self._broken is not None:
            raise self._broken
        if self._settings.deregister_on_exit:
            self._deregister_all()

    def stop(self) -> None:
        """Make ``run`` return soon; from any thread."""
        self._stopping.set()
        self._queue.close()
        with self._lock:
            events, reader = self._events, self._reader
        if events is not None:
            events.close()
        if reader is not None:
            reader.interrupt()

    def look(self) -> None:
        """Have everything looked at now."""
        self._queue.survey()

    def metrics(self) -> str:
        """Return everything that is counted, in Prometheus' text format."""
        with self._lock:
            sides = {"docker_up": self._engine_here, "registry_up": self._registry_here}
            containers = len(self._containers)
        gauges = {
            "docker_up": ("whether Docker answers", float(sides["docker_up"])),
            "registry_up": ("whether the registry answers", float(sides["registry_up"])),
            "containers": ("containers, running or not", containers),
            "services": ("services that are registered", len(self._picture.ours())),
            "under_way_seconds": ("age of the oldest look that is under way", self._queue.under_way()),
        }
        return self._metrics.render(gauges)

    def faults(self) -> list[str]:
        """Return what is wrong now, one sentence each; empty when nothing is."""
        faults = []
        with self._lock:
            if not self._engine_here:
                faults.append(f"Docker at {self._engine.where} does not answer")
            if not self._registry_here:
                faults.append(f"the registry at {self._backend.where} does not answer")
            if self._denied:
                faults.append(f"{len(self._denied)} containers cannot be registered; the log says why")
        if self.hangs():
            faults.append(f"a look has been under way for {self._queue.under_way():.0f} s")
        return faults

    def hangs(self) -> bool:
        """True when something takes so long that only a new start will help."""
        return self._queue.under_way() > HANGS

    def _guard(self, target: Callable[[], None]) -> None:
        """Run a thread's work. One that broke would be missing unnoticed: all end with it."""
        try:
            target()
        except Exception as exc:  # noqa: BLE001 it is raised again by ``run``
            self._broken = exc
            self.stop()

    def idle(self) -> bool:
        """True when both sides are there and nothing is to do now."""
        return self._queue.idle()

    def _keep_time(self) -> None:
        """Call for resyncs and for new attempts at what was refused, until ``stop``."""
        interval = self._settings.resync_interval
        next_resync = self._clock() + interval
        heartbeat = self._settings.heartbeat_file
        while not self._stopping.wait(PROBE_INTERVAL):
            if heartbeat and not self.hangs():
                self._touch(Path(heartbeat))
            if interval and self._clock() >= next_resync:
                next_resync = self._clock() + interval
                self._queue.survey()
            with self._lock:
                probe = next(iter(self._denied), None)
            if probe is not None:
                self._queue.add(probe)

    def _touch(self, heartbeat: Path) -> None:
        try:
            heartbeat.touch()
        except OSError as exc:
            self._say("heartbeat file", logging.WARNING, f"cannot touch {heartbeat}: {exc.strerror}")

    def _beat(self) -> None:
        """Renew the checks that we keep, where a heartbeat was asked for (``-ttl``)."""
        if not self._settings.rules.heartbeat:
            return
        while not self._stopping.wait(self._settings.heartbeat_interval):
            for report in self._reporter.kept():
                if self._stopping.is_set():
                    return
                try:
                    self._reporter.renew(report.check_id)
                except UnknownResource:
                    if registration := self._picture.ours().get(report.service_id):
                        self._register_anew(container_of(registration), report.service_id)
                except DiscoveryError as exc:
                    self._say("heartbeat", logging.WARNING, f"cannot renew the heartbeat: {exc}", type(exc))
                    if not isinstance(exc, RegistryError):
                        break  # it is away, for the others too: each would wait for it in turn

    def _deregister_all(self) -> None:
        for registration in self._picture.ours().values():
            try:
                self._backend.deregister(registration.id)
            except DiscoveryError as exc:
                log.warning("cannot deregister %s: %s", registration.id, exc)
            else:
                log.info("deregistered %s (the registrar ends)", registration.id)

    # --- following Docker --------------------------------------------------------------------------------

    def _follow_engine(self) -> None:
        """Subscribe, have everything looked at, pass on events; again whenever the stream ends."""
        pauses = _Pauses()
        while not self._stopping.is_set():
            try:
                info = self._engine.connect()
                # A stop signal is told only once: what was told before we listened is told again. (And the
                # engine answers before it has subscribed us.)
                since = self._last_event_at or max(0, info.now - int(REPLAY * 1e9))
                events = self._engine.events(since)
            except SocketDeleted:
                raise  # ends the process: only its restart policy can mount the new socket
            except DiscoveryError as exc:
                self._say("engine", logging.WARNING, f"waiting for Docker: {exc}", type(exc))
                self._stopping.wait(pauses.next())
                continue
            with self._lock:
                self._events = events
            try:
                if self._stopping.is_set():
                    return  # ``stop`` may have come before there was a stream for it to close
                pauses.reset()
                self._say("engine", logging.INFO, f"watching Docker {info.version} at {self._engine.where}")
                self._engine_came(info)
                for event in events:
                    self._heard(event)
            finally:
                events.close()
                with self._lock:
                    self._events = None
                self._engine_went()
            if not self._stopping.is_set():
                self._say("engine", logging.WARNING, f"lost Docker at {self._engine.where}")
                self._stopping.wait(pauses.next())

    def _heard(self, event: Event) -> None:
        container = event.container
        self._metrics.count("events_total", action=event.action.partition(":")[0])
        with self._lock:
            self._last_event_at = max(self._last_event_at, event.at)
            if known := self._containers.get(container):
                known.fingerprint = None
            # What is replayed happened before we connected, maybe long before.
            age = max(0, self._engine_info.now - event.at) / 1e9 if self._engine_info else 0.0
            self._signals.heard(container, event.signal, event.at, self._clock() - age)
            self._unanswered.setdefault(container, event.at)
            dependent = [other for other, target in self._sharing.items() if target == container]
        for dirty in (container, *dependent):
            self._queue.add(dirty)

    def _engine_came(self, info: EngineInfo) -> None:
        with self._lock:
            self._engine_info = info
            self._engine_here = True
            for known in self._containers.values():
                known.fingerprint = None  # events may have been missed
            self._settle_host()
        self._open_gate()

    def _engine_went(self) -> None:
        with self._lock:
            self._engine_here = False
        self._open_gate()

    # --- following the registry --------------------------------------------------------------------------

    def _await_registry(self) -> None:
        """Obey ``-retry-attempts``, for those who ask to give up."""
        allowed = self._settings.retry_attempts
        attempt = 0
        while allowed is not None and not self._stopping.is_set():
            try:
                self._backend.agent()
                return
            except RegistryError:
                return  # it is there; what it refuses is explained when we are refused it
            except DiscoveryError as exc:
                if 0 <= allowed <= attempt:
                    raise GaveUp(f"gave up after {attempt + 1} attempts: {exc}") from exc
                self._say("registry", logging.WARNING, f"waiting for the registry: {exc}", type(exc))
            attempt += 1
            self._stopping.wait(self._settings.retry_interval)

    def _follow_registry(self) -> None:
        """Know whether the registry is there, and have everything looked at when it changed."""
        pauses = _Pauses()
        while not self._stopping.is_set():
            reader = self._backend.connect()
            with self._lock:
                self._reader = reader
            try:
                if not self._stopping.is_set():  # else ``stop`` saw no reader to interrupt
                    self._follow_agent(reader, pauses)
            except DiscoveryError as exc:
                if not self._stopping.is_set():
                    self._registry_went(exc)
            finally:
                with self._lock:
                    self._reader = None
                reader.close()
            self._stopping.wait(pauses.next())

    def _follow_agent(self, reader: Reader, pauses: _Pauses) -> None:
        """Hold a blocking read on the node's services until it breaks.

        The catalogue only says that something is not as we believe; what the agent really has, a survey
        asks itself. Our own writes come back here too, a moment before or after we note them: they are
        given ``SETTLE`` to agree before a survey is made of them.
        """
        try:
            agent = self._backend.agent()
            query = NodeServicesQuery(NodeName(agent.node))
            connection = reader.read(query).connection
        except AccessDenied as exc:
            self._say("access", logging.WARNING, f"the registry has to be polled: {exc}")
            self._poll(pauses)
            return
        self._registry_came(agent, pauses)
        doubts = 0
        while not self._stopping.is_set():
            # Without an index first: one of before a restart lies in the new count's future, and Consul
            # would hold the read until the count gets there (Consul: "Blocking Queries").
            reply = reader.read(query)
            if reply.connection != connection:
                # The agent went and came between two reads. If it came back empty, the catalogue shows that
                # only once the agent has told it, seconds later.
                connection = reply.connection
                self._registry_came(agent, pauses)
            if self._believed([(entry.id, entry.meta, entry.port) for entry in reply.value]):
                doubts = 0
                reader.read(query, index=max(1, reply.index), wait=WAIT)
            else:
                doubts += 1
                if doubts > 1 and (self._queue.idle() or doubts > PATIENCE):
                    self._queue.survey()
            # Not only in doubt: while a thousand are registered, reading all of them after each one would
            # take longer than registering them. A doubt that stays (an agent that may not tell its
            # servers, say) is looked into ever more rarely.
            self._stopping.wait(SETTLE * max(1, min(doubts, PATIENCE)))

    def _believed(self, rows: list[Row]) -> bool:
        with self._lock:
            wanted = frozenset[ServiceID]().union(*(known.refused for known in self._containers.values()))
        return not self._picture.differs_from(rows, wanted)

    def _poll(self, pauses: _Pauses) -> None:
        """Do without a blocking read, where an ACL keeps us from it."""
        while not self._stopping.is_set():
            self._backend.registered()
            with self._lock:
                here = self._registry_here
            if here:
                self._queue.survey()
            else:
                # Not every time: it forgets what was told, and every HEALTHCHECK would be told again.
                self._registry_came(None, pauses)
            self._stopping.wait(POLL_INTERVAL)

    def _registry_came(self, agent: AgentInfo | None, pauses: _Pauses) -> None:
        pauses.reset()
        who = f"agent {agent.node}, Consul {agent.version}, " if agent else ""
        self._say("registry", logging.INFO, f"connected to the registry: {who}{self._backend.where}")
        self._reporter.forget()  # an agent that was away may have restarted, and have lost it
        with self._lock:
            # It may have refused what it did because it was not well.
            denied = [] if self._registry_here else list(self._denied)
            self._agent = agent
            self._registry_here = True
            self._settle_host()
        for container in denied:
            self._queue.add(container)
        self._open_gate()

    def _registry_went(self, exc: DiscoveryError) -> None:
        self._say("registry", logging.WARNING, f"waiting for the registry: {exc}", type(exc))
        with self._lock:
            self._registry_here = False
        self._open_gate()

    # --- both --------------------------------------------------------------------------------------------

    def _settle_host(self) -> None:
        """Work out who we are. The caller holds the lock."""
        info = self._engine_info
        if info is None:
            return
        name = owner_name(self._settings.owner, self._hostname, info.name)
        address = self._agent.address if self._agent else ""
        host = Host(Owner(name, info.id), address)
        if host != self._host:
            self._host = host
            self._containers.clear()  # what was decided for the old one no longer holds

    def _open_gate(self) -> None:
        """Let work begin when both sides are there, a survey first; else keep it."""
        with self._lock:
            both = self._engine_here and self._registry_here
            info, agent = self._engine_info, self._agent
        if both:
            if info and agent and not self._settings.rules.ip:
                self._compare_hosts(info.name, agent)
            self._queue.survey()
        self._queue.open_gate(both)

    def _compare_hosts(self, docker_name: str, agent: AgentInfo) -> None:
        """Warn of an agent that seems to be another host's: it would answer with that host's address."""
        names = {name.partition(".")[0].lower() for name in (docker_name, agent.node) if name}
        if len(names) > 1:
            message = (
                f"the agent is node {agent.node} at {agent.address}, and Docker runs on {docker_name}: if "
                "these are two machines, clients go to the wrong one; use this host's agent, or give -ip"
            )
            self._say("hosts", logging.WARNING, message)

    def _work(self) -> None:
        """Do what the queue hands out, until it is closed."""
        while (task := self._queue.take()) is not None:
            try:
                if task == SURVEY:
                    self._survey()
                else:
                    self._pass(ContainerID(task))
                self._pass_pauses.reset()
            except DockerRefused as exc:
                # The engine is there, and this container is at fault: it alone is tried again and again.
                self._metrics.count("errors_total", side="docker")
                self._once(self._known(ContainerID(task)), logging.ERROR, str(exc))
                self._note_refused(ContainerID(task), refused=True)
            except DiscoveryError as exc:
                self._failed(task, exc)
            except Exception:
                if task == SURVEY:
                    raise
                # Our fault. It shall cost this container alone, and be seen.
                log.exception("cannot look at container %s", task[:12])
                self._note_refused(ContainerID(task), refused=True)
            finally:
                self._queue.done(task)

    def _failed(self, task: str, exc: DiscoveryError) -> None:
        """Try again later. The outcome of a write may be unknown, so a survey comes first."""
        side = "docker" if isinstance(exc, DockerUnavailable) else "registry"
        self._metrics.count("errors_total", side=side)
        pause = self._pass_pauses.next()
        if self._stopping.is_set():
            return
        if task != SURVEY:
            self._queue.add(ContainerID(task), after=pause)
        self._queue.survey(after=pause)
        self._queue.hold(pause)
        self._say("work", logging.WARNING, f"trying again: {exc}", type(exc))

    # --- the two kinds of work ---------------------------------------------------------------------------

    def _survey(self) -> None:
        """Look at everything, and mark what needs a pass."""
        with self._lock:
            host = self._host
        if host is None:
            return
        self._metrics.count("surveys_total")
        summaries = self._engine.list()
        self._picture.replace(self._backend.registered(), host.owner)
        self._said.pop("work", None)
        dirty: list[ContainerID] = []
        with self._lock:
            for summary in summaries:
                known = self._containers.setdefault(summary.id, _Known())
                if known.fingerprint != summary.fingerprint:
                    known.fingerprint = summary.fingerprint
                    dirty.append(summary.id)
                elif summary.id not in self._denied and not self._in_step(summary.id, known):
                    dirty.append(summary.id)
            listed = {summary.id for summary in summaries}
            gone = self._containers.keys() - listed
            leftover = self._picture.containers() - listed - gone
        for container in (*dirty, *gone, *leftover):
            self._queue.add(container)

    def _in_step(self, container: ContainerID, known: _Known) -> bool:
        desired = known.desired
        if desired is None or not self._picture.plan(container, desired).in_step:
            return False
        registered = {one.id for one in self._picture.of(container)}
        return not any(report.service_id in registered for report in self._reporter.due(desired.reports))

    def _pass(self, container_id: ContainerID) -> None:
        """Look at one container, and write what differs."""
        self._metrics.count("passes_total")
        with self._lock:
            event_at = self._unanswered.pop(container_id, None)
        container = self._look_at(container_id)
        with self._lock:
            host = self._host
            if host is None:
                return
            known = self._containers.setdefault(container_id, _Known())
            stopping, left = self._signals.ending(container, self._clock()) if container else ("", 0.0)
        if stopping and left < float("inf"):
            self._queue.add(container_id, after=left)
        desired: Desired | None = None
        if container is not None:
            desired = desire(
                container,
                self._settings.rules,
                host,
                stopping=stopping,
                previous=self._picture.of(container_id),
                now=self._wall_clock(),
            )
        plan = self._picture.plan(container_id, desired, claim=True)
        self._wait_for(container_id, known, {refusal.registration.id for refusal in plan.refusals})
        try:
            refused = self._apply(plan, _why_removed(desired), known)
        finally:
            for write in plan.writes:
                if self._picture.release(write.registration.id):
                    self._wake_those_who_want(write.registration.id)
        if not plan.in_step:
            self._count_writes(event_at)
        self._note_refused(container_id, refused)
        with self._lock:
            if container is None:
                if not refused:  # else what it left behind is still to be removed
                    self._forget(container_id)
            else:
                known.desired = desired
                self._sharing.pop(container_id, None)
                if container.network_of:
                    self._sharing[container_id] = container.network_of
        self._follow_up(container_id, desired, known, plan)

    def _count_writes(self, event_at: int | None) -> None:
        if event_at is None:
            self._metrics.count("drift_total")
        else:
            self._metrics.lag(max(0, self._wall_clock() - event_at) / 1e9)

    def _follow_up(
        self, container_id: ContainerID, desired: Desired | None, known: _Known, plan: Plan
    ) -> None:
        """Do what comes after the writes: tell the agent of our checks, and people of problems."""
        registered = {one.id for one in self._picture.of(container_id)}
        probes = desired.probes if desired else ()
        self._prober.set(container_id, [probe for probe in probes if probe.service_id in registered])
        if desired is None:
            return
        if desired.look_again is not None:
            self._queue.add(container_id, after=desired.look_again)
        for report in self._reporter.due(desired.reports):
            if report.service_id in registered:
                self._tell(container_id, report)
        for fault in (*desired.problems, *(f"not registered: {refusal}" for refusal in plan.refusals)):
            self._once(known, logging.WARNING, str(fault))

    def _tell(self, container_id: ContainerID, report: Report) -> None:
        try:
            self._reporter.tell(report)
        except UnknownResource:
            self._register_anew(container_id, report.service_id)

    def _register_anew(self, container_id: ContainerID, service_id: ServiceID) -> None:
        """Bring back a check that somebody removed alone, which the list of services does not show."""
        self._picture.doubt(service_id)
        self._queue.add(container_id)

    def _probed(self, probe: Probe, report: Report) -> None:
        """Take the result of a command; called in the prober's threads."""
        try:
            self._tell(probe.container, report)
        except DiscoveryError as exc:
            self._say("probes", logging.WARNING, f"cannot report {probe.check_id}: {exc}", type(exc))

    def _look_at(self, container_id: ContainerID) -> Container | None:
        """Inspect a container; None when it is gone.

        One that has just been sent its last signal is not inspected: Docker answers only when it has
        taken the container's network down, 0.1 s later, and until then clients would be sent to it.
        What was known before will do to take it out; a moment later it is looked at again.
        """
        with self._lock:
            known = self._containers.get(container_id)
            before = known.desired.container if known and known.desired else None
            if self._signals.just_sent(container_id) and before:
                stopping, _ = self._signals.ending(before, self._clock())
                if stopping:
                    self._queue.add(container_id, after=SETTLE)
                    return before
        return self._engine.inspect(container_id)

    def _apply(self, plan: Plan, why: str, known: _Known) -> bool:
        """Write *plan*: first what is new, so that a renamed service is never missing, then removals.

        Returns:
            True when the registry refused something. That is the fault of one registration (or of the
            policy on its name), and the others are not to suffer from it.

        Raises:
            DiscoveryError: the registry cannot be written to now.
        """
        refused = False
        for write in plan.writes:
            service_id = write.registration.id
            new = not write.changes
            if self._accepted(lambda: self._backend.register(write.registration, new=new), service_id, known):  # noqa: B023
                self._picture.registered(write.registration)
                self._metrics.count("writes_total", kind="register")
                self._reporter.forget(service_id)
                log.info("%s", self._told_of(write))
            else:
                refused = True
        for removal in plan.removals:
            service_id = removal.registration.id
            if self._accepted(lambda: self._backend.deregister(service_id), service_id, known):  # noqa: B023
                self._picture.deregistered(service_id)
                self._metrics.count("writes_total", kind="deregister")
                self._reporter.forget(service_id)
                log.info("deregistered %s (%s)", service_id, why)
                self._wake_those_who_want(service_id)
            else:
                refused = True
        return refused

    def _accepted(self, call: Callable[[], None], service_id: ServiceID, known: _Known) -> bool:
        try:
            call()
        except RegistryOverloaded:
            raise
        except RegistryError as exc:
            self._metrics.count("refused_total")
            self._once(known, logging.ERROR, f"the registry refuses {service_id}: {exc}")
            return False
        return True

    def _wait_for(self, container_id: ContainerID, known: _Known, ids: Collection[ServiceID]) -> None:
        """Have the container looked at again when one of *ids*, which others have, is free."""
        with self._lock:
            known.refused = frozenset(ids)
        # One that went free since the plan was made woke nobody.
        if not all(map(self._picture.has, ids)):
            self._queue.add(container_id)

    def _wake_those_who_want(self, service_id: ServiceID) -> None:
        with self._lock:
            waiting = [key for key, known in self._containers.items() if service_id in known.refused]
        for container in waiting:
            self._queue.add(container)

    def _note_refused(self, container: ContainerID, refused: bool) -> None:
        """Remember what to try again; when one of them passes, the others may pass too."""
        with self._lock:
            was = container in self._denied
            self._denied.pop(container, None)
            if refused:
                self._denied[container] = None
                return
            if not was:
                return
            others = list(self._denied)
        for other in others:
            self._queue.add(other)

    def _known(self, container: ContainerID) -> _Known:
        with self._lock:
            return self._containers.setdefault(container, _Known())

    def _forget(self, container: ContainerID) -> None:
        """Drop all that is remembered of a container that is gone. The caller holds the lock."""
        self._containers.pop(container, None)
        self._signals.forget(container)
        self._unanswered.pop(container, None)
        self._sharing.pop(container, None)
        self._denied.pop(container, None)

    # --- saying it ---------------------------------------------------------------------------------------

    def _told_of(self, write: Write) -> str:
        registration = write.registration
        if write.changes:
            return f"changed {registration.id}: {', '.join(write.changes)}"
        with self._lock:
            host = self._host
        address = registration.address or (host.node_address if host else "")
        return f"registered {registration.id} as {registration.name} at {address}:{registration.port}"

    def _say(self, about: str, level: int, message: str, kind: object = None) -> None:
        """Log *message* unless the last thing said *about* this was of the same *kind*.

        An outage changes its words (refused, reset, timed out) and stays the same outage.
        """
        kind = kind or message
        with self._lock:
            if self._said.get(about) == kind:
                return
            self._said[about] = kind
        log.log(level, "%s", message)

    def _once(self, known: _Known, level: int, message: str) -> None:
        """Log *message* once in the life of a container."""
        if message not in known.told:
            known.told.add(message)
            log.log(level, "%s", message)


def _why_removed(desired: Desired | None) -> str:
    if desired is None:
        return "the container is gone"
    unregistered = (decision.reason for decision in desired.decisions if decision.registration is None)
    return next(unregistered, "it is registered otherwise now")
