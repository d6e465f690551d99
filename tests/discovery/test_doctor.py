"""What the doctor makes of facts, and that it finds real faults: each is produced, not described."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path

import dns.edns as dns_edns
import pytest

import discovery
from discovery import doctor
from discovery.agent import Agent
from discovery.backends.dns import Server
from discovery.cli import main
from discovery.cli.doctor import Diagnosis, Machine, examine
from discovery.doctor import Finding, ResolvConf, Skew
from tests.discovery.nameserver import NameServer, denial, srv
from tests.discovery.rawserver import Peer, RawServer, answer
from tests.tools import ConsulAgent, free_port

Look = Callable[..., Diagnosis]


# --- judgements ----------------------------------------------------------------------------------------


def test_of_several_levels_the_worst_counts():
    ok, warning, problem = (Finding("x", level, "") for level in ("ok", "warning", "problem"))
    assert doctor.worst([]) == doctor.worst([ok]) == "ok"
    assert doctor.worst([ok, warning]) == "warning"
    assert doctor.worst([problem, ok, warning]) == "problem"


@pytest.mark.parametrize(
    ("text", "servers", "search", "ndots"),
    [
        ("", (), (), 1),
        ("nameserver 127.0.0.1\nnameserver ::1 # mine\n", ("127.0.0.1", "::1"), (), 1),
        ("domain a.example\nsearch Service.Consul. b.example", (), ("service.consul", "b.example"), 1),
        ("search a.example\ndomain b.example", (), ("b.example",), 1),
        ("options timeout:1 ndots:5 rotate\n; nameserver 10.0.0.1", (), (), 5),
        ("options ndots:x\nnameserver\n", (), (), 1),
    ],
)
def test_resolv_conf_is_read_as_the_c_library_does(text, servers, search, ndots):
    assert ResolvConf.from_text(text) == ResolvConf(servers, search, ndots)


@pytest.mark.parametrize(
    ("conf", "level", "says"),
    [
        (ResolvConf(search=("service.consul",)), "ok", "`web` alone is a host name"),
        (ResolvConf(search=("example",)), "warning", "service.consul is no search domain"),
        (ResolvConf(search=("service.consul",), ndots=0), "warning", "ndots:0"),
        (ResolvConf(search=("service.consul", "b"), ndots=5), "warning", "with all 2 search domains"),
    ],
)
def test_search_domains(conf, level, says):
    finding = doctor.judge_search(conf, "consul")
    assert (finding.level, says in finding.says) == (level, True)


@pytest.mark.parametrize(
    ("knows", "musl", "level", "says"),
    [
        ((False, False), True, None, ""),
        ((True, True), True, "ok", "Every name server"),
        ((True, False), True, "problem", "b does not know the domain consul, and musl asks all at once"),
        ((False, True), True, "problem", "a does not know the domain consul, and musl asks all at once"),
        ((False, True), False, "problem", "is asked first"),
        ((True, False), False, "warning", "whenever the first is slow"),
    ],
)
def test_several_name_servers(knows, musl, level, says):
    conf = ResolvConf(("a", "b"))
    finding = doctor.judge_libc(conf, dict(zip("ab", knows, strict=True)), musl=musl, domain="consul")
    assert (finding and finding.level) == level
    assert finding is None or says in finding.says


@pytest.mark.parametrize(
    ("agent", "asked", "answered", "seconds"),
    [
        (100.0, 100.2, 100.3, 0.0),  # it shows whole seconds
        (100.0, 100.9, 101.2, 0.0),
        (105.0, 100.0, 100.5, 4.5),
        (90.0, 100.0, 100.5, -9.0),
        (100.0, 90.0, 110.0, 0.0),  # the answer took twenty seconds, and nothing can be said
    ],
)
def test_clocks_differ_by_as_little_as_their_showing_allows(agent, asked, answered, seconds):
    assert Skew(agent, asked, answered).seconds == pytest.approx(seconds)


def test_clocks_that_differ_are_a_warning():
    assert doctor.judge_clock(Skew(100.0, 101.0, 101.0)).level == "ok"
    assert "40 s ahead of ours" in doctor.judge_clock(Skew(140.0, 99.0, 100.0)).says
    behind = doctor.judge_clock(Skew(60.0, 100.0, 101.0))
    assert behind.level == "warning" and "39 s behind ours" in behind.says and "NTP" in behind.advice


@pytest.mark.parametrize(
    ("reached", "advertised", "here", "level", "says"),
    [
        ("here", "127.0.0.1", True, "ok", "on this host, as 127.0.0.1"),
        ("here", "", True, "ok", "on this host."),
        ("here", "10.0.0.1", True, "ok", "on this host, as 10.0.0.1"),
        ("here", "10.0.0.1", False, "warning", "on another host (10.0.0.1)"),  # a tunnel
        ("gateway", "172.17.0.1", False, "ok", "on this container's host, as 172.17.0.1"),
        ("gateway", "127.0.0.1", True, "warning", "in this container is the container itself"),
        ("network", "10.0.0.1", False, "warning", "on another host (10.0.0.1)"),
        ("network", "", False, "warning", "on another host (http://x:8500)"),
        ("network", "127.0.0.1", True, "warning", "cannot be reached from here"),
    ],
)
def test_where_the_agent_is(reached, advertised, here, level, says):
    finding = doctor.judge_place("http://x:8500", advertised, reached=reached, advertised_here=here)
    assert (finding.level, says in finding.says) == (level, True), finding


@pytest.mark.parametrize(
    ("said", "token", "says", "advice"),
    [
        ("ACL not found", True, "does not know our token", "CONSUL_HTTP_TOKEN"),
        ("Permission denied", True, "our token lacks service:read", 'service_prefix "" { policy = "read" }'),
        (
            "Permission denied",
            False,
            "we send no token, and anybody lacks",
            "the anonymous token, or a token",
        ),
        (
            "Permission denied: token with AccessorID 'a' lacks permission 'node:read' on \"n\"",
            True,
            "our token lacks node:read",
            'node_prefix "" { policy = "read" }',
        ),
        ("Permission denied: token lacks permission 'operator:read'", True, "lacks", 'operator = "read"'),
    ],
)
def test_a_refusal_says_which_policy_is_missing(said, token, says, advice):
    finding = doctor.judge_access(said, path="/v1/x", token=token, needed="service:read")
    assert finding.level == "problem"
    assert says in finding.says and advice in finding.advice, finding


def test_the_kernel_s_table_of_connections_is_counted():
    table = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:A000 0100007F:2134 01 00000000\n"
        "   1: 0100007F:A001 0100007F:2134 06 00000000\n"  # TIME_WAIT
        "   2: 0100007F:A002 0200007F:2134 01 00000000\n"
        "   3: 0100007F:2134 0100007F:A000 01 00000000\n"  # the agent's own end
    )
    six = table.replace("0100007F:2134 01", "0000000000000000FFFF00000100007F:2134 01")
    if sys.byteorder == "little":
        assert doctor.connections_to(table, {("127.0.0.1", 8500)}) == 1
        assert doctor.connections_to(six, {("127.0.0.1", 8500)}) == 1
        assert doctor.connections_to(table, {("127.0.0.1", 8500), ("127.0.0.2", 8500)}) == 2
    assert doctor.connections_to("", {("127.0.0.1", 8500)}) == 0


@pytest.mark.parametrize(("count", "level"), [(0, "ok"), (159, "ok"), (160, "warning"), (200, "problem")])
def test_connections_are_compared_with_the_limit(count, level):
    assert doctor.judge_connections(count, 200).level == level


def test_only_what_looks_like_ours_is_a_misspelling():
    known = {"CONSUL_HTTP_ADDR", "CONSUL_CACERT"}
    finding = doctor.judge_spelling("CONSUL_HTTP_ADDRESS", known)
    assert finding is not None and "CONSUL_HTTP_ADDR was meant" in finding.advice
    assert doctor.judge_spelling("CONSUL_HTTP_ADDR", known) is None
    assert doctor.judge_spelling("CONSUL_LOCAL_CONFIG", known) is None


# --- a machine with faults -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guess leads anywhere, whatever this machine is; and time is plenty."""
    monkeypatch.setattr("discovery.cli.doctor._HTTP_TIMEOUT", 20.0)
    monkeypatch.setattr("discovery.cli.doctor._DNS_TIMEOUT", 20.0)
    monkeypatch.setattr("discovery.sources._CONTAINER_MARKS", ())
    monkeypatch.setattr("discovery.sources._RESOLV_CONF", Path("/nonexistent"))
    monkeypatch.setattr("discovery.sources._is_local", lambda address: False)


