"""One watch for each service and host. Each `Shared` stands for a process; some tests fork real ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discovery.backends import shared as shared_module
from discovery.backends.shared import Shared, SharedReader
from discovery.config import Config
from discovery.engine import Engine
from discovery.errors import AccessDenied, RegistryOverloaded, RegistryTimeout, RegistryUnavailable
from discovery.model import NodesQuery, Reply
from tests.discovery.fake import FakeCatalogue, Heard, entry, service
from tests.tools import wait_until

WEB = service("web")
ONE, TWO = (entry(port=1),), (entry(port=1), entry(port=2))


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "portcall")


@pytest.fixture
def registry() -> FakeCatalogue:
    registry = FakeCatalogue()
    registry.set(WEB, *ONE)
    return registry


@pytest.fixture
def process(directory: str, registry: FakeCatalogue) -> Iterator[Callable[..., Shared]]:
    """Make another process's view of the registry."""
    made: list[Shared] = []

    def make(scope: str = "here", inner: FakeCatalogue = registry) -> Shared:
        made.append(Shared(inner, directory, scope))
        return made[-1]

    yield make
    for shared in made:
        shared.close()


@pytest.fixture
def follow(process: Callable[..., Shared]) -> Iterator[Callable[..., tuple[Engine, Heard]]]:
    """Follow WEB as a client in another process does."""
    engines: list[Engine] = []

    def begin(**settings: float) -> tuple[Engine, Heard]:
        engines.append(Engine(process(), Config(**{"wait": 30.0, **settings})))
        heard = Heard()
        engines[-1].subscribe(WEB, heard)
        return engines[-1], heard

    yield begin
    for engine in engines:
        engine.close()


@contextmanager
def reading(reader: SharedReader, **arguments: float) -> Iterator[list[Reply | Exception]]:
    """Read in a thread; what came of it is in the list."""
    came: list[Reply | Exception] = []

    def read() -> None:
        try:
            came.append(reader.read(WEB, **arguments))
        except RegistryUnavailable as exc:
            came.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield came
    finally:
        reader.interrupt()
        thread.join(5)
        reader.close()


def names(directory: str) -> set[str]:
    return {name.partition(".")[2] for name in os.listdir(directory)}


# --- leading and following -----------------------------------------------------------------------------


def test_what_did_not_change_is_one_object_however_it_is_read(registry, process):
    reader, other = process().connect(), process().connect()
    first = other.read(WEB)
    followed = reader.read(WEB)
    other.close()
    led = reader.read(WEB)
    registry.set(WEB, *[entry(port=1)])
    again = reader.read(WEB, index=led.index, wait=5.0)
    assert (first.source, followed.source, led.source) == ("http", "shared", "http")
    assert again.index > led.index
    assert followed.value is led.value is again.value
    reader.close()


def test_17_one_asks_and_all_others_know(registry, follow):
    engines = [follow() for _ in range(8)]
    for _, heard in engines:
        heard.value(*ONE)
    wait_until(lambda: len(registry.open_readers) == 1, message="one connection is left")
    registry.set(WEB, *TWO)
    for _, heard in engines:
        heard.value(*TWO)
    assert len(registry.open_readers) == 1
    assert sorted(heard.last.source for _, heard in engines) == ["http"] + ["shared"] * 7
    assert {heard.last.index for _, heard in engines} == {registry._index}


def test_a_follower_is_answered_without_the_registry(registry, process):
    leader = process().connect()
    leader.read(WEB)
    asked = len(registry.asks)
    follower = process().connect()
    for _ in range(3):
        assert (follower.read(WEB).value, follower.read(WEB).source) == (ONE, "shared")
    assert len(registry.asks) == asked
    leader.close()
    follower.close()


def test_a_follower_waits_as_long_as_it_was_told(process):
    leader, follower = process().connect(), process().connect()
    leader.read(WEB)
    first = follower.read(WEB)
    started = time.monotonic()
    assert follower.read(WEB, index=first.index, wait=0.2) == first
    assert 0.2 <= time.monotonic() - started < 2.0
    leader.close()
    follower.close()


def test_when_the_leader_leaves_another_leads(registry, follow):
    (one, heard), (_, other) = follow(), follow()
    heard.value(*ONE)
    other.value(*ONE)
    one.close()
    wait_until(lambda: len(registry.open_readers) == 1)
    registry.set(WEB, *TWO)
    assert other.value(*TWO).source == "http"


def test_a_change_with_the_same_index_is_seen(registry, process):
    """A restarted registry may count to the same number again."""
    leader, follower = process().connect(), process().connect()
    leader.read(WEB)
    first = follower.read(WEB)
    with reading(follower, index=first.index, wait=30.0) as came:
        registry._values[WEB] = (TWO, first.index)
        leader.read(WEB)
        wait_until(lambda: came)
    assert came[0].value == TWO and came[0].index == first.index
    leader.close()


