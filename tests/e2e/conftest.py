"""The lab of this suite, and the state in which every test finds it.

One lab for the whole session, in a directory of its own, so that no other lab on this machine is met. Before
each test the walkthrough's two services run and everybody sees them; a test may break what it likes, the next
one begins with repairs. After each test the hand-made services must be as they were: the registrar never
touches what it does not own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.tools import require_root

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "three-hosts"))

from lab import Host, Lab, LabError

from tests.e2e.stubs import GLIBC, MUSL, Stub, build_musl_image
from tests.e2e.view import HAND_MADE, Endpoint, add_hand_made, assert_seen, endpoint, start_service

LABS = Path("/var/lib")
STATE = "portcall-e2e-{pid}"  # one for each run, so that two at once do not meet
DAEMONS = ("registrator", "resolver")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)
            # The first test waits for the lab, which may have to make its base image.
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what the daemons on the three hosts have to say."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab is not None:
        for host in lab.hosts:
            for name in DAEMONS:
                printed = host.docker("logs", "--tail", "25", name, check=False, stderr=True)
                report.sections.append((f"docker logs {name} on {host.name}", printed))
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    require_root("three hosts with dockerd and Consul, in namespaces of their own")
    for left in LABS.glob(STATE.format(pid="*")):
        if not Path(f"/proc/{left.name.rpartition('-')[2]}").exists():  # by a run that was killed
            Lab(left).down()
    lab = Lab(LABS / STATE.format(pid=os.getpid()))
    try:
        lab.up()
    except LabError as exc:
        pytest.fail(f"the three hosts did not come up: {exc}", pytrace=False)
    yield lab
    lab.down()


@pytest.fixture
def host1(lab: Lab) -> Host:
    return lab.hosts[0]


@pytest.fixture
def host2(lab: Lab) -> Host:
    return lab.hosts[1]


@pytest.fixture
def host3(lab: Lab) -> Host:
    return lab.hosts[2]


@pytest.fixture(scope="session")
def python() -> str:
    """The Python that runs this, and has portcall: a program on a host finds it by this path."""
    return sys.executable


@pytest.fixture(scope="session")
def musl(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Stub:
    """musl's stub resolver, as containers of host-3 may use it."""
    build_musl_image(lab.hosts[2], tmp_path_factory.mktemp("musl"))
    return MUSL


@pytest.fixture(params=["glibc", "musl"])
def stub(request: pytest.FixtureRequest) -> Stub:
    """Each C library's stub resolver in turn."""
    return request.getfixturevalue("musl") if request.param == "musl" else GLIBC


@pytest.fixture
def services(walkthrough: frozenset[Endpoint]) -> frozenset[Endpoint]:
    """Where the walkthrough's two services are: service1 on host-1, service2 on host-2."""
    return walkthrough


@pytest.fixture(autouse=True)
def walkthrough(lab: Lab) -> Iterator[frozenset[Endpoint]]:
    """The state every test begins with, and the promise every test ends with."""
    host1, host2, host3 = lab.hosts
    wanted = {host1: [*DAEMONS, "service1"], host2: [*DAEMONS, "service2"], host3: [*DAEMONS]}
    for host, names in wanted.items():
        running = set(host.docker("ps", "--format", "{{.Names}}").split())
        existing = set(host.docker("ps", "--all", "--format", "{{.Names}}").split())
        if unwanted := existing - running - set(DAEMONS) | running - set(names):
            host.docker("rm", "--force", *unwanted)
        for name in set(names) - running:
            if name in DAEMONS:
                host.docker("start", name)
            else:
                start_service(host, name)
    expected = frozenset({endpoint(host1, "service1"), endpoint(host2, "service2")})
    assert_seen(host3, expected, within=10)
    for host in lab.hosts:
        add_hand_made(host)
    before = {host: host.consul("/v1/agent/services")[HAND_MADE["ID"]] for host in lab.hosts}

    yield expected

    for host in lab.hosts:
        after = host.consul("/v1/agent/services").get(HAND_MADE["ID"])
        assert after == before[host], f"the registrar of {host.name} touched a service that is not its own"