@pytest.fixture
def look(agent: Agent, tmp_path: Path) -> Look:
    """Examine a machine that is sound but for what the test says: an environment, or fields of `Machine`."""

    def examined(name: str | None = None, /, *, env: dict[str, object] | None = None, **fields: object):
        settings = {
            "CONSUL_HTTP_ADDR": agent.url,
            "DISCOVERY_DNS": "off",
            "DISCOVERY_TIMEOUT": "20",
            "DISCOVERY_SHARE": str(tmp_path / "shared"),
            "DISCOVERY_CACHE": str(tmp_path / "cache"),
            **(env or {}),
        }
        path = (str(Path(discovery.__file__).parents[1]), *sys.path)
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.touch()
        sound = Machine({key: str(value) for key, value in settings.items()}, path, resolv_conf)
        return examine(dataclasses.replace(sound, **fields), name)

    return examined


def about(found: Diagnosis, subject: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.about == subject]


def the(found: Diagnosis, subject: str) -> Finding:
    (finding,) = about(found, subject)
    return finding


def consul(*answers: tuple[str, bytes]) -> Callable[[Peer], None]:
    """Serve as an agent that has all, but answers paths that begin so with these bytes."""
    usual = (
        ("/v1/status/leader", answer("127.0.0.1:8300")),
        ("/v1/agent/self", answer({"Config": {"NodeName": "n", "Datacenter": "dc1", "Version": "1.8.7"}})),
        ("/v1/", answer({"consul": []}, headers="X-Consul-Index: 5\r\n")),
    )

    def serve(peer: Peer) -> None:
        while request := peer.request():
            target = request.split()[1]
            peer.send(next(raw for start, raw in (*answers, *usual) if target.startswith(start)))

    return serve


