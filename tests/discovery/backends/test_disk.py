"""What is written down for a cold start, and whose files are believed."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.backends import private
from discovery.backends.consul import codec
from discovery.backends.disk import MAX_AGE, Disk
from discovery.model import Address, FrozenDict, NamesQuery, NodesQuery, ServiceName, Weights
from tests.discovery.fake import entry, service
from tests.tools import require_root

WEB = service("web")
ROW = entry(
    tags=("v1", "é"),
    meta=FrozenDict({"zone": "a"}),
    tagged_addresses=FrozenDict({"wan": Address("203.0.113.1", 8080)}),
    weights=Weights(3, 2),
    kind="connect-proxy",
    status="warning",
    output="hm\n",
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "portcall"


@pytest.fixture
def disk(directory: Path, clock: Clock) -> Disk:
    return Disk(str(directory), "here", clock=clock)


def again(disk: Disk, clock: Clock, scope: str = "here") -> Disk:
    """The same directory, for another process."""
    return Disk(disk.directory, scope, clock=clock)


def the_file(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def test_what_was_kept_is_recalled_whole(disk, clock):
    disk.keep(WEB, (ROW, entry(port=81)))
    clock.now += 90.0
    recalled = again(disk, clock).recall(WEB)
    assert recalled is not None
    assert recalled.value == (ROW, entry(port=81))
    assert recalled.age == pytest.approx(90.0)


def test_what_did_not_change_is_kept_once(disk, clock):
    value, equal = (ROW,), (replace(ROW),)
    disk.keep(WEB, value)
    clock.now += 90.0
    before = sys.getrefcount(equal)
    disk.keep(WEB, equal)
    assert sys.getrefcount(equal) == before


def test_names_are_kept_and_other_questions_are_not(disk, clock):
    names = {ServiceName("web"): ("v1",), ServiceName("db"): ()}
    disk.keep(NamesQuery(), names)
    disk.keep(NodesQuery(), ())
    assert again(disk, clock).recall(NamesQuery()).value == names
    assert again(disk, clock).recall(NodesQuery()) is None


@given(names=st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=3)).map(tuple), max_size=5))
def test_what_is_written_reads_back(names):
    raw = json.loads(json.dumps(codec.value_to_raw(NamesQuery(), names)))
    assert codec.query_value(NamesQuery(), raw) == names


def test_questions_and_scopes_do_not_meet(disk, clock):
    disk.keep(WEB, (ROW,))
    for query in (service("db"), service("web", "dc2"), NamesQuery()):
        assert disk.recall(query) is None
    assert again(disk, clock, "elsewhere").recall(WEB) is None


def test_21_nothing_older_than_a_day_is_recalled(disk, clock):
    disk.keep(WEB, (ROW,))
    clock.now += MAX_AGE - 1
    assert disk.recall(WEB) is not None
    clock.now += 2
    assert disk.recall(WEB) is None


def test_21_what_is_confirmed_stays_young(disk, clock):
    for _ in range(50):
        disk.keep(WEB, (ROW,))
        clock.now += 3600.0
    assert disk.recall(WEB).age == pytest.approx(3600.0)


def test_a_clock_that_was_set_back_makes_nothing_older(disk, clock):
    disk.keep(WEB, (ROW,))
    clock.now -= 10_000.0
    assert disk.recall(WEB).age == 0.0


def test_a_service_in_trouble_is_not_written_with_each_change(disk, directory, clock, monkeypatch):
    writes: list[str] = []
    write = private.write
    monkeypatch.setattr(private, "write", lambda d, name, c: (writes.append(name), write(d, name, c)))
    for n in range(100):
        disk.keep(WEB, (entry(port=1 + n),))
        clock.now += 0.01
    assert len(writes) == 1
    clock.now += 1.0
    disk.keep(WEB, (entry(port=100),))
    assert again(disk, clock).recall(WEB).value == (entry(port=100),)


def test_an_authoritative_nothing_removes_the_file(disk, directory, clock):
    disk.keep(WEB, ())
    assert list(directory.iterdir()) == []  # a name that never was leaves nothing
    clock.now += 2.0
    disk.keep(WEB, (ROW,))
    clock.now += 2.0
    disk.keep(WEB, ())
    assert disk.recall(WEB) is None
    assert list(directory.iterdir()) == []


def test_old_files_are_removed_and_others_left_alone(disk, directory, clock):
    disk.keep(service("old"), (ROW,))
    half = directory / f"{the_file(directory).name}.1234.5678"
    half.write_text("")
    foreign = directory / "letter.json"
    foreign.write_text("")
    for file in (half, foreign):
        os.utime(file, (clock.now, clock.now))
    clock.now += MAX_AGE + 1
    again(disk, clock).keep(WEB, (ROW,))
    assert sorted(file.name.split(".")[0] for file in directory.iterdir()) == ["letter", "web"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"value": 3}', b'{"value": [{"Node": 1}]}', b"\xff\xfe", b'{"value": null}'],
)
def test_a_damaged_file_does_not_exist(disk, directory, clock, content, caplog):
    disk.keep(WEB, (ROW,))
    the_file(directory).write_bytes(content)
    assert again(disk, clock).recall(WEB) is None
    assert "is damaged and is ignored" in caplog.text


# --- whose files are believed --------------------------------------------------------------------------


def test_the_directory_and_its_files_are_ours_alone(disk, directory):
    disk.keep(WEB, (ROW,))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert the_file(directory).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o720])
def test_a_directory_that_others_may_enter_is_not_used(disk, directory, clock, mode, caplog):
    disk.keep(WEB, (ROW,))
    directory.chmod(mode)
    other = again(disk, clock)
    assert other.recall(WEB) is None
    other.keep(WEB, (entry(port=81),))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # once
    assert f"must belong to this user with mode 700; it has {mode:o}" in caplog.text
    directory.chmod(0o700)
    assert again(disk, clock).recall(WEB).value == (ROW,)


@pytest.mark.parametrize("which", ["directory", "file"])
def test_what_belongs_to_somebody_else_is_not_read(disk, directory, clock, which):
    require_root("giving files away")
    disk.keep(WEB, (ROW,))
    os.chown(directory if which == "directory" else the_file(directory), 65534, 65534)
    assert again(disk, clock).recall(WEB) is None


def test_links_are_not_followed(disk, directory, clock, tmp_path):
    disk.keep(WEB, (ROW,))
    file = the_file(directory)
    planted = tmp_path / "planted.json"
    file.rename(planted)
    file.symlink_to(planted)
    assert again(disk, clock).recall(WEB) is None
    file.unlink()
    planted.rename(file)
    moved = directory.rename(tmp_path / "moved")
    directory.symlink_to(moved)
    assert again(disk, clock).recall(WEB) is None


def test_a_fifo_and_a_giant_do_not_hold_anybody_up(disk, directory, clock, monkeypatch):
    disk.keep(WEB, (ROW,))
    monkeypatch.setattr(private, "MAX_SIZE", 10)
    assert again(disk, clock).recall(WEB) is None
    file = the_file(directory)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert again(disk, clock).recall(WEB) is None


def test_a_directory_that_cannot_be_made_is_no_failure(tmp_path, clock, caplog):
    (tmp_path / "file").write_text("")
    disk = Disk(str(tmp_path / "file" / "portcall"), "here", clock=clock)
    for _ in range(3):
        disk.keep(WEB, (ROW,))
        assert disk.recall(WEB) is None
    assert len(caplog.records) == 1


def test_a_write_that_fails_leaves_the_old_file_and_no_half(disk, directory, clock, monkeypatch):
    disk.keep(WEB, (ROW,))
    clock.now += 2.0

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        disk.keep(WEB, (entry(port=81),))
    assert len(list(directory.iterdir())) == 1
    assert again(disk, clock).recall(WEB).value == (ROW,)
    disk.keep(WEB, (entry(port=82),))  # and it is tried again at once
    assert again(disk, clock).recall(WEB).value == (entry(port=82),)
