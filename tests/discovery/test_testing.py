"""The fixture for applications' tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import discovery
from discovery.integrations.requests import Session
from discovery.testing import FakeDiscovery
from tests.discovery.integrations.fleet import Server


def test_what_was_added_changed_and_removed_is_known_at_once(fake_discovery: FakeDiscovery) -> None:
    first = fake_discovery.add("web", port=8001, tags=["v1"], meta={"zone": "a"})
    assert discovery.lookup("web") == ("127.0.0.1", 8001)
    for _ in range(10):
        second = fake_discovery.add("web", port=8002, host="10.0.0.2", status="warning")
        assert {i.netloc: i.status for i in discovery.lookup_all("web")} == {
            "127.0.0.1:8001": "passing",
            "10.0.0.2:8002": "warning",
        }
        fake_discovery.set_status(first, "critical")
        assert discovery.lookup("web") == ("10.0.0.2", 8002)
        fake_discovery.remove(second)
        with pytest.raises(discovery.NoHealthyInstances, match="set by the test"):
            discovery.lookup("web")
        fake_discovery.set_status(first, "passing")
        assert discovery.lookup("web", tags=["v1"]).zone == "a"
    fake_discovery.add("web", port=8001, tags=["v2"])
    assert [i.tags for i in discovery.lookup_all("web")] == [("v2",)]


SESSION = Session()


def test_clients_made_at_import_use_each_tests_registry(fake_discovery: FakeDiscovery) -> None:
    for _ in range(2):
        with Server() as server:
            fake_discovery.add("web", port=server.port)
            assert SESSION.get("http://web.service.consul/", timeout=5).json()["port"] == server.port
            fake_discovery.remove(discovery.lookup("web").id)


def test_and_again_in_the_next_test(fake_discovery: FakeDiscovery) -> None:
    test_clients_made_at_import_use_each_tests_registry(fake_discovery)
    SESSION.close()


def test_processes_that_a_test_starts_find_its_registry(fake_discovery: FakeDiscovery) -> None:
    fake_discovery.add("web", port=8001)
    command = [sys.executable, "-m", "discovery.cli", "lookup", "web"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "127.0.0.1:8001\n"


def test_the_environment_is_out_of_sight_during_the_test_and_back_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(tmp_path / "not there"))
    monkeypatch.setenv("DISCOVERY_WEB", "10.9.9.9:9")
    program = tmp_path / "test_app.py"
    program.write_text("""
import os, sys

def test_nothing_is_loaded_for_those_who_do_not_use_it():
    loaded = {name for name in sys.modules if name.partition(".")[0] == "discovery"}
    assert loaded == {"discovery", "discovery.testing"}
    assert "urllib3" not in sys.modules

def test_the_fixture_is_there(fake_discovery):
    import discovery
    fake_discovery.add("web", port=8001)
    assert discovery.lookup("web") == ("127.0.0.1", 8001)

def test_and_leaves_nothing():
    import discovery, threading
    assert os.environ["DISCOVERY_WEB"] == "10.9.9.9:9"
    assert discovery.client._default is None
    assert threading.active_count() == 1
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(program)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 passed" in ran.stdout, ran.stdout + ran.stderr