def denied(said: bytes = b"Permission denied") -> bytes:
    return answer(said, "403 Forbidden")


@pytest.fixture
def faulty(look: Look) -> Iterator[Callable[..., Diagnosis]]:
    """Examine a machine whose agent gives these answers."""
    with ExitStack() as servers:

        def examined(*answers: tuple[str, bytes], name: str | None = None, **env: object) -> Diagnosis:
            server = servers.enter_context(RawServer(consul(*answers)))
            return look(name, env={"CONSUL_HTTP_ADDR": server.config.url, **env})

        yield examined


def test_a_sound_machine_has_no_fault_and_says_what_was_looked_at(look, register):
    register("web", 8080)
    register("web", 8081, status="critical")
    found = look("web")
    assert doctor.worst(found.findings) == "ok", found
    subjects = ["environment", "package", "static", "shared", "consul"]
    subjects += ["leader", "clock", "place", "connections", "dns", "disk", "lookup"]
    assert [finding.about for finding in found.findings] == subjects
    assert "1 of 2 instances of 'web' are healthy" in the(found, "consul").says
    assert "(CONSUL_HTTP_ADDR)" in the(found, "consul").says
    assert "returns 127.0.0.1:8080, one of 1, from Consul" in the(found, "lookup").says
    assert found.exit_code == 0
    everything = look()
    assert doctor.worst(everything.findings) == "ok"
    assert "2 services known" in the(everything, "lookup").says


