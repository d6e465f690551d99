"""An agent under test and what is asked of it, over plain HTTP."""

from __future__ import annotations

import functools
import http.client
import json
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

__all__ = ["Answer", "Blocked", "Subject"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: http.client.HTTPMessage
    text: str
    elapsed: float  # seconds

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def index(self) -> int:
        return int(self.headers["X-Consul-Index"])


class Subject:
    """An agent under test: the embedded one, or a real one."""

    def __init__(self, kind: str, host: str, port: int, version: tuple[int, int]) -> None:
        self.kind = kind
        self.host = host
        self.port = port
        self.version = version

    def __repr__(self) -> str:
        return f"<{self.kind} {self.version}>"

    @property
    def is_embedded(self) -> bool:
        return self.kind == "embedded"

    @property
    def uri(self) -> str:
        return f"consul://{self.host}:{self.port}"

    def by_release(self, *, consul_1_8: _T, current: _T) -> _T:
        """What this agent answers, of two; seen with 1.8.7 and 1.20.6."""
        return consul_1_8 if self.version < (1, 11) else current

    def ask(self, method: str, target: str, body: Any = None, *, timeout: float = 10.0) -> Answer:
        """One request on a connection of its own; `body` is JSON to be, or bytes as they are."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        started = time.monotonic()
        try:
            connection.request(method, target, raw)
            response = connection.getresponse()
            text = response.read().decode()
            return Answer(response.status, response.headers, text, time.monotonic() - started)
        finally:
            connection.close()

    def get(self, target: str) -> Any:
        """The JSON of a read that succeeds."""
        answer = self.ask("GET", target)
        assert answer.status == 200, (target, answer)
        return answer.json

    def put(self, target: str, body: Any = None) -> None:
        """A write that succeeds."""
        answer = self.ask("PUT", target, body)
        assert answer.status == 200, (target, body, answer)

    def register(self, name: str, **fields: Any) -> None:
        self.put("/v1/agent/service/register", {"Name": name, **fields})

    def deregister(self, service_id: str) -> None:
        self.put(f"/v1/agent/service/deregister/{quote(service_id, safe='')}")

    def check(self, check_id: str) -> dict[str, Any]:
        """The agent's own view of one check."""
        found: dict[str, Any] = self.get("/v1/agent/checks")[check_id]
        return found

    def node(self) -> str:
        return _node_name(self.host, self.port)

    def index(self, target: str) -> int:
        return self.ask("GET", target).index


@functools.cache
def _node_name(host: str, port: int) -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/v1/agent/self") as response:
        name: str = json.load(response)["Config"]["NodeName"]
    return name


class Blocked:
    """A blocking read under way in a thread."""

    def __init__(self, agent: Subject, target: str, *, wait: str, index: int | None = None) -> None:
        self._agent = agent
        index = agent.index(target) if index is None else index
        self._target = f"{target}{'&' if '?' in target else '?'}index={index}&wait={wait}"
        self._answer: Answer | None = None
        self._error: OSError | http.client.HTTPException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._agent.ask("GET", self._target, timeout=30.0)
        except (OSError, http.client.HTTPException) as exc:
            self._error = exc

    def answer(self) -> Answer:
        """Wait for it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()
