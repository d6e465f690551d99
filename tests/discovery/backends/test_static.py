"""Fixed services, from the environment and from a file."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from discovery.backends.static import Static, address
from discovery.errors import ConfigurationError, RegistryUnavailable
from discovery.model import Instance, NamesQuery
from tests.discovery.fake import service

WEB = service("python-micro-service")


def places(static: Static, query=WEB) -> list[str]:
    return [str(Instance(entry)) for entry in static.read(query).value]


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_variable_lists_addresses():
    static = Static({"PYTHON_MICRO_SERVICE": "10.0.0.1:5000, [::1]:5001"})
    reply = static.read(WEB)
    assert places(static) == ["10.0.0.1:5000", "[::1]:5001"]
    assert reply.source == "static" and reply.where == "the environment"
    assert {entry.status for entry in reply.value} == {"passing"}
    assert {entry.name for entry in reply.value} == {WEB.name}


def test_nobody_else_is_covered():
    static = Static({"WEB": "a:1"}, dc="dc1")
    assert static.covers(service("Web", "dc1"))
    assert not any(
        map(static.covers, [service("web"), service("web", "dc2"), service("db", "dc1"), NamesQuery()])
    )
    with pytest.raises(RegistryUnavailable, match="says nothing about"):
        static.connect().read(service("db", "dc1"))


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:http",
        ":80",
        "::1:80",
        "[]:80",
        "a:0",
        "a:65536",
        "http://a:80",
        "a:٣",
    ],
)
def test_what_is_no_address_is_named_when_it_is_asked_for(text):
    static = Static({"PYTHON_MICRO_SERVICE": text, "WEB": "10.0.0.1:80"})
    assert places(static, service("web"))  # what is meant for somebody else breaks nothing
    with pytest.raises(ConfigurationError, match="DISCOVERY_PYTHON_MICRO_SERVICE") as caught:
        static.read(WEB)
    assert "write host:port" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("db.example:5432", ("db.example", 5432)), ("[2001:db8::1]:80", ("2001:db8::1", 80))],
)
def test_addresses(text, expected):
    assert address(text, origin="the test") == expected


TOML = """
python-micro-service = [
    "10.0.0.1:80",  # a comment is why people want TOML
    { address = "10.0.0.2:80", tags = ["v2"], meta = { zone = "a" }, weight = 3 },
]
db = ["10.0.0.3:5432"]
"""


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_file_may_say_more(tmp_path, suffix):
    rows = ["10.0.0.1:80", {"address": "10.0.0.2:80", "tags": ["v2"], "meta": {"zone": "a"}, "weight": 3}]
    text = TOML if suffix == ".toml" else json.dumps({"python-micro-service": rows, "db": ["10.0.0.3:5432"]})
    static = Static({}, written(tmp_path / f"services{suffix}", text))
    plain, more = map(Instance, static.read(WEB).value)
    assert (plain, plain.tags, plain.weight) == (("10.0.0.1", 80), (), 1)
    assert (more, more.tags, more.zone, more.weight) == (("10.0.0.2", 80), ("v2",), "a", 3)
    assert places(static, service("DB")) == ["10.0.0.3:5432"]


def test_the_environment_beats_the_file(tmp_path):
    static = Static({"DB": "10.0.0.9:1"}, written(tmp_path / "s.toml", TOML))
    assert places(static, service("db")) == ["10.0.0.9:1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"web": "10.0.0.1:80"}', "is no list of instances"),
        ('{"web": [{"addres": "10.0.0.1:80"}]}', r"unknown keys \['addres'\]"),
        ('{"web": [{"address": "10.0.0.1:80", "weight": "3"}]}', "has wrong types"),
        ('{"web": [{"address": "10.0.0.1:80", "weight": true}]}', "has wrong types"),
        ('{"web": [80]}', "'80' in .* is no address"),
        ("[]", "it holds no table of services"),
        ("{", "cannot use DISCOVERY_STATIC"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, problem):
    static = Static({}, written(tmp_path / "services.json", text))
    with pytest.raises(ConfigurationError, match=problem):
        static.read(service("web"))


def test_a_missing_file_is_an_error_and_not_an_empty_one(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file"):
        Static({}, str(tmp_path / "none.json")).covers(WEB)


def test_creating_one_reads_nothing(tmp_path):
    Static({"WEB": "nonsense"}, str(tmp_path / "none.json"))


def replaced(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text, encoding="utf-8")
    os.replace(other, path)


def test_an_edit_is_seen_by_who_waits(tmp_path):
    file = tmp_path / "services.json"
    static = Static({}, written(file, '{"web": ["10.0.0.1:80"]}'))
    reader = static.connect()
    first = reader.read(service("web"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(reader.read, service("web"), index=first.index, wait=30.0)
        replaced(file, '{"web": ["10.0.0.1:80", "10.0.0.2:80"]}')
        second = waiting.result(5)
    assert len(second.value) == 2 and second.index == first.index + 1
    assert reader.read(service("web"), index=second.index, wait=0.05) == second
    replaced(file, "{}")
    assert not static.covers(service("web"))
    with pytest.raises(RegistryUnavailable):
        reader.read(service("web"), index=second.index, wait=30.0)


def test_a_file_that_is_being_edited_says_what_it_said_before(tmp_path, caplog):
    file = tmp_path / "services.json"
    static = Static({}, written(file, '{"web": ["10.0.0.1:80"]}'))
    assert places(static, service("web")) == ["10.0.0.1:80"]
    file.write_text('{"web": [')
    for _ in range(3):
        assert places(static, service("web")) == ["10.0.0.1:80"]
    file.unlink()
    assert places(static, service("web")) == ["10.0.0.1:80"]
    assert ["going on with what it said before" in record.message for record in caplog.records] == [
        True,
        True,
    ]
    replaced(file, '{"web": ["10.0.0.7:80"]}')
    assert places(static, service("web")) == ["10.0.0.7:80"]


def test_an_interrupt_ends_the_waiting(tmp_path):
    static = Static({"WEB": "10.0.0.1:80"})
    reader = static.connect()
    index = reader.read(service("web")).index
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        reader.read(service("web"), index=index, wait=60.0)

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait)
        assert begun.wait(5)
        reader.interrupt()
        with pytest.raises(RegistryUnavailable, match="interrupted"):
            waiting.result(5)