def test_the_exit_code_is_that_of_a_lookup(look, register):
    register("web", 8080, status="critical")
    assert look("web").exit_code == 4
    unknown = look("wep")
    assert (unknown.exit_code, the(unknown, "lookup").level) == (3, "problem")
    assert the(unknown, "lookup").says.endswith("did you mean 'web'?")
    away = look("web", env={"CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port()}", "DISCOVERY_CACHE": "off"})
    assert away.exit_code == 5
    assert look("web", env={"CONSUL_HTTP_SSL": "perhaps"}).exit_code == 2


def test_a_lookup_that_fails_over_works(faulty):
    row = {
        "Node": {"Node": "n", "Address": "10.0.0.1", "Datacenter": "dc1"},
        "Service": {"ID": "web", "Service": "web", "Port": 80},
        "Checks": [],
    }
    dc9 = answer(b"No path to datacenter", "500 Internal Server Error")
    found = faulty(
        ("/v1/health/service/web?dc=dc9", dc9),
        ("/v1/health/service/web", answer([row], headers="X-Consul-Index: 5\r\n")),
        name="web",
        DISCOVERY_DC="dc9",
        DISCOVERY_FAILOVER="dc1",
    )
    assert "returns 10.0.0.1:80, one of 1, from Consul" in the(found, "lookup").says
    assert found.exit_code == 0


def test_every_fault_comes_with_what_to_do(look, faulty, register):
    for found in (look("web"), faulty(("/v1/", denied())), look(env={"DISCOVERY_DNS": "127.0.0.1:1"})):
        assert all(finding.advice for finding in found.findings if finding.level != "ok")
        assert all(finding.says.endswith((".", "?")) for finding in found.findings), found


# the environment


@pytest.mark.parametrize(
    ("variable", "value", "level", "says", "advice", "code"),
    [
        ("CONSUL_HTTP_SSL", "perhaps", "problem", "is neither true nor false", "Write true or false", 2),
        ("CONSUL_HTTP_ADDR", "ftp://x", "problem", "cannot use the Consul address", "Use http, https", 2),
        ("DISCOVERY_TIMEOUT", "soon", "problem", "DISCOVERY_TIMEOUT='soon'", "Give seconds", 2),
        ("DISCOVERY_TIMOUT", "5", "problem", "is no address", "if DISCOVERY_TIMEOUT was meant", 0),
        ("DISCOVERY_OTHER", "10.0.0.1", "problem", "is no address", "host:port", 0),
        ("DISCOVERY_STRATEGY", "best", "problem", "no strategy is called 'best'", "There are", 2),
        ("DISCOVERY_DNS", "dns.example", "problem", "is no name server", "Write an address", 2),
        ("CONSUL_HTTP_ADDRESS", "x", "warning", "means nothing", "if CONSUL_HTTP_ADDR was meant", 0),
        ("CONSUL_CACERT", "/nonexistent", "problem", "no such file", "Correct CONSUL_CACERT", 0),
        ("CONSUL_CLIENT_CERT", "/dev/null", "warning", "without CONSUL_CLIENT_KEY", "Set CONSUL", 0),
        ("CONSUL_GRPC_ADDR", "x", "ok", "can be used", "", 0),
    ],
)
def test_variables(look, register, variable, value, level, says, advice, code):
    register("web", 8080)
    found = look("web", env={variable: value})
    finding = the(found, "environment")
    assert (finding.level, found.exit_code) == (level, code)
    assert says in finding.says and advice in finding.advice, finding


def test_all_wrong_variables_are_told_and_no_secret(look):
    env = {"CONSUL_HTTP_SSL": "x", "DISCOVERY_IDLE": "y", "CONSUL_HTTP_TOKEN": "swordfish"}
    found = look("web", env=env)
    assert len(about(found, "environment")) == 2
    assert "swordfish" not in repr(found)
    sound = look("web", env={"CONSUL_HTTP_TOKEN": "swordfish"})
    assert "CONSUL_HTTP_TOKEN" in the(sound, "environment").says and "swordfish" not in repr(sound)


