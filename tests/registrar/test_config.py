"""Registrator's command line, as ``Settings``."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from discovery.errors import ConfigurationError
from registrar.config import Settings, add_options, normalised, settings_from
from registrar.rules import Rules


def settings(line: str, /, **env: str) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    return settings_from(parser.parse_args(normalised(line.split())), env)


def test_without_options_nothing_is_assumed() -> None:
    plain = settings("consul://10.0.0.1:8500")
    assert plain.uri == "consul://10.0.0.1:8500"
    assert plain.rules == Rules()
    assert plain.owner == ""
    assert plain.resync_interval == 60
    assert plain.retry_attempts is None
    assert not plain.deregister_on_exit


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-ip 10.0.0.5", Rules(ip="10.0.0.5")),
        ("-ip=10.0.0.5", Rules(ip="10.0.0.5")),
        ("--ip 10.0.0.5", Rules(ip="10.0.0.5")),
        ("--ip=fd00::5", Rules(ip="fd00::5")),
        ("-ip host.example", Rules(ip="host.example")),
        ("-ip 127.0.0.1", Rules(ip="127.0.0.1")),
        ("-internal", Rules(internal=True)),
        ("--internal", Rules(internal=True)),
        ("-internal=true", Rules(internal=True)),
        ("-internal=false", Rules()),
        ("-explicit", Rules(explicit=True)),
        ("-useIpFromLabel net.ip", Rules(use_ip_from_label="net.ip")),
        (r"-tags a,b\,c", Rules(tags=("a", "b,c"))),
        ("-tags {container},{label:x.y},{env:Z}", Rules(tags=("{container}", "{label:x.y}", "{env:Z}"))),
        ("-network back", Rules(network="back")),
        ("--service-prefix test", Rules(prefix="test")),
        ("--every-binding", Rules(every_binding=True)),
        ("--allow-service-ip", Rules(allow_service_ip=True)),
        ("-allow-loopback", Rules(allow_loopback=True)),
        ("-allow-script-checks", Rules(allow_script_checks=True)),
        ("-cleanup -deregister always", Rules()),
        ("-deregister on-success --keep-failed 10m", Rules(deregister="on-success", keep_failed=600)),
        ("-deregister never", Rules(deregister="never")),
        ("-ttl 60 -ttl-refresh 30", Rules(heartbeat=60)),
        ("--suffix never", Rules(suffix="never")),
        ("--allow-name a-* --allow-name b", Rules(allow_names=("a-*", "b"))),
        ("--label-filter a --label-filter b=c=d", Rules(label_filter=(("a", None), ("b", "c=d")))),
        ("--drain maintenance", Rules(drain="maintenance")),
        ("--ready --no-healthcheck", Rules(ready=True, healthcheck=False)),
    ],
)
def test_options_that_are_rules(options: str, expected: Rules) -> None:
    assert settings(f"{options} consul://10.0.0.1").rules == expected


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ("-resync 30", "resync_interval", 30),
        ("-resync 0", "resync_interval", 0),
        ("-resync -1", "resync_interval", 0),
        ("-retry-attempts -1", "retry_attempts", -1),
        ("-retry-attempts=0", "retry_attempts", 0),
        ("-retry-interval 500", "retry_interval", 0.5),
        ("-owner host-1", "owner", "host-1"),
        ("-deregister-on-exit", "deregister_on_exit", True),
        ("-ttl 60 -ttl-refresh 30", "heartbeat_interval", 30),
        ("--metrics 127.0.0.1:9100", "metrics", ("127.0.0.1", 9100)),
        ("--metrics [::1]:9100", "metrics", ("::1", 9100)),
        ("--heartbeat-file /run/alive", "heartbeat_file", "/run/alive"),
    ],
)
def test_other_options(options: str, field: str, value: Any) -> None:
    assert getattr(settings(f"{options} consul://10.0.0.1"), field) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-ttl 60", "give both, or neither"),
        ("-ttl-refresh 60", "give both, or neither"),
        ("-ttl 30 -ttl-refresh 30", "must be greater than -ttl-refresh"),
        ("-ttl soon -ttl-refresh 1", "-ttl='soon' is not a whole number"),
        ("-retry-interval 0", "must be greater than 0 milliseconds"),
        ("-retry-interval -5", "must be greater than 0 milliseconds"),
        ("-retry-attempts -2", "-retry-attempts=-2 is not possible"),
        ("-ttl -1 -ttl-refresh 1", "-ttl=-1 is not possible"),
        ("-deregister never-ever", "-deregister='never-ever' must be"),
        ("--keep-failed 10", "--keep-failed='10': it is not a duration; write a number with its unit"),
        ("--metrics 9100", "--metrics='9100' is no address; write for example 127.0.0.1:9100"),
        ("--metrics localhost:9100", "is no address"),
        ("--metrics 127.0.0.1:99999", "is no address"),
        ("--service-prefix a/b", "from --service-prefix holds '/'"),
        ("--label-filter =x", "--label-filter='=x' names no label"),
        ("-internal=maybe", "'-internal=maybe' is neither on nor off"),
        ("-ip 0.0.0.0", "every address, which nobody can connect to"),
        ("-ip not/an/ip", "is no address"),
        ("-tags {{.Config.Hostname}}", "'{{.Config.Hostname}}' becomes '{hostname}'"),
        ("-tags {nonsense}", "{nonsense} is not known"),
        ("-tags {label}", "{label} is not known"),
    ],
)
def test_a_wrong_value_is_explained(options: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(f"{options} consul://10.0.0.1")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("etcd://10.0.0.1", "is not one of consul://, consul-tls://, consul-unix://"),
        ("10.0.0.1:8500", "is not one of consul://, consul-tls://, consul-unix://"),
        ("consul://:8500", "the host is missing"),
        ("consul://10.0.0.1:port", "cannot use the Consul address"),
    ],
)
def test_a_wrong_uri_is_explained(uri: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(uri)
    assert message in str(caught.value)


def test_without_a_uri_consuls_variables_say_where() -> None:
    found = settings("-internal", CONSUL_HTTP_ADDR="10.0.0.7:8501", CONSUL_HTTP_TOKEN="secret")
    assert found.uri == "consul://"
    assert found.discovery.consul.url == "http://10.0.0.7:8501"
    assert found.discovery.consul.token == "secret"


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(settings("consul://10.0.0.1", CONSUL_HTTP_TOKEN="secret"))
