from __future__ import annotations

from typing import Any

import pytest

from discovery.model import Check, CheckID, ServiceID
from registrar.checks import Probe, Target, parse_checks, parse_duration
from registrar.containers import ContainerID
from registrar.metadata import Value

TARGET = Target("web", ContainerID("c0ffee"), ServiceID("s"), "10.0.0.1", 8080)


def parse(target: Target = TARGET, /, **values: str) -> tuple[tuple[Check, ...], list[str]]:
    metadata = {key: Value(text, f"label SERVICE_{key.upper()}") for key, text in values.items()}
    checks, _, problems = parse_checks(metadata, target)
    return checks, [str(problem) for problem in problems]


def one(target: Target = TARGET, /, **values: str) -> Check:
    checks, problems = parse(target, **values)
    assert problems == []
    assert len(checks) == 1
    return checks[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"check_http": "/health"}, {"http": "http://10.0.0.1:8080/health"}),
        ({"check_http": "health"}, {"http": "http://10.0.0.1:8080/health"}),
        ({"check_https": "/"}, {"http": "https://10.0.0.1:8080/"}),
        ({"check_tcp": "true"}, {"tcp": "10.0.0.1:8080"}),
        ({"check_grpc": "true"}, {"grpc": "10.0.0.1:8080"}),
        ({"check_grpc": "/shop.Cart"}, {"grpc": "10.0.0.1:8080/shop.Cart"}),
        (
            {"check_grpc": "1", "check_grpc_use_tls": "true", "check_tls_skip_verify": "true"},
            {"grpc": "10.0.0.1:8080", "grpc_use_tls": True, "tls_skip_verify": True},
        ),
        (
            {"check_http": "/", "check_method": "head", "check_body": "ping"},
            {"http": "http://10.0.0.1:8080/", "method": "HEAD", "body": "ping"},
        ),
        (
            {"check_http": "/", "check_header": '{"Host": "a", "X-Y": ["b", "c"]}'},
            {"http": "http://10.0.0.1:8080/", "header": {"Host": ("a",), "X-Y": ("b", "c")}},
        ),
        ({"check_http": "/", "check_http_method": "put"}, {"http": "http://10.0.0.1:8080/", "method": "PUT"}),
        (
            {"check_https": "/", "check_https_method": "HEAD", "check_http_method": "PUT"},
            {"http": "https://10.0.0.1:8080/", "method": "HEAD"},
        ),
        (
            {"check_http": "/", "check_method": "HEAD", "check_http_method": "PUT"},
            {"http": "http://10.0.0.1:8080/", "method": "HEAD"},
        ),
        ({"check_grpc": "1", "check_grpc_use_tls": "yes"}, {"grpc": "10.0.0.1:8080", "grpc_use_tls": True}),
        ({"check_grpc": "1", "check_grpc_use_tls": "any"}, {"grpc": "10.0.0.1:8080", "grpc_use_tls": True}),
        ({"check_grpc": "1", "check_grpc_use_tls": "False"}, {"grpc": "10.0.0.1:8080"}),
        (
            {"check_tcp": "1", "check_interval": "1m30s", "check_timeout": "500ms"},
            {"tcp": "10.0.0.1:8080", "interval": 90, "timeout": 0.5},
        ),
        (
            {"check_tcp": "1", "check_deregister_after": "10m"},
            {"tcp": "10.0.0.1:8080", "deregister_after": 600},
        ),
        (
            {"check_tcp": "1", "check_name": "accepts", "check_notes": "see wiki"},
            {"tcp": "10.0.0.1:8080", "name": "accepts", "notes": "see wiki"},
        ),
    ],
)
def test_each_kind(values: dict[str, str], expected: dict[str, Any]) -> None:
    assert one(**values) == Check(**{"interval": 10, **expected})