def test_no_variables_at_all(monkeypatch):
    monkeypatch.setattr("discovery.sources.name_servers", lambda config: [])
    found = examine(Machine({}, sys.path, name_servers=lambda config: []))
    assert "the defaults hold" in the(found, "environment").says
    assert "http://127.0.0.1:8500 (the default)" in the(found, "consul").says
    assert the(found, "disk").level == "warning"  # there is no HOME to write to


# the package


def test_a_file_of_the_same_name_in_the_current_directory_is_found(tmp_path, agent):
    (tmp_path / "discovery.py").write_text("raise ImportError('not me')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "discovery.cli", "doctor", "--json"],
        cwd=tmp_path,
        env={"CONSUL_HTTP_ADDR": agent.url, "DISCOVERY_DNS": "off", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    finding = json.loads(done.stdout)["findings"][1]
    assert (finding["about"], finding["level"]) == ("package", "problem")
    assert f"finds {tmp_path / 'discovery.py'} here" in finding["says"]
    assert "Rename" in finding["advice"]


def test_another_distribution_with_this_package_is_found(look, tmp_path, monkeypatch):
    info = tmp_path / "site" / "discovery_client-1.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: discovery-client\nVersion: 1.1.0\n")
    (info / "top_level.txt").write_text("discovery\n")
    monkeypatch.syspath_prepend(info.parent)
    finding = the(look(), "package")
    assert (
        finding.level == "problem" and "discovery-client installs a package named discovery" in finding.says
    )


def test_a_package_that_was_written_into_is_found(look, tmp_path, monkeypatch):
    info = tmp_path / "site" / "portcall-9.9.dist-info"
    (info.parent / "discovery").mkdir(parents=True)
    (info.parent / "discovery" / "__init__.py").write_text("whose am I?")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: portcall\nVersion: 9.9\n")
    (info / "RECORD").write_text(
        "discovery/__init__.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n"
        "discovery/gone.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n"
        "portcall-9.9.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(info.parent)
    finding = the(look(), "package")
    assert finding.level == "problem"
    assert "has changed discovery/__init__.py, discovery/gone.py" in finding.says
    (info.parent / "discovery" / "__init__.py").write_text("")
    (info.parent / "discovery" / "gone.py").write_text("")
    assert the(look(), "package").level == "ok"


# what is fixed, shared, written down


def test_what_is_fixed_is_told(look, tmp_path):
    file = tmp_path / "services.toml"
    file.write_text('web = ["10.0.0.1:80", "10.0.0.2:80"]')
    found = look("web", env={"DISCOVERY_STATIC": file})
    assert "2 to choose from; nobody else is asked" in the(found, "static").says
    assert found.exit_code == 0 and "from what is fixed" in the(found, "lookup").says
    assert (
        "not among the services that are fixed"
        in the(look("db", env={"DISCOVERY_STATIC": file}), "static").says
    )
    file.write_text("web = [")
    broken = look("web", env={"DISCOVERY_STATIC": file})
    assert (broken.exit_code, the(broken, "static").level) == (2, "problem")


@pytest.mark.parametrize(
    ("variable", "subject"), [("DISCOVERY_SHARE", "shared"), ("DISCOVERY_CACHE", "disk")]
)
def test_a_directory_that_cannot_be_written_to(look, register, tmp_path, variable, subject):
    register("web", 8080)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir(mode=0o755)
    for directory, reason in (("file/below", "not a directory"), ("open", "mode 700; it has 755")):
        found = look("web", env={variable: tmp_path / directory})
        finding = the(found, subject)
        assert (finding.level, found.exit_code) == ("warning", 0)
        assert reason in finding.says and variable in finding.advice
    assert "off" in the(look(env={"DISCOVERY_SHARE": "off"}), "shared").says
    assert the(look(env={"DISCOVERY_CACHE": "off"}), "disk").level == "warning"


def test_the_doctor_leaves_nothing_of_its_own(look, tmp_path):
    look()
    assert not list((tmp_path / "shared").glob("doctor*")) + list((tmp_path / "cache").glob("doctor*"))


def test_what_was_written_down_is_no_sign_of_health(look, agent, register):
    register("web", 8080)
    assert (look("web").exit_code, look().exit_code) == (0, 0)
    agent.close()
    names = look()
    assert (the(names, "lookup").level, names.exit_code) == ("warning", 0)
    found = look("web")
    assert "1 of them are written down" in the(found, "disk").says
    assert (the(found, "lookup").level, found.exit_code) == ("warning", 0)
    assert "from what was written down" in the(found, "lookup").says
    assert the(found, "consul").level == "problem"


# the agent


def test_an_agent_that_is_not_there(look):
    address = f"127.0.0.1:{free_port()}"
    finding = the(look(env={"CONSUL_HTTP_ADDR": address}), "consul")
    assert finding.level == "problem"
    assert f"http://{address} (CONSUL_HTTP_ADDR) cannot be asked: connection refused" in finding.says


def test_an_agent_that_is_none(faulty):
    found = faulty(("/v1/", answer(b"<html>")))
    assert "is that a Consul agent?" in the(found, "consul").says
    assert found.exit_code == 5


def test_an_address_on_the_command_line_is_called_so(agent):
    found = examine(
        Machine({"DISCOVERY_DNS": "off", "CONSUL_HTTP_ADDR": "127.0.0.1:1"}, sys.path), None, agent.url
    )
    assert "(--consul)" in the(found, "consul").says


def test_a_token_that_is_not_known(faulty):
    found = faulty(("/v1/health", denied(b"ACL not found")), name="web", CONSUL_HTTP_TOKEN="t")
    assert "does not know our token" in the(found, "access").says
    assert found.exit_code == 5


def test_a_token_that_may_not_read_services(faulty):
    found = faulty(("/v1/health", denied()), name="web", CONSUL_HTTP_TOKEN="t")
    assert 'service_prefix "" { policy = "read" }' in the(found, "access").advice
    assert "instances" not in the(found, "consul").says  # nobody told how many there are


def test_what_lookups_do_not_need_is_a_warning(faulty):
    found = faulty(("/v1/agent/self", denied()))
    assert (the(found, "access").level, found.exit_code) == ("warning", 0)
    assert 'agent_prefix "" { policy = "read" }' in the(found, "access").advice


@pytest.mark.parametrize(
    "answers",
    [
        [("/v1/catalog", answer({})), ("/v1/agent/self", denied())],
        [("/v1/catalog", answer({}))],  # Consul itself is a service, so this cannot be all
        [("/v1/catalog", answer({}, headers="X-Consul-Results-Filtered-By-ACLs: true\r\n"))],
    ],
)
def test_services_that_are_hidden(faulty, answers):
    assert "hide services" in the(faulty(*answers), "access").says


def test_what_is_not_there_is_not_hidden(faulty):
    found = faulty(("/v1/health", answer([])), ("/v1/agent/self", denied()), name="web")
    assert (the(found, "access").level, found.exit_code) == ("warning", 3)  # other services can be seen


def test_an_agent_that_cannot_answer_what_a_lookup_asks(faulty):
    for said in (
        answer(b"rpc error", "500 Error"),
        answer([{"Service": 7}]),
        answer(b"No path to datacenter", "500 X"),
    ):
        found = faulty(("/v1/health", said), ("/v1/agent/self", answer([])), name="web")
        sound, broken = about(found, "consul")
        assert (sound.level, broken.level, found.exit_code) == ("ok", "problem", 5)
        assert "does not answer what a lookup asks" in broken.says


def test_acls_of_a_real_consul(look, start_consul: Callable[..., ConsulAgent], consul_executable: str):
    """Consul filters what an anonymous client may not read, and says nothing of it."""
    root = "8e4f6a9c-0b53-4d4e-9a57-3a1f2f9f6d10"
    first = "initial_management" if ConsulAgent(binary=consul_executable).version >= (1, 11) else "master"
    acl = {"enabled": True, "default_policy": "deny", "tokens": {first: root, "agent": root}}
    real = start_consul(config={"acl": acl}, token=root)
    found = look("consul", env={"CONSUL_HTTP_ADDR": real.url})
    assert "hide services" in the(found, "access").says
    assert found.exit_code == 3 and "hidden by the ACLs" in the(found, "lookup").advice
    stranger = look("consul", env={"CONSUL_HTTP_ADDR": real.url, "CONSUL_HTTP_TOKEN": "b" * 36})
    assert "does not know our token" in the(stranger, "access").says
    assert stranger.exit_code == 5


@pytest.mark.parametrize(
    "answers",
    [
        [("/v1/status/leader", answer("")), ("/v1/catalog", answer(b"No cluster leader", "500 Error"))],
        [("/v1/status/leader", answer(b"No known Consul servers", "500 Error"))],
    ],
)
def test_a_cluster_without_a_leader(faulty, answers):
    finding = the(faulty(*answers), "leader")
    assert finding.level == "problem" and "no leader" in finding.says and "raft list-peers" in finding.advice


def test_a_clock_that_is_wrong(faulty):
    late = f"Date: {formatdate(time.time() - 3600, usegmt=True)}\r\n"
    finding = the(faulty(("/v1/agent/self", answer({}, headers=late))), "clock")
    assert finding.level == "warning" and "behind ours" in finding.says
    assert not about(faulty(("/v1/", answer({}, headers="Date: noon\r\n"))), "clock")


def test_an_agent_of_another_host(look):
    with Agent(http=("127.0.0.1", 0), node="elsewhere", address="192.0.2.7") as other:
        finding = the(look(env={"CONSUL_HTTP_ADDR": other.url}), "place")
    assert finding.level == "warning" and "on another host (192.0.2.7)" in finding.says


def test_an_agent_behind_a_unix_socket(look, tmp_path):
    with RawServer(consul(), unix=str(tmp_path / "consul.sock")) as server:
        found = look(env={"CONSUL_HTTP_ADDR": server.config.url})
    assert the(found, "place").level == "ok"
    assert not about(found, "connections")


def test_connections_that_run_out(look, agent):
    with ExitStack() as opened:

        def open_to(count: int) -> None:
            while len(held) < count:
                held.append(opened.enter_context(socket.create_connection(agent.http)))

        held: list[socket.socket] = []
        open_to(170)
        found = look()
        assert (the(found, "connections").level, found.exit_code) == ("warning", 0)
        assert "takes 200 from one address" in the(found, "connections").says
        open_to(200)
        refused = look(env={"DISCOVERY_CACHE": "off"})
        assert (the(refused, "connections").level, refused.exit_code) == ("problem", 5)
        assert "http_max_conns_per_client" in the(refused, "connections").advice
        assert not about(refused, "leader")  # whom nobody could ask


def test_without_the_kernel_s_tables_there_is_nothing_to_count(look, tmp_path):
    found = look(connections=[tmp_path / "none"])
    assert "has 0 connections" in the(found, "connections").says


# DNS

TWO = srv(("10.0.0.1", 80), ("10.0.0.2", 80))


@pytest.fixture
def dns(look: Look, tmp_path: Path) -> Iterator[Callable[..., Diagnosis]]:
    """Examine a machine whose resolv.conf names servers that answer so, at 127.0.0.11, .12 and so on."""
    with ExitStack() as started:

        def examined(
            *answers: object, more: str = "search service.consul", musl: bool = False, **env: object
        ) -> Diagnosis:
            servers = [
                started.enter_context(NameServer(reply, host=f"127.0.0.{n}")).server
                for n, reply in enumerate(answers, 11)
            ]
            file = tmp_path / "resolv.conf.test"
            file.write_text("\n".join([more, *(f"nameserver {server.host}" for server in servers)]))
            return look(
                "web",
                env={"DISCOVERY_DNS": ",".join(map(str, servers)), **env},
                resolv_conf=file,
                musl=musl,
                name_servers=lambda config: servers,
            )

        yield examined


def test_a_name_server_that_knows_the_registry(dns, register):
    register("web", 8080)
    found = dns(TWO)
    assert "knows the domain consul and 2 instances of 'web'" in the(found, "dns").says
    assert (the(found, "search").level, the(found, "libc").level) == ("ok", "ok")
    denying = dns(denial())
    assert "0 instances" in the(denying, "dns").says and the(denying, "dns").level == "ok"


def test_a_machine_with_dns_alone(dns, look):
    away = f"127.0.0.1:{free_port()}"
    found = dns(TWO, CONSUL_HTTP_ADDR=away)
    assert (found.exit_code, the(found, "consul").level) == (0, "problem")  # somebody chose it
    assert "from DNS" in the(found, "lookup").says
    with NameServer(denial()) as names:
        anything = look(env={"CONSUL_HTTP_ADDR": away, "DISCOVERY_DNS": names.server})
    assert anything.exit_code == 0 and "through DNS" in the(anything, "lookup").says


def test_a_public_name_server(dns, register):
    register("web", 8080)
    found = dns(denial("."))
    assert the(found, "dns").level == "problem"  # DISCOVERY_DNS names it
    assert "not the authority of consul" in the(found, "dns").says
    assert "services have no host names here" in the(found, "search").says
    assert found.exit_code == 0


def test_a_guess_that_nobody_needs_may_be_silent(dns, look, register):
    register("web", 8080)
    nobody = Server("127.0.0.1", free_port())
    found = look("web", env={"DISCOVERY_DNS": "auto"}, name_servers=lambda config: [nobody])
    assert the(found, "dns").level == "ok" and "Nobody needs it" in the(found, "dns").says
    assert f"{nobody} (a guess)" in the(found, "dns").says
    needed = look("nope", env={"CONSUL_HTTP_ADDR": "127.0.0.1:1", "DISCOVERY_DNS": "127.0.0.1:1"})
    assert the(needed, "dns").level == "problem"


def test_a_name_server_whose_registry_is_away(dns):
    def stale(query):
        reply = TWO(query)
        reply.use_edns(0, options=[dns_edns.EDEOption(3)])
        return reply

    assert "cannot reach the registry" in the(dns(stale), "dns").says


def test_a_missing_search_domain(dns):
    found = dns(TWO, more="search example")
    assert (
        the(found, "search").level == "warning"
        and "--dns-search service.consul" in the(found, "search").advice
    )


def test_musl_with_two_name_servers(dns):
    found = dns(TWO, denial("."), musl=True)
    assert the(found, "libc").level == "problem"
    assert "127.0.0.12 does not know the domain consul, and musl asks all at once" in the(found, "libc").says
    assert "--dns 127.0.0.11" in the(found, "libc").advice
    assert the(dns(TWO, TWO, musl=True), "libc").level == "ok"
    assert the(dns(TWO, denial(".")), "libc").level == "warning"


def test_a_name_that_dns_cannot_carry(dns, look):
    with NameServer(denial()) as names:
        found = look("my.web", env={"DISCOVERY_DNS": names.server})
        asked = [str(question.question[0].name) for question in names.questions]
    assert "cannot carry the name 'my.web'" in about(found, "dns")[0].says
    assert asked == ["consul.service.consul."]


def test_this_machine_can_be_described():
    here = Machine.here()
    assert here.path[0] == str(Path.cwd())
    assert here.resolv_conf == Path("/etc/resolv.conf")


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_prints_lines_of_80_columns_or_json(agent, register, capsys, monkeypatch):
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
    register("web", 8080)
    assert main(["doctor", "web"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in "".join(lines)
    assert lines[0].split()[:2] == ["ok", "environment"]
    assert any(line.split()[:2] == ["warning", "disk"] for line in lines)  # the tests set DISCOVERY_CACHE=off
    assert any(line.strip().startswith("-> Set DISCOVERY_CACHE") for line in lines)
    assert main(["doctor", "nope", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["service"], told["exit_code"]) == ("nope", 3)
    assert set(told["findings"][0]) == {"about", "level", "says", "advice", "seconds"}


def test_the_command_refuses_what_is_no_name(capsys):
    assert main(["doctor", "a b"]) == 2
    assert main(["doctor", "--consul", "ftp://x"]) == 2
    assert "unknown scheme" in capsys.readouterr().err
