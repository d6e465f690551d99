"""The Docker engine, through its SDK: who it is, what runs, and what happens there.

Laws:
- The SDK's errors end here, as ``DockerUnavailable``.
- ``EventStream`` is read by one thread; ``close`` may be called by any, at any time, also before the first
  read.
- Only ``Type``, ``Action`` and ``Actor`` of an event are read: API 1.52 removed the rest.
- Podman is asked through its Docker API, and differs: it makes itself a new id for every request, and its
  ``kill`` events do not tell the signal.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import docker
import docker.errors
import requests
import urllib3.exceptions
from docker.utils import kwargs_from_env

from discovery.errors import ConfigurationError, DiscoveryError
from registrar.containers import Container, ContainerID, Summary, nanoseconds, signal_number

__all__ = [
    "Docker",
    "DockerRefused",
    "DockerUnavailable",
    "EngineInfo",
    "Event",
    "EventStream",
    "SocketDeleted",
]

_SOCKETS: Final = ("/var/run/docker.sock", "/tmp/docker.sock")  # noqa: S108 where Registrator's users mount it
_REQUEST_TIMEOUT: Final = 10.0  # s; an engine that takes longer for one container is as good as away
_KNOCK_TIMEOUT: Final = 2.0  # s
_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, seconds and a number: a host that vanished is noticed after 25 s. Not every system has all."""
_MAX_OUTPUT: Final = 4096  # octets of a command's output; Consul keeps no more
_MAX_JOINS: Final = 8
"""Containers in each other's network that are followed; Docker itself allows no circle, Podman may."""

_FAILURES: Final = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,  # an answer that is no JSON: something else listens there
)


class DockerUnavailable(DiscoveryError, ConnectionError):
    """The Docker engine could not be asked, broke off, or refused."""


class DockerRefused(DockerUnavailable):
    """The engine answered, with a fault of its own in the one container that was asked for."""


class SocketDeleted(DockerUnavailable):
    """The engine's socket is gone for good: no waiting brings it back to this process.

    A container that has the socket mounted keeps the very file. An engine that starts again (with
    ``--live-restore`` its containers run on meanwhile) deletes it and makes a new one, which is mounted only
    when the container is started again.
    """


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who the engine is."""

    id: str
    """Stays the same for the life of its data; empty where the engine has none (Podman)."""
    name: str
    """The host's name, as Docker knows it."""
    version: str
    now: int
    """Nanoseconds on the engine's clock, from which its events can be replayed; 0: it does not tell."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a container."""

    container: ContainerID
    action: str
    """``start``, ``die``, ``kill``, ``health_status: healthy``, ``connect`` ..."""
    at: int
    """Nanoseconds on the engine's clock."""
    signal: int | None = None
    """With ``kill``: the signal that was sent."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Event | None:
        """Read one element of ``/events``; None for one that is about no container."""
        raw_actor = raw.get("Actor") or {}
        attributes = raw_actor.get("Attributes") or {}
        # A network's connect and disconnect name the container among their attributes.
        container = raw_actor.get("ID") if raw.get("Type") == "container" else attributes.get("container")
        if not container:
            return None
        raw_signal = attributes.get("signal")
        return cls(
            container=ContainerID(container),
            action=raw.get("Action") or "",
            at=int(raw.get("timeNano") or 0),
            signal=None if raw_signal is None else signal_number(str(raw_signal)),
        )


class EventStream:
    """What happens from now on, until the engine goes away or ``close`` is called."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._lock = threading.Lock()
        self._closed = False
        self._read = False

    def __iter__(self) -> Iterator[Event]:
        """Yield events; ends when the stream does, for whatever reason."""
        with self._lock:
            if self._closed:
                return
            self._read = True
        rest = b""
        try:
            for chunk in self._response.iter_content(chunk_size=None):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip() and (event := Event.from_json(json.loads(line))):
                        yield event
        except _FAILURES:
            pass  # the same as its end: whoever reads now looks at the whole again
        finally:
            self._response.close()

    def close(self) -> None:
        """End the stream; the thread that reads it returns at once. Idempotent."""
        with self._lock:
            self._closed = True
            # Closing what another thread reads from would free its file descriptor under it.
            if self._read:
                with contextlib.suppress(*_FAILURES):
                    self._response.raw.shutdown()
            else:
                self._response.close()


