"""What metrics and spans say about requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest

from discovery import Client, Snapshot
from discovery.integrations import opentelemetry, prometheus
from discovery.integrations.requests import Session
from discovery.observe import Attempt, observe
from tests.discovery.integrations.fleet import Fleet, Server
from tests.tools import free_port, wait_until

URL = "http://web.service.consul"


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with Session(client=client) as session:
        yield session


def test_prometheus_counts_attempts_retries_and_instances(
    session: Session, fleet: Fleet, servers: list[Server]
) -> None:
    registry = CollectorRegistry()
    uninstall = prometheus.install(registry)
    try:
        fleet.register(free_port())
        for _ in range(8):
            session.get(f"{URL}/", timeout=5)
        labels = {"service": "web", "library": "requests"}
        value = registry.get_sample_value
        assert value("discovery_attempt_seconds_count", {**labels, "outcome": "ok"}) == 8
        failed = value("discovery_attempt_seconds_count", {**labels, "outcome": "failed"})
        assert failed is not None and failed >= 2
        assert value("discovery_retries_total", labels) == failed
        assert value("discovery_instances", {"service": "web"}) == 4
        assert value("discovery_stale", {"service": "web"}) == 0
        fleet.deregister(servers[0].port)
        wait_until(lambda: value("discovery_instances", {"service": "web"}) == 3)
    finally:
        uninstall()
    assert generate_latest(registry) == b""
    session.get(f"{URL}/", timeout=5)
    assert generate_latest(registry) == b""


def test_opentelemetry_records_attempts_and_marks_the_span(
    session: Session, fleet: Fleet, servers: list[Server]
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    end = opentelemetry.install(provider)
    try:
        fleet.register(free_port())
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("page") as span:
            for _ in range(4):
                session.get(f"{URL}/", timeout=5)
        data = reader.get_metrics_data()
        assert data is not None
        metrics = {
            metric.name: metric.data.data_points
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
    finally:
        end()
        provider.shutdown()
    by_error = {
        (point.attributes or {}).get("error.type"): point.count
        for point in metrics["discovery.attempt.duration"]
    }
    assert by_error == {None: 4, "ConnectionError": 1}
    assert [point.value for point in metrics["discovery.instances"]] == [4]
    events = [event for event in span.events if event.name == "discovery.attempt"]
    assert len(events) == 5
    assert {event.attributes["network.peer.port"] for event in events} > {s.port for s in servers}
    assert {event.attributes["discovery.attempt.number"] for event in events} == {1, 2}


def test_an_observer_that_fails_is_logged_and_nobody_else_notices(
    session: Session, servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def attempted(self, attempt: Attempt) -> None:
            raise ValueError("mine")

        def changed(self, snapshot: Snapshot) -> None:
            raise ValueError("mine too")

    end = observe(Broken())
    try:
        with caplog.at_level(logging.ERROR, "discovery"):
            assert session.get(f"{URL}/", timeout=5).ok
    finally:
        end()
    assert caplog.text.count("ValueError: mine") == 2
