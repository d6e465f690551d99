"""The Consul backend: a catalogue and a registry over one agent's HTTP API."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from discovery.backends import AgentInfo
from discovery.backends.consul import codec
from discovery.backends.consul.codec import path_segment, request
from discovery.backends.consul.transport import Connection, HTTPReply, Pool
from discovery.config import Config, ConsulConfig
from discovery.errors import AccessDenied, RegistryUnavailable, UnknownResource
from discovery.model import (
    SERVICE_MAINTENANCE,
    CheckID,
    PreparedQuery,
    PreparedResult,
    Query,
    Registration,
    Reply,
    ServiceID,
    Source,
    Status,
)

__all__ = ["Consul", "from_uri"]

_WRITE_TIMEOUT: Final = 5.0
"""Seconds. A write is local to the agent; and a process that ends waits this long for one that hangs."""


class Consul:
    """One Consul agent; a ``Backend``. Creating it does no I/O; it may be used from any thread."""

    source: Source = "http"

    def __init__(self, config: ConsulConfig) -> None:
        self.config = config
        self._pool = Pool(config)

    @property
    def where(self) -> str:
        return self.config.url

    def __repr__(self) -> str:
        return f"<Consul {self.where}>"

    # --- Catalogue

    def connect(self) -> ConsulReader:
        return ConsulReader(self.config)

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        call = functools.partial(self._pool.call, timeout=timeout)
        if isinstance(query, PreparedQuery):
            return _execute(query, call, self.where)
        return _reply(query, call(codec.query_request(query)), self.where)

    # --- Registry

    def register(self, registration: Registration, *, new: bool = False) -> None:
        body = codec.registration_to_json(registration)
        present = frozenset[CheckID]() if new else self._checks_of(registration.id)
        maintenance = CheckID(SERVICE_MAINTENANCE + registration.id)
        if maintenance not in present:
            # replace-existing-checks: without it a check that the new registration no longer has stays
            # behind for ever and keeps the instance critical.
            self._write("agent/service/register", body=body, replace_existing_checks="true")
            return
        # With it the agent drops the maintenance mode too (1.8.7 and 1.20.6 do), and clients would be sent to
        # an instance that an operator has taken out. As long as that stands, nobody misses the old checks:
        # they go first, so that an attempt that fails in between is simply made again.
        for check_id in present - codec.check_ids(registration) - {maintenance}:
            with contextlib.suppress(UnknownResource):
                self._write(f"agent/check/deregister/{path_segment(check_id)}")
        self._write("agent/service/register", body=body)

    def deregister(self, service_id: ServiceID) -> None:
        try:
            self._write(f"agent/service/deregister/{path_segment(service_id)}")
        except UnknownResource:
            pass  # Consul 1.8 answers 200 for an unknown id, newer releases 404: it is gone either way

    def registered(self) -> Mapping[ServiceID, Registration]:
        raw = self._pool.call(request("GET", "agent/services"), timeout=_WRITE_TIMEOUT).raw
        try:
            rows = [codec.registration_from_json(row) for row in (raw or {}).values()]
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise _malformed(self.where, "/v1/agent/services", exc) from exc
        return {row.id: row for row in rows}

    def _checks_of(self, service_id: ServiceID) -> frozenset[CheckID]:
        raw = self._pool.call(request("GET", "agent/checks"), timeout=_WRITE_TIMEOUT).raw
        try:
            return frozenset(
                CheckID(key) for key, row in (raw or {}).items() if row["ServiceID"] == service_id
            )
        except (AttributeError, KeyError, TypeError) as exc:
            raise _malformed(self.where, "/v1/agent/checks", exc) from exc

    def update_check(self, check_id: CheckID, status: Status, output: str = "") -> None:
        self._write(f"agent/check/update/{path_segment(check_id)}", body={"Status": status, "Output": output})

    def maintenance(self, service_id: ServiceID, enable: bool, reason: str = "") -> None:
        self._write(
            f"agent/service/maintenance/{path_segment(service_id)}",
            enable="true" if enable else "false",
            reason=reason or None,
        )

    def agent(self) -> AgentInfo:
        raw = self._pool.call(request("GET", "agent/self"), timeout=_WRITE_TIMEOUT).raw
        try:
            config, member = raw["Config"], raw.get("Member") or {}
            return AgentInfo(
                node=config["NodeName"],
                dc=config["Datacenter"],
                version=config.get("Version") or "",
                address=member.get("Addr") or "",
            )
        except (AttributeError, KeyError, TypeError) as exc:
            raise _malformed(self.where, "/v1/agent/self", exc) from exc

    def close(self) -> None:
        self._pool.close()

    def _write(self, path: str, *, body: Any = None, **params: str | None) -> None:
        self._pool.call(request("PUT", path, body=body, **params), timeout=_WRITE_TIMEOUT)


class ConsulReader:
    """Blocking queries on a connection of their own."""

    def __init__(self, config: ConsulConfig) -> None:
        self._connection = Connection(config)
        self._where = config.url

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        if isinstance(query, PreparedQuery):
            return _execute(query, functools.partial(self._connection.call, timeout=timeout), self._where)
        asked = codec.query_request(query, index=index, wait=wait)
        # Consul adds up to wait/16 of jitter to what it was asked to wait (Consul: "Blocking Queries").
        patience = timeout if not index else wait + wait / 16 + timeout
        # To an agent that was restarted meanwhile, our index may lie in the future: it would hold the read
        # until its own count gets there, and we would not see what it forgot (Consul: "Blocking Queries").
        anew = (codec.query_request(query), timeout) if index else None
        reply = _reply(query, self._connection.call(asked, timeout=patience, anew=anew), self._where)
        return replace(reply, connection=self._connection.opened)

    def interrupt(self) -> None:
        self._connection.interrupt()

    def close(self) -> None:
        self._connection.close()


def from_uri(uri: str, config: Config) -> Consul:
    """Return the agent at *uri* (``consul://host:port``, ``consul-tls://``, ``consul-unix:///path``).

    Tokens and certificates come from *config*; a URI without a host leaves the address to it too.
    """
    _scheme, _, rest = uri.partition("://")
    consul = config.consul if not rest.strip("/") else config.consul.at(uri, origin="the registry URI")
    return Consul(replace(consul, explicit=True))


def _execute(query: PreparedQuery, call: Callable[[codec.Request], HTTPReply], where: str) -> Reply:
    """Execute *query*, and see whether the order of what it finds means anything: the result does not say."""
    try:
        reply = _reply(query, call(codec.query_request(query)), where)
    except UnknownResource:
        return Reply(PreparedResult(), 0)  # an answer: there is no such query, or not any more
    result: PreparedResult = reply.value
    if len(result.entries) > 1:
        try:
            ordered = codec.is_ordered(call(codec.definition_request(query)).raw)
        except (AccessDenied, UnknownResource):
            ordered = True  # a token may execute what it may not read; an order kept in vain harms least
        except (KeyError, TypeError) as exc:
            raise _malformed(where, codec.definition_request(query).target.partition("?")[0], exc) from exc
        reply = replace(reply, value=replace(result, ordered=ordered))
    return reply


def _reply(query: Query, reply: HTTPReply, where: str) -> Reply:
    headers = reply.headers
    asked = codec.query_request(query).target.partition("?")[0]
    # Consul's streaming backend is the default of blocking queries on health since 1.10.
    streaming = headers.get("X-Consul-Query-Backend") == "streaming"
    try:
        read = Reply(
            value=codec.query_value(query, reply.raw),
            index=int(headers.get("X-Consul-Index") or 0),
            # Streaming always says that there is no leader.
            known_leader=streaming or headers.get("X-Consul-KnownLeader", "true") == "true",
            last_contact=int(headers.get("X-Consul-LastContact") or 0) / 1000,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _malformed(where, asked, exc) from exc
    if streaming and read.index <= 1:
        # The wait was over before the servers had sent anything (they are away, or have just thrown out the
        # stream): not an empty answer, none at all. To believe it would take every instance away.
        raise RegistryUnavailable(f"{where} had nothing from its servers to answer {asked} with")
    return read


def _malformed(where: str, asked: str, exc: Exception) -> RegistryUnavailable:
    detail = f"{type(exc).__name__}: {exc}"
    return RegistryUnavailable(
        f"{where} answered {asked} with JSON that is not of Consul's form ({detail}); is that a Consul agent?"
    )
