from __future__ import annotations

import http.client
import logging
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from discovery.errors import ConfigurationError
from registrar.metrics import Metrics
from registrar.monitor import Monitor
from tests.tools import wait_until


class Watched:
    def __init__(self) -> None:
        self.wrong: list[str] = []

    def metrics(self) -> str:
        return "up 1\n"

    def faults(self) -> list[str]:
        return self.wrong


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def monitor(watched: Watched) -> Iterator[Monitor]:
    with Monitor(watched, "127.0.0.1", 0) as monitor:
        yield monitor


def get(monitor: Monitor, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor.port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_metrics_are_served(monitor: Monitor) -> None:
    assert get(monitor, "/metrics") == (200, "up 1\n")
    assert get(monitor, "/metrics?x=y") == (200, "up 1\n")


def test_health_is_one_line_for_each_fault(monitor: Monitor, watched: Watched) -> None:
    assert get(monitor, "/healthz") == (200, "ok\n")
    watched.wrong = ["Docker is away", "the registry is away"]
    assert get(monitor, "/healthz") == (503, "Docker is away\nthe registry is away\n")


def test_a_client_that_resets_its_connection_is_only_noted(
    monitor: Monitor, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "registrar")
    with socket.create_connection(("127.0.0.1", monitor.port)) as client:
        # To close it then sends RST (socket(7), SO_LINGER).
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: [record for record in caplog.records if "monitor: lost" in record.message])
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert capfd.readouterr().err == ""
    assert get(monitor, "/healthz") == (200, "ok\n")


def test_an_error_of_our_own_is_seen(
    monitor: Monitor, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.wrong = None  # type: ignore[assignment]
    with pytest.raises(http.client.RemoteDisconnected):
        get(monitor, "/healthz")
    wait_until(lambda: "monitor: cannot answer" in caplog.text)
    assert "TypeError" in caplog.text


def test_there_is_nothing_else(monitor: Monitor) -> None:
    assert get(monitor, "/")[0] == 404


def test_an_address_that_cannot_be_had_is_said_before_anything_runs(
    monitor: Monitor, watched: Watched
) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot listen on 127.0.0.1:{monitor.port} for --metrics"):
        Monitor(watched, "127.0.0.1", monitor.port)


def test_counters_histogram_and_gauges_have_prometheus_form() -> None:
    metrics = Metrics()
    metrics.count("events_total", action="start")
    metrics.count("events_total", action="start")
    metrics.count("events_total", action="die")
    metrics.lag(0.004)
    metrics.lag(0.3)
    metrics.lag(60)
    lines = metrics.render({"containers": ("containers", 3)}).splitlines()
    assert "# TYPE portcall_registrar_events_total counter" in lines
    assert 'portcall_registrar_events_total{action="die"} 1' in lines
    assert 'portcall_registrar_events_total{action="start"} 2' in lines
    assert "portcall_registrar_passes_total 0" in lines
    assert 'portcall_registrar_lag_seconds_bucket{le="0.005"} 1' in lines
    assert 'portcall_registrar_lag_seconds_bucket{le="0.5"} 2' in lines
    assert 'portcall_registrar_lag_seconds_bucket{le="+Inf"} 3' in lines
    assert "portcall_registrar_lag_seconds_count 3" in lines
    assert "portcall_registrar_lag_seconds_sum 60.304" in lines
    assert "# TYPE portcall_registrar_containers gauge" in lines
    assert "portcall_registrar_containers 3" in lines