class Docker:
    """One engine."""

    def __init__(self, env: Mapping[str, str] | None = None, *, timeout: float = _REQUEST_TIMEOUT) -> None:
        """Only note where the engine is; ``connect`` finds out whether it is there.

        Args:
            env: DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH; None for the process's own. Without
                DOCKER_HOST: /var/run/docker.sock, else /tmp/docker.sock.
            timeout: seconds for one request.
        """
        self._env = dict(os.environ if env is None else env)
        self._timeout = timeout
        self._client: docker.APIClient | None = None
        self._direct: _Direct | None = None
        self._executing_lock = threading.Lock()
        self._executing: set[requests.Response] = set()
        self._cancelled = False

    @property
    def where(self) -> str:
        """The engine's address, for people."""
        return self._env.get("DOCKER_HOST") or _default_socket()

    def connect(self) -> EngineInfo:
        """Open a connection, in place of the one before, and ask who is there.

        Raises:
            DockerUnavailable: nobody answers.
            SocketDeleted: nobody will ever answer here again.
            ConfigurationError: DOCKER_HOST or DOCKER_CERT_PATH cannot be used.
        """
        self.close()
        try:
            options = kwargs_from_env(environment=self._env)
        except docker.errors.TLSParameterError as exc:
            raise ConfigurationError(f"cannot use Docker's TLS variables: {exc}") from exc
        options.setdefault("base_url", self.where)
        try:
            with self._translated():
                _knock(self.where)
        except DockerUnavailable as exc:
            if isinstance(exc.__cause__, ConnectionRefusedError) and _is_deleted(self.where):
                raise SocketDeleted(
                    f"nobody listens at {self.where}, and the file was deleted: Docker makes a new one, "
                    "which only a new start of this container will mount (docker run --restart always)"
                ) from exc
            raise
        with self._translated():
            self._client = client = _Client(version="auto", timeout=int(self._timeout), **options)
            self._direct = _Direct(client, self._timeout)
            raw = client.info()
            components = {component.get("Name") for component in client.version().get("Components") or ()}
        return EngineInfo(
            # Podman's id is random with every answer: with it as a part of the owner, the next connection
            # would find everything of the one before to be somebody else's.
            id="" if "Podman Engine" in components else raw.get("ID") or "",
            name=raw.get("Name") or "",
            version=raw.get("ServerVersion") or "",
            now=nanoseconds(raw.get("SystemTime") or ""),
        )

    def events(self, since: int) -> EventStream:
        """Subscribe.

        Args:
            since: nanoseconds on the engine's clock. The engine answers before it has subscribed us; only
                a replay from a moment before that closes the gap. It replays at most 256 events.

        Raises:
            DockerUnavailable: nobody answers.
        """
        client = self._connected()
        params = {"filters": json.dumps({"type": ["container", "network"]}), "since": _timestamp(since)}
        url = f"{client.base_url}/v{client.api_version}/events"
        # Not the SDK's ``events``: its stream leaves the socket open when the engine goes away.
        with self._translated():
            response = client.get(url, params=params, stream=True, timeout=(self._timeout, None))
            if not response.ok:
                response.close()
                response.raise_for_status()
            _keep_alive(response)
        return EventStream(response)

    def list(self) -> tuple[Summary, ...]:
        """Return every container, whether it runs or not.

        Raises:
            DockerUnavailable: nobody answers.
        """
        client = self._connected()
        with self._translated():
            return tuple(Summary.from_json(raw) for raw in client.containers(all=True))

    def inspect(self, container: str) -> Container | None:
        """Return one container, joined with the one whose network it shares; None when it is gone.

        Raises:
            DockerUnavailable: nobody answers.
        """
        found = self._inspect(container)
        if found is None:
            return None
        target = found
        for _ in range(_MAX_JOINS):
            if not target.shared_network:
                break
            other = self._inspect(target.shared_network)
            if other is None:
                return found
            target = other
        return found.joined(target) if target is not found else found

    def execute(
        self, container: ContainerID, args: tuple[str, ...], timeout: float
    ) -> tuple[int | None, str]:
        """Run a command inside a container.

        Docker cannot end a command: one that takes too long is only no longer waited for.

        Returns:
            The exit code, None when it took longer than *timeout* seconds, and the output's beginning.

        Raises:
            DockerUnavailable: Docker is away, or does not run it: no such container, no such program.
        """
        client = self._connected()
        deadline = time.monotonic() + timeout
        output = b""
        with self._translated():
            made = client.exec_create(container, list(args), tty=True)["Id"]
            url = f"{client.base_url}/v{client.api_version}/exec/{made}/start"
            # With a terminal the output comes as it is, without the framing of two streams.
            body = {"Detach": False, "Tty": True}
            with client.post(url, json=body, stream=True, timeout=(self._timeout, timeout)) as response:
                response.raise_for_status()
                with self._cancellable(response):
                    try:
                        while chunk := response.raw.read1(_MAX_OUTPUT):
                            output = (output + chunk)[:_MAX_OUTPUT]
                            if time.monotonic() >= deadline:
                                return None, output.decode(errors="replace")
                    except urllib3.exceptions.ReadTimeoutError:
                        return None, output.decode(errors="replace")
            code = client.exec_inspect(made)["ExitCode"]
        return code, output.decode(errors="replace")

    def cancel(self) -> None:
        """Make every ``execute`` under way, and every later one, fail now."""
        with self._executing_lock:
            self._cancelled = True
            for response in self._executing:
                response.raw.shutdown()

    @contextlib.contextmanager
    def _cancellable(self, response: requests.Response) -> Iterator[None]:
        with self._executing_lock:
            if self._cancelled:
                raise OSError("cancelled")
            self._executing.add(response)
        try:
            yield
        finally:
            with self._executing_lock:
                self._executing.discard(response)

    def close(self) -> None:
        """Close every connection but those of event streams; idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = self._direct = None

    def _inspect(self, container: str) -> Container | None:
        direct = self._direct
        if direct is None:
            raise self._not_connected()
        with self._translated():
            raw = direct.get(f"containers/{quote(container, safe='')}/json")
        return None if raw is None else Container.from_json(raw)

    def _connected(self) -> docker.APIClient:
        if self._client is None:
            raise self._not_connected()
        return self._client

    def _not_connected(self) -> DockerUnavailable:
        return DockerUnavailable(f"not connected to Docker at {self.where}")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as exc:
            raise DockerUnavailable(f"Docker at {self.where} refuses: {exc.explanation or exc}") from exc
        except _Refusal as exc:
            raise DockerRefused(f"Docker at {self.where} cannot tell: {exc}") from exc
        except _FAILURES as exc:
            # The SDK wraps the operating system's words several times; the innermost are for people.
            cause: BaseException = exc
            while cause.__context__ is not None:
                cause = cause.__context__
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
            raise DockerUnavailable(
                f"cannot ask Docker at {self.where}: {reason}; "
                "is it running, and may this process use its socket?"
            ) from exc


class _Client(docker.APIClient):
    """The SDK's client, which believes whom DOCKER_CERT_PATH names."""

    def merge_environment_settings(self, *args: Any, **kwargs: Any) -> Any:
        # requests would believe REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE before them, which are set for others.
        merged = super().merge_environment_settings(*args, **kwargs)
        if self.verify is not True:
            merged["verify"] = self.verify
        return merged