@pytest.mark.parametrize("status", ["passing", "warning", "critical"])
@pytest.mark.parametrize("kind", ["http", "https", "cmd", "ttl", "tcp", "grpc"])
def test_342_every_kind_of_check_can_begin_with_a_status_of_its_own(kind: str, status: str) -> None:
    text = "30s" if kind == "ttl" else "/"
    assert one(**{f"check_{kind}": text, "check_initial_status": status}).initial_status == status
    assert one(**{f"check_{kind}": text}).initial_status is None


def test_a_ttl_check_has_no_interval() -> None:
    assert one(check_ttl="30s", check_interval="5s") == Check(ttl=30)


def test_an_ipv6_address_stands_in_brackets() -> None:
    target = Target("web", ContainerID("c0ffee"), ServiceID("s"), "fd00::1", 80)
    assert one(target, check_http="/").http == "http://[fd00::1]:80/"
    assert one(target, check_tcp="1").tcp == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("winner", "losers"),
    [
        ("http", ["https", "cmd", "script", "ttl", "tcp", "grpc"]),
        ("https", ["cmd", "script", "ttl", "tcp", "grpc"]),
        ("cmd", ["script", "ttl", "tcp", "grpc"]),
        ("ttl", ["tcp", "grpc"]),
        ("tcp", ["grpc"]),
    ],
)
def test_the_first_kind_wins_and_the_others_are_told(winner: str, losers: list[str]) -> None:
    values = {"http": "/", "https": "/", "cmd": "x", "script": "x", "ttl": "9s", "tcp": "1", "grpc": "1"}
    given = {f"check_{kind}": values[kind] for kind in (winner, *losers)}
    checks, problems = parse(**given)
    assert checks == (one(**{f"check_{winner}": values[winner]}),)
    assert len(problems) == len(losers)
    assert all("number a second one, as in CHECK_2_TCP" in problem for problem in problems)


def test_430_several_checks_have_settings_of_their_own() -> None:
    checks, problems = parse(
        check_http="/health",
        check_2_tcp="1",
        check_2_interval="1s",
        check_10_ttl="1h",
    )
    assert problems == []
    assert checks == (
        Check(http="http://10.0.0.1:8080/health", interval=10),
        Check(tcp="10.0.0.1:8080", interval=1),
        Check(ttl=3600),
    )


def test_414_338_424_a_command_runs_inside_the_container() -> None:
    metadata = {
        "check_cmd": Value("/bin/check --fast 'a b'", "label SERVICE_CHECK_CMD"),
        "check_interval": Value("20s", "label SERVICE_CHECK_INTERVAL"),
        "check_2_cmd": Value("true", "label SERVICE_CHECK_2_CMD"),
        "check_2_interval": Value("1s", "label SERVICE_CHECK_2_INTERVAL"),
        "check_2_timeout": Value("2s", "label SERVICE_CHECK_2_TIMEOUT"),
    }
    checks, probes, problems = parse_checks(metadata, TARGET)
    assert problems == ()
    assert checks == (
        Check(id=CheckID("s:command"), ttl=90, notes="/bin/check --fast 'a b'"),
        Check(id=CheckID("s:command-2"), ttl=30, notes="true"),
    )
    container, service = ContainerID("c0ffee"), ServiceID("s")
    assert probes == (
        Probe(service, CheckID("s:command"), container, ("/bin/check", "--fast", "a b"), 20, 30),
        Probe(service, CheckID("s:command-2"), container, ("true",), 1, 2),
    )


def test_an_endless_interval_of_a_command_leaves_a_ttl_that_consul_takes() -> None:
    ttl = one(check_cmd="true", check_interval="2000000h").ttl
    assert ttl is not None
    assert 2**31 < ttl * 1e9 < 2**63


def test_a_command_may_be_called_docker_and_knows_where_the_service_is() -> None:
    metadata = {"check_docker": Value("nc $SERVICE_IP $SERVICE_PORT", "label SERVICE_CHECK_DOCKER")}
    (check,), (probe,), problems = parse_checks(metadata, TARGET)
    assert problems == ()
    assert check == Check(id=CheckID("s:command"), ttl=60, notes="nc 10.0.0.1 8080")
    assert probe.args == ("nc", "10.0.0.1", "8080")


