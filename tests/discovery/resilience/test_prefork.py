"""Servers that fork their workers after the application has looked up: gunicorn, Celery, multiprocessing.

    5  a forked worker's watch is dead, or it shares its parent's socket (requests#4323, celery#10339)

The applications look up at import, which is the worst that they can do: the parent has the threads and the
connections then, and the workers must have their own.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from discovery.agent import Agent
from tests.tools import free_port, wait_until

WORKERS = 3
PATIENCE = 60.0  # s; Celery takes a while to start on a busy machine


@pytest.fixture
def start(agent: Agent, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Run a Python module as a program in the test's directory, with the test's registry; SIGTERM ends it."""
    environment = {
        **os.environ,
        "CONSUL_HTTP_ADDR": agent.url,
        "DISCOVERY_SHARE": str(tmp_path / "share"),
        "DISCOVERY_TIMEOUT": "10",
        "PYTHONPATH": str(tmp_path),
        "PYTHONWARNINGS": "default::ResourceWarning",
        "HOME": str(tmp_path),  # gunicorn keeps a socket there
    }
    with ExitStack() as stack:

        def run(*words: str, output: IO[bytes] | int | None = None) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=tmp_path, env=environment, stdout=output, stderr=output
            )
            stack.callback(end, process)
            return process

        yield run


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def connections(pid: int, port: int) -> set[str]:
    """The kernel's numbers of the sockets with which a process is connected to *port*."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    numbers = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"}
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return held & numbers


def assert_nothing_is_shared(pids: set[int], port: int) -> None:
    assert all(connections(pid, port) for pid in pids)
    for one, other in itertools.combinations(pids, 2):
        assert not connections(one, port) & connections(other, port)


APPLICATION = """
    import json, os
    import discovery

    at_import = discovery.lookup("web").port
    client = discovery.Client(share=None)  # one that has its own connection in each process
    client.lookup("web")

    def look():
        found = {look("web") for look in (discovery.lookup, client.lookup) for _ in range(20)}
        ports = sorted({instance.port for instance in found if not instance.stale})
        return {"pid": os.getpid(), "parent": os.getppid(), "ports": ports}

    def application(environ, start_response):
        body = json.dumps(look()).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]
"""


# --- gunicorn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_05_gunicorn_with_preload(agent: Agent, register, start, tmp_path: Path, kind: str) -> None:
    register("web", 1)
    (tmp_path / "app.py").write_text(textwrap.dedent(APPLICATION))
    port = free_port()
    options = ["--preload", "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}", "--worker-class", kind]
    if kind == "gthread":
        options += ["--threads", "2"]
    with (tmp_path / "log").open("wb") as log:
        master = start("gunicorn", *options, "app:application", output=log)
        answers: dict[int, list[int]] = {}

        def ask() -> None:
            # A new connection each time, so that any worker may take it.
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as response:
                answer = json.load(response)
            assert answer["parent"] == master.pid
            answers[answer["pid"]] = answer["ports"]

        def all_see(ports: list[int], without: int = 0) -> bool:
            ask()
            seen = [answer for pid, answer in answers.items() if pid != without]
            return len(seen) == WORKERS and all(answer == ports for answer in seen)

        wait_until(lambda: all_see([1]), PATIENCE, ignoring=OSError, message="every worker answers")
        register("web", 2)
        wait_until(lambda: all_see([1, 2]), PATIENCE, message="every worker follows")
        assert_nothing_is_shared({master.pid, *answers}, agent.http[1])
        victim = min(answers)
        os.kill(victim, signal.SIGKILL)
        register("web", 3)
        wait_until(
            lambda: all_see([1, 2, 3], victim),
            PATIENCE,
            ignoring=OSError,
            message="so does one that was forked much later",
        )
        end(master)
    assert master.returncode == 0
    written = (tmp_path / "log").read_text()
    assert "Traceback" not in written, written
    assert f"raddr={agent.http}" not in written, (
        written
    )  # gunicorn leaves sockets of its own to the collector


# --- Celery --------------------------------------------------------------------------------------------

TASKS = """
    import time
    from pathlib import Path
    from celery import Celery
    from app import look

    here = Path(__file__).parent
    app = Celery("tasks", broker="filesystem://", backend=f"file://{here / 'results'}")
    app.conf.broker_transport_options = {
        "data_folder_in": str(here / "queue"), "data_folder_out": str(here / "queue"),
        "control_folder": str(here / "control"),
    }
    app.conf.worker_prefetch_multiplier = 1

    @app.task
    def meet(count):
        "Look up once *count* workers are here, so that each has one of the tasks."
        found = look()
        (here / f"here-{count}-{found['pid']}").touch()
        deadline = time.monotonic() + 60
        while len(list(here.glob(f"here-{count}-*"))) < 2:
            assert time.monotonic() < deadline, "the other worker did not come"
            time.sleep(0.01)
        return found
"""
ASK = """
    import json, sys
    from tasks import meet

    pending = [meet.delay(int(sys.argv[1])) for _ in range(2)]
    print(json.dumps([result.get(timeout=60) for result in pending]))
"""


def test_05_celery_with_its_prefork_pool(agent: Agent, register, start, tmp_path: Path) -> None:
    register("web", 1)
    for name, program in (("app", APPLICATION), ("tasks", TASKS), ("ask", ASK)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(program))
    for folder in ("queue", "control", "results"):
        (tmp_path / folder).mkdir()

    def ask(count: int) -> dict[int, list[int]]:
        with (tmp_path / "answer").open("w+b") as answer:
            assert start("ask", str(count), output=answer).wait(2 * PATIENCE) == 0
            answer.seek(0)
            return {row["pid"]: row["ports"] for row in json.load(answer)}

    words = ["--app", "tasks", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "warning"]
    with (tmp_path / "log").open("wb") as log:
        worker = start(
            "celery", *words, "--without-gossip", "--without-mingle", "--without-heartbeat", output=log
        )
        first = ask(1)
        assert list(first.values()) == [[1], [1]]
        assert worker.pid not in first
        register("web", 2)
        asked = itertools.count(2)
        wait_until(lambda: list(ask(next(asked)).values()) == [[1, 2]] * 2, PATIENCE, message="both follow")
        assert_nothing_is_shared({worker.pid, *first}, agent.http[1])
        end(worker)
    assert worker.returncode == 0, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


# --- multiprocessing -----------------------------------------------------------------------------------

POOL = """
    import json, multiprocessing, sys
    import discovery
    import app  # looks up, in the parent, and again where the child begins anew

    def main():
        context = multiprocessing.get_context(sys.argv[1])
        with context.Pool(2) as pool:
            for _ in sys.stdin:
                rows = [row for row in pool.starmap(app.look, [()] * 8)]
                print(json.dumps(rows), flush=True)
            pool.close()
            pool.join()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_05_multiprocessing(agent: Agent, register, tmp_path: Path, method: str) -> None:
    register("web", 1)
    for name, program in (("app", APPLICATION), ("pool", POOL)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(program))
    environment = {**os.environ, "CONSUL_HTTP_ADDR": agent.url, "DISCOVERY_TIMEOUT": "10"}
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "pool.py", method],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None

            def ask() -> list[dict[str, object]]:
                process.stdin.write("\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            assert all(row["ports"] == [1] and row["pid"] != process.pid for row in ask())
            register("web", 2)
            wait_until(lambda: all(row["ports"] == [1, 2] for row in ask()), PATIENCE)
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
            written = process.stderr.read()
            assert "Traceback" not in written and "ResourceWarning" not in written, written
        finally:
            process.kill()