class _Refusal(Exception):
    """An answer that is neither what was asked for nor that it is gone."""


class _Direct:
    """Asks on the SDK's own connections, past the SDK and requests.

    Those cost 0.9 ms of processor time for each call, eight times what the call itself does: with a thousand
    containers to inspect, that is most of the time to the first registration of the last.
    """

    def __init__(self, client: docker.APIClient, timeout: float) -> None:
        url = f"{client.base_url}/v{client.api_version}/"
        request = client.prepare_request(requests.Request("GET", url))
        # What the SDK's own calls do with verify, cert and the environment's proxies.
        given: Any = client.merge_environment_settings(url, {}, False, None, None)
        adapter: Any = client.get_adapter(url)
        verify, proxies, cert = given["verify"], given["proxies"], given["cert"]
        self._pool = adapter.get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        self._target = adapter.request_url(request, proxies)
        self._headers = dict(request.headers)
        self._timeout = timeout

    def get(self, path: str) -> Any:
        """Return the JSON at *path*, or None where there is no such thing."""
        target = self._target + path
        reply = self._pool.urlopen(
            "GET", target, headers=self._headers, timeout=self._timeout, retries=False, redirect=False
        )
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        if reply.status != HTTPStatus.OK:
            said = reply.data.decode(errors="replace").strip()
            raise _Refusal(f"it answered GET /{path} with HTTP {reply.status}: {said}")
        return json.loads(reply.data)


def _keep_alive(response: requests.Response) -> None:
    """Have the system notice that the host of a stream has vanished; it matters over TCP only.

    A stream is read without a limit of time, for nothing may happen for days. A host that loses its power
    or its network says no farewell either, and the stream would stay silent for ever.
    """
    if response.raw.closed:
        return
    sock = socket.socket(fileno=response.raw.fileno())
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if option := getattr(socket, name, None):
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
    finally:
        sock.detach()  # it is the response's to close


def _knock(where: str) -> None:
    """Raise OSError where nobody listens at a unix socket: the SDK leaves a socket open then."""
    if path := _socket_path(where):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_KNOCK_TIMEOUT)
            sock.connect(path)


def _is_deleted(where: str) -> bool:
    """True when the socket is in no directory any more, and only a mount still leads to it."""
    try:
        return bool(path := _socket_path(where)) and Path(path).stat().st_nlink == 0
    except OSError:
        return False  # no such file here: one may come


def _socket_path(where: str) -> str:
    scheme, _, path = where.partition("://")
    return f"/{path.lstrip('/')}" if scheme in ("unix", "http+unix") else ""


def _default_socket() -> str:
    path = next((path for path in _SOCKETS if Path(path).exists()), _SOCKETS[0])
    return f"unix://{path}"


def _timestamp(at: int) -> str:
    """Write a time as the engine takes it; empty for none."""
    return f"{at // 1_000_000_000}.{at % 1_000_000_000:09}" if at else ""
