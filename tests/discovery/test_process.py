"""What the client does to the process that uses it: at import, across forks, and at exit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from discovery.agent import Agent
from tests.discovery.rawserver import RawServer
from tests.tools import free_port

ROOT = Path(__file__).parents[2]


def python(script: str, *arguments: object, **env: str) -> tuple[int, str, str]:
    """Run *script* with every warning an error; return exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "DISCOVERY_DNS": "off", "DISCOVERY_CACHE": "off", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


# --- import --------------------------------------------------------------------------------------------

IMPORTS = """
    import sys, threading
    before = set(sys.modules)
    import discovery
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    print(sorted(loaded - sys.stdlib_module_names), threading.active_count())
    print(sorted(name for name in sys.modules if name.startswith("discovery.")))
"""


def test_importing_loads_nothing_but_the_standard_library():
    assert python(IMPORTS) == (0, "['discovery'] 1\n[]\n", "")


def test_importing_the_client_loads_no_backend():
    script = """
        import sys
        import discovery.client
        loaded = {name.partition(".")[0] for name in sys.modules}
        third_party = {"urllib3", "dns", "requests", "docker"} & loaded
        print(sorted(third_party), "discovery.backends.consul" in sys.modules)
    """
    assert python(script) == (0, "[] False\n", "")


# --- exit ----------------------------------------------------------------------------------------------

LEAVES = """
    import atexit, os, sys, threading, time

    def sockets():
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
                and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")]

    @atexit.register  # first registered, so the last to run
    def look():
        assert time.monotonic() - ended < 3.0  # no wait for what was under way
        print(threading.active_count(), len(sockets()))

    import discovery
"""


@pytest.mark.parametrize(
    "use",
    [
        'discovery.lookup("web", timeout=5)',
        'client = discovery.Client(timeout=5); client.lookup("web"); client.names()',
        'discovery.watch("web").next(5)',
        'watch = discovery.watch("web"); watch.on_change(print); watch.next(5)',
        'discovery.register("other", port=1)',
        "import discovery.client",
    ],
)
def test_a_process_that_closes_nothing_leaves_nothing(agent, register, use):
    register("web", 8080)
    code, out, err = python(LEAVES + f"    {use}\n    ended = time.monotonic()", CONSUL_HTTP_ADDR=agent.url)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "1 0"


def test_a_process_that_ends_during_an_outage_ends_at_once():
    script = (
        LEAVES
        + """
    try:
        discovery.lookup("web")
    except discovery.RegistryUnavailable:
        print("down")
    ended = time.monotonic()
    """
    )
    code, out, err = python(script, CONSUL_HTTP_ADDR=f"127.0.0.1:{free_port()}")
    assert (code, out, err) == (0, "down\n1 0\n", "")


def test_a_process_that_ends_while_the_agent_is_silent_ends_at_once():
    def silent(peer) -> None:
        peer.request()
        peer.hang()

    script = (
        LEAVES
        + """
    try:
        discovery.lookup("web", timeout=0.2)
    except discovery.RegistryTimeout:
        print("silent")
    ended = time.monotonic()
    """
    )
    with RawServer(silent) as server:
        code, out, err = python(script, CONSUL_HTTP_ADDR=server.config.url)
    assert (code, out, err) == (0, "silent\n1 0\n", "")


# --- fork ----------------------------------------------------------------------------------------------

PREFORK = """
    import faulthandler, os, sys, time
    import discovery
    from discovery.backends import open_backend
    from discovery.config import Config
    from discovery.model import Registration

    def sockets():
        return sum(os.path.exists(path) and os.readlink(path).startswith("socket:")
                   for path in (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")))

    def work(go):
        faulthandler.dump_traceback_later(30, exit=True)  # nobody else would end a child that hangs
        assert sockets() == 0, sockets()  # none of the parent's
        assert discovery.lookup("web", timeout=5).port in (8080, 8081)
        os.read(go, 1)  # the parent has registered another instance by now
        begin = time.monotonic()
        while len(discovery.lookup_all("web")) != 2:
            assert time.monotonic() - begin < 5.0, discovery.lookup_all("web")
        assert len(watch.next(5)) in (1, 2)  # the parent's watch goes on here
        assert heard == 1, heard  # and the parent's callback stays there
        discovery.lookup("web")

    def count(snapshot):
        global heard
        heard += 1

    heard = 0
    watch = discovery.watch("web")
    assert discovery.lookup("web", timeout=5).port == 8080
    watch.next(5)
    watch.on_change(count)
    children, gates = [], []
    for _ in range(3):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            for other in gates:
                os.close(other)
            try:
                work(reading)
            except BaseException:
                import traceback; traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            sys.exit(0)  # an orderly end, with everything that runs at exit
        os.close(reading)
        children.append(pid)
        gates.append(writing)
    backend = open_backend(os.environ["CONSUL_URI"], Config())
    backend.register(Registration(id="second", name="web", port=8081, address="127.0.0.1"))
    for writing in gates:
        os.write(writing, b"x")
        os.close(writing)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0, 0], codes
    while len(watch.next(5)) != 2:
        pass
    backend.close()
"""


def test_forked_workers_see_changes_and_share_nothing(agent: Agent, register):
    register("web", 8080)
    code, out, err = python(PREFORK, CONSUL_HTTP_ADDR=agent.url, CONSUL_URI=agent.uri)
    assert (code, out, err) == (0, "", "")


def test_a_fork_during_lookups_in_other_threads_does_not_hang(agent: Agent, register):
    """Every lock that another thread may hold while a process forks is new in the child."""
    script = """
        import faulthandler, os, threading
        import discovery

        client = discovery.Client(timeout=5)
        client.lookup("web")  # the interpreter's own import locks do not survive a fork: import before it
        stop = threading.Event()

        def busy(n):
            k = 0
            while not stop.is_set():
                client.lookup("web", tags=["v1"])
                client.lookup_all(f"nope-{n}-{k % 7}")
                with client.watch("web") as watch:
                    watch.next(5)
                k += 1

        threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                faulthandler.dump_traceback_later(30, exit=True)
                assert client.lookup("web").port == 8080
                with client.watch("web") as watch:
                    watch.next(5)
                client.close()
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop.set()
        for thread in threads:
            thread.join()
        print(set(codes))
    """
    register("web", 8080, tags=("v1",))
    assert python(script, CONSUL_HTTP_ADDR=agent.url) == (0, "{0}\n", "")