def test_questions_that_are_not_shared_are_passed_on(registry, process, directory):
    registry.set(NodesQuery(), "node")
    reader = process().connect()
    assert reader.read(NodesQuery()).value == ("node",)
    assert not os.path.exists(directory)


def test_scopes_do_not_meet(registry, process):
    one, other = process().connect(), process("with another token").connect()
    assert one.read(WEB).source == other.read(WEB).source == "http"
    one.close()
    other.close()


def test_a_lead_that_nobody_uses_is_given_up(monkeypatch, registry, process):
    monkeypatch.setattr(shared_module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(shared_module, "IDLE", 0.05)
    leader, other = process().connect(), process().connect()
    leader.read(WEB)  # once, as a poller that was dropped
    wait_until(lambda: other.read(WEB).source == "http")
    assert leader.read(WEB).source == "shared"
    leader.close()
    other.close()


def test_reading_again_and_again_keeps_the_lead(monkeypatch, process):
    monkeypatch.setattr(shared_module, "HEARTBEAT", 0.01)
    leader, other = process().connect(), process().connect()
    for _ in range(20):
        assert leader.read(WEB).source == "http"
        assert other.read(WEB).source == "shared"
    leader.close()
    other.close()


# --- outages -------------------------------------------------------------------------------------------


def test_each_finds_out_itself_that_the_registry_is_down_and_back(registry, follow):
    engines = [follow() for _ in range(4)]
    for _, heard in engines:
        heard.value(*ONE)
    registry.fail()
    for _, heard in engines:
        assert heard.until(lambda known: known.stale).value == ONE
    registry.set(WEB, *TWO)
    registry.recover()
    for _, heard in engines:
        heard.value(*TWO)
    wait_until(lambda: len(registry.open_readers) == 1)


@pytest.mark.parametrize(
    "error", [AccessDenied("not allowed", status=403), RegistryOverloaded("slow down", status=429)]
)
def test_a_refusal_is_the_registrys_and_ends_the_lead(registry, process, directory, caplog, error):
    registry.refused[WEB] = error
    reader = process().connect()
    with pytest.raises(type(error)):
        reader.read(WEB)
    assert len(registry.asks) == 1 and not caplog.records
    assert not reader._shared._leads
    reader.close()


def test_what_a_server_without_a_leader_says_is_not_shared(registry, process, directory):
    registry.leader = False
    reader = process().connect()
    assert not reader.read(WEB).known_leader
    assert names(directory) == {"lock"}
    reader.close()


def test_while_somebody_asks_the_first_time_the_others_wait_for_it_within_their_time(registry, process):
    registry.silent = True
    slow, waiting = process().connect(), process().connect()
    with reading(slow, timeout=30.0):
        wait_until(lambda: registry.asks)
        with pytest.raises(RegistryTimeout, match="another process asks fake://registry"):
            waiting.read(WEB, timeout=0.2)
        with reading(waiting, timeout=30.0) as came:
            registry.change(silent=False)
            wait_until(lambda: came)
        assert came[0].value == ONE
    assert len(registry.asks) == 1


def test_an_interrupt_ends_a_follower(process):
    leader, follower = process().connect(), process().connect()
    leader.read(WEB)
    index = follower.read(WEB).index
    with reading(follower, index=index, wait=60.0) as came:
        wait_until(lambda: follower._wake is not None)
        follower.interrupt()
        wait_until(lambda: came)
    assert "interrupted" in str(came[0])
    leader.close()


# --- leaders that do not go in peace -------------------------------------------------------------------


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """Run *work* and then wait, in a forked process; killed at the end."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            work()
            os.write(done, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"x", "the child failed"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def lead(directory: str, *value: object) -> Callable[[], None]:
    """Lead WEB with a registry of one's own that says *value*."""

    def work() -> None:
        registry = FakeCatalogue()
        registry.set(WEB, *value)
        engine = Engine(Shared(registry, directory, "here"), Config(wait=30.0))
        engine.fetch(WEB, 5.0)
        wait_until(lambda: len(registry.asks) == 2)  # it waits for a change

    return work


def test_a_leader_that_is_killed_is_replaced_at_once(monkeypatch, directory, follow):
    monkeypatch.setattr(shared_module, "CHECK", 60.0)  # nobody looks; the hang-up has to do it
    with child(lead(directory, *TWO)) as pid:
        _, heard = follow()
        assert heard.value(*TWO).source == "shared"
        os.kill(pid, signal.SIGKILL)
        assert heard.value(*ONE).source == "http"


def test_a_leader_that_has_stopped_is_deposed_and_notices(monkeypatch, directory, follow, registry):
    for name, value in (("HEARTBEAT", 0.05), ("CHECK", 0.1), ("DEAD", 1.0)):
        monkeypatch.setattr(shared_module, name, value)
    with child(lead(directory, *TWO)) as pid:
        _, heard = follow()
        assert heard.value(*TWO).source == "shared"
        os.kill(pid, signal.SIGSTOP)
        assert heard.value(*ONE).source == "http"
        os.kill(pid, signal.SIGCONT)
        registry.set(WEB, entry(port=3))
        heard.value(entry(port=3))
        assert heard.last.source == "http"


def test_a_deposed_leader_leads_no_more(process, directory):
    leader, other = process().connect(), process().connect()
    leader.read(WEB)
    (lock,) = Path(directory).glob("*.lock")
    lock.unlink()  # as whoever deposes does
    assert leader.read(WEB).value == ONE
    assert not leader._shared._leads
    assert other.read(WEB).source == "http"
    assert leader.read(WEB).source == "shared"
    leader.close()
    other.close()


def test_an_old_snapshot_is_not_believed(process, directory):
    leader, other = process().connect(), process().connect()
    leader.read(WEB)
    leader.close()
    (snapshot,) = Path(directory).glob("*.json")
    os.utime(snapshot, (time.time() - 3600, time.time() - 3600))
    assert other.read(WEB).source == "http"
    other.close()


def test_05_a_forked_child_holds_nothing_of_its_parents_lead(monkeypatch, registry, process, follow):
    monkeypatch.setattr(shared_module, "CHECK", 60.0)
    leader = process().connect()
    leader.read(WEB)
    with child(lambda: None):  # forked while the parent leads, and outlives that
        _, heard = follow()
        assert heard.value(*ONE).source == "shared"
        leader.close()
        registry.set(WEB, *TWO)
        assert heard.value(*TWO).source == "http"


# --- files ---------------------------------------------------------------------------------------------


def test_nothing_is_left_open(process, directory):
    before = len(os.listdir("/proc/self/fd"))
    one, other = process(), process()
    leader, follower = one.connect(), other.connect()
    leader.read(WEB)
    for _ in range(3):
        follower.read(WEB, index=follower.read(WEB).index, wait=0.01)
    leader.close()
    follower.close()
    one.close()
    other.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert names(directory) == {"lock", "json", "fifo"}


@pytest.mark.parametrize("content", [b"", b"\n", b"x y\n[]", b"3 4\n{", b"3 4\n[{}]", b"\xff\xff\n"])
def test_a_damaged_snapshot_is_not_believed(process, directory, content):
    leader, other = process().connect(), process().connect()
    leader.read(WEB)
    leader.close()
    (snapshot,) = Path(directory).glob("*.json")
    snapshot.write_bytes(content)
    assert other.read(WEB).source == "http"
    other.close()


def test_where_nothing_can_be_shared_everybody_asks(tmp_path, registry, caplog):
    (tmp_path / "file").write_text("")
    shared = Shared(registry, str(tmp_path / "file" / "portcall"), "here")
    reader = shared.connect()
    for _ in range(3):
        assert reader.read(WEB).value == ONE
    assert len(registry.asks) == 3
    assert [record.message for record in caplog.records] == [
        f"nothing is shared through {tmp_path}/file/portcall: Not a directory"
    ]
    reader.close()
    shared.close()


def test_a_directory_that_others_may_enter_is_not_used(process, directory, caplog):
    os.mkdir(directory, 0o700)
    os.chmod(directory, 0o777)
    reader = process().connect()
    assert reader.read(WEB).source == "http"
    assert os.listdir(directory) == []
    assert "mode 700" in caplog.text
    reader.close()


def test_a_fifo_that_is_none_is_not_waited_on(process, directory, tmp_path):
    leader, follower = process().connect(), process().connect()
    leader.read(WEB)
    (fifo,) = Path(directory).glob("*.fifo")
    fifo.unlink()
    fifo.write_text("planted")
    assert follower.read(WEB).source == "http"
    leader.close()
    follower.close()


def test_what_nobody_has_used_for_long_is_removed(process, directory):
    reader = process("before").connect()
    reader.read(WEB)
    reader.close()
    long_ago = time.time() - 7200
    for file in Path(directory).iterdir():
        os.utime(file, (long_ago, long_ago))
    foreign = Path(directory, "letter.json")
    foreign.write_text("")
    os.utime(foreign, (long_ago, long_ago))
    reader = process().connect()
    reader.read(WEB)
    assert len(os.listdir(directory)) == 3 + 1 and foreign.exists()
    reader.close()