def test_637_687_233_a_script_is_split_into_words_and_runs_only_where_it_is_allowed() -> None:
    text = "curl -s http://$SERVICE_IP:$SERVICE_PORT/ping -H 'a: b'"
    checks, problems = parse(check_script=text)
    assert checks == ()
    assert "--allow-script-checks" in problems[0]
    allowed = Target("web", ContainerID("c0ffee"), ServiceID("s"), "10.0.0.1", 8080, allow_scripts=True)
    check = one(allowed, check_script=text)
    assert check.args == ("curl", "-s", "http://10.0.0.1:8080/ping", "-H", "a: b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"check_tcp": "1", "check_interval": "15"}, "for example 15s; 10 s is used"),
        ({"check_tcp": "1", "check_timeout": "soon"}, "it is not a duration"),
        ({"check_tcp": "1", "check_interval": "0s"}, "must be above 0"),
        ({"check_tcp": "1", "check_interval": "-1s"}, "must be above 0"),
        ({"check_tcp": "1", "check_initial_status": "ok"}, "write passing, warning or critical"),
        ({"check_http": "/", "check_method": "G ET"}, "it is no HTTP method"),
        ({"check_http": "/", "check_header": "Host: a"}, "it is no header; write JSON"),
        ({"check_http": "/", "check_header": "[" * 100_000}, "it is no header; write JSON"),
        ({"check_http": "/", f"check_{'1' * 5000}_http": "/"}, "there is no such setting of a check"),
        ({"check_http": "/", "check_header": "[1]"}, "it is no header; write JSON"),
        ({"check_http": "/", "check_header": '{"a": 1}'}, "it is no header; write JSON"),
        ({"check_https": "/", "check_tls_skip_verify": "treu"}, "it is neither true nor false"),
        ({"check_tcp": "1", "check_intervall": "1s"}, "there is no such setting of a check; known: INTERVAL"),
        (
            {"check_tcp": "1", "check_frobnicate": "1"},
            "there is no such setting of a check; known: HTTP, HTTPS",
        ),
    ],
)
def test_a_wrong_setting_costs_only_itself(values: dict[str, str], message: str) -> None:
    kind = {key: text for key, text in values.items() if key in ("check_tcp", "check_http", "check_https")}
    checks, problems = parse(**values)
    assert checks == (one(**kind),)
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"check_http": "http://metadata.internal/token"}, "give only the path"),
        ({"check_http": "/a b"}, "give only the path"),
        ({"check_ttl": "30"}, "for example 30s"),
        ({"check_cmd": "echo 'open"}, "it cannot be split into words"),
        ({"check_cmd": " "}, "there is no command in it"),
        ({"check_interval": "10s"}, "it belongs to no check"),
    ],
)
def test_a_check_that_cannot_be_made_is_left_out(values: dict[str, str], message: str) -> None:
    checks, problems = parse(**values)
    assert checks == ()
    assert len(problems) == 1
    assert message in problems[0]


def test_without_an_address_only_checks_that_need_none_are_made() -> None:
    nowhere = Target("web", ContainerID("c0ffee"), ServiceID("s"), "", 8080)
    for kind in ("http", "https", "tcp", "grpc"):
        checks, problems = parse(nowhere, **{f"check_{kind}": "/"})
        assert checks == ()
        assert "nobody knows where to check" in problems[0]
    assert one(nowhere, check_ttl="5s") == Check(ttl=5)


def test_an_empty_value_is_no_value() -> None:
    assert parse(check_http="", check_tcp="", check_interval="") == ((), [])


def test_other_keys_are_not_looked_at() -> None:
    assert parse(name="web", tags="a", region="eu") == ((), [])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1m30s", 90), ("1.5h", 5400), (".5s", 0.5), ("250ms", 0.25), ("1us", 1e-6), ("1µs", 1e-6)],
)
def test_durations_are_written_as_in_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "10 s", "1d", "10s,"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it is not a duration"):
        parse_duration(text)
