"""Consul agents that want to know who asks: tokens, TLS and unix sockets, with real Consul.

With ACLs on, real agents differ from the embedded one: who has no token is shown nothing, and who has a wrong
one is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from discovery.config import Config
from resolver.server import Resolver
from tests.resolver.conftest import Start, addresses, ask
from tests.resolver.test_server import errors_of
from tests.tools import Authority, ConsulAgent, free_port, wait_until

ROOT = "0a9e8f4c-6f5d-4a4e-9f54-6b0f6f1a3c11"  # the token that may do everything
WRONG = "5d1f6a2e-0000-4000-8000-000000000000"
STALE = 3  # RFC 8914
CANNOT_ASK = (22, 23)
NAME = "web.service.consul"
PATIENCE = 15.0  # s; refused questions are repeated every 0.8 s


def denying(version: tuple[int, int]) -> dict[str, Any]:
    """The configuration of an agent that denies what no token allows."""
    first = "initial_management" if version >= (1, 11) else "master"
    return {"acl": {"enabled": True, "default_policy": "deny", "tokens": {first: ROOT, "agent": ROOT}}}


@pytest.fixture(scope="module")
def strict(consul_executable: str) -> Iterator[ConsulAgent]:
    """An agent with a service and a prepared query, for who has a token."""
    version = ConsulAgent(binary=consul_executable).version
    with ConsulAgent(binary=consul_executable, config=denying(version), token=ROOT) as agent:
        agent.request("PUT", "/v1/agent/service/register", {"Name": "web", "Address": "10.0.0.1"})
        agent.request("POST", "/v1/query", {"Name": "q", "Service": {"Service": "web"}})
        wait_until(lambda: agent.request("GET", "/v1/health/service/web"), 10.0)
        yield agent


def told(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """The warnings that speak of *words*."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and words in record.getMessage()
    ]


def code(resolver: Resolver, name: str = NAME) -> str:
    return dns.rcode.to_text(ask(resolver, name).rcode())


def errors(resolver: Resolver) -> list[int]:
    return errors_of(ask(resolver, NAME, use_edns=0))


def read_only_token(agent: ConsulAgent) -> tuple[str, str]:
    """Make a token that may read services and nodes; return its id and its secret."""
    rules = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
    policy = agent.request("PUT", "/v1/acl/policy", {"Name": f"read-{free_port()}", "Rules": rules})
    made = agent.request("PUT", "/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
    return made["AccessorID"], made["SecretID"]


# --- tokens


def test_a_token_from_the_environment_opens_the_catalogue(strict: ConsulAgent, start_resolver: Start) -> None:
    _, secret = read_only_token(strict)
    resolver = start_resolver(strict.uri, config=Config.from_env({"CONSUL_HTTP_TOKEN": secret}))
    assert addresses(ask(resolver, NAME)) == ["10.0.0.1"]
    assert code(resolver, "nope.service.consul") == "NXDOMAIN"


def test_a_wrong_token_is_a_failure_with_its_reason_until_its_file_is_put_right(
    strict: ConsulAgent, start_resolver: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text(WRONG)
    env = {"CONSUL_HTTP_TOKEN_FILE": str(token), "CONSUL_HTTP_TOKEN": WRONG}
    with caplog.at_level(logging.WARNING):
        resolver = start_resolver(strict.uri, config=Config.from_env(env))
        for name in (NAME, "nope.service.consul", "n1.node.consul", "q.query.consul", "web.connect.consul"):
            assert code(resolver, name) == "SERVFAIL", name
        assert errors(resolver)[0] in CANNOT_ASK
        token.write_text(ROOT + "\n")
        wait_until(lambda: code(resolver) == "NOERROR", PATIENCE, message="the new token is used")
    (said,) = told(caplog, "403")
    assert "ACL not found" in said
    assert "check what the policy of this token allows" in said


def test_a_token_that_is_revoked_leaves_what_was_known(
    strict: ConsulAgent, start_resolver: Start, caplog: pytest.LogCaptureFixture
) -> None:
    accessor, secret = read_only_token(strict)
    # Short reads: a blocking read that is under way when its token is revoked goes on to its end.
    config = Config.from_env({"CONSUL_HTTP_TOKEN": secret}, wait=1.0)
    resolver = start_resolver(strict.uri, config=config)
    assert addresses(ask(resolver, NAME)) == ["10.0.0.1"]
    strict.request("DELETE", f"/v1/acl/token/{accessor}")
    wait_until(lambda: code(resolver, "nope.service.consul") == "SERVFAIL", PATIENCE)
    answer = ask(resolver, NAME, use_edns=0)
    assert addresses(answer) == ["10.0.0.1"], answer.to_text()
    # Newer releases stream the service's health on, and go on to confirm it.
    assert errors(resolver) in ([], [STALE])
    assert len(told(caplog, "403")) == 1


def test_without_a_token_nothing_is_shown_and_a_warning_says_why(
    strict: ConsulAgent, start_resolver: Start, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = start_resolver(strict.uri, config=Config.from_env({}))
    assert code(resolver) == "NXDOMAIN", "as Consul's own DNS says"
    wait_until(lambda: told(caplog, "CONSUL_HTTP_TOKEN"))
    (said,) = told(caplog, "CONSUL_HTTP_TOKEN")
    assert "node:read" in said


def test_a_prepared_query_may_be_executed_by_who_may_not_read_it(
    strict: ConsulAgent, start_resolver: Start
) -> None:
    _, secret = read_only_token(strict)
    resolver = start_resolver(strict.uri, config=Config.from_env({"CONSUL_HTTP_TOKEN": secret}))
    assert addresses(ask(resolver, "q.query.consul")) == ["10.0.0.1"]


# --- ways in


def register_web(agent: ConsulAgent) -> None:
    agent.request("PUT", "/v1/agent/service/register", {"Name": "web", "Address": "10.0.0.1"})


@pytest.fixture
def encrypted(
    start_consul: Callable[..., ConsulAgent], tmp_path: Path
) -> tuple[int, Authority, dict[str, str]]:
    """An agent that asks clients for certificates: its port, who signed, and the client's environment."""
    authority = Authority(tmp_path)
    (cert, key), (client_cert, client_key) = authority.issue("agent.example.test"), authority.issue("client")
    port = free_port()
    agent = start_consul(
        config={
            "ports": {"https": port},
            "cert_file": str(cert),
            "key_file": str(key),
            "ca_file": str(authority.certificate),
            "verify_incoming_https": True,
        }
    )
    register_web(agent)
    env = {
        "CONSUL_CACERT": str(authority.certificate),
        "CONSUL_TLS_SERVER_NAME": "agent.example.test",
        "CONSUL_CLIENT_CERT": str(client_cert),
        "CONSUL_CLIENT_KEY": str(client_key),
    }
    return port, authority, env


def test_an_agent_behind_tls_is_followed(
    encrypted: tuple[int, Authority, dict[str, str]], start_resolver: Start
) -> None:
    port, _, env = encrypted
    resolver = start_resolver(f"consul-tls://127.0.0.1:{port}", config=Config.from_env(env))
    wait_until(lambda: addresses(ask(resolver, NAME)) == ["10.0.0.1"])


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("CONSUL_CACERT", "its certificate is not accepted"),
        ("CONSUL_TLS_SERVER_NAME", "its certificate is not accepted"),
    ],
)
def test_an_agent_that_is_not_who_it_should_be_is_not_believed(
    encrypted: tuple[int, Authority, dict[str, str]],
    start_resolver: Start,
    caplog: pytest.LogCaptureFixture,
    lost: str,
    words: str,
) -> None:
    port, _, env = encrypted
    del env[lost]
    resolver = start_resolver(f"consul-tls://127.0.0.1:{port}", config=Config.from_env(env))
    assert code(resolver) == "SERVFAIL"
    assert errors(resolver)[0] in CANNOT_ASK
    assert told(caplog, words)


def test_an_agent_behind_a_unix_socket_is_followed(
    start_consul: Callable[..., ConsulAgent], start_resolver: Start, tmp_path: Path
) -> None:
    path = tmp_path / "consul.sock"
    agent = start_consul(config={"addresses": {"http": f"127.0.0.1 unix://{path}"}})
    register_web(agent)
    for uri in (f"consul-unix://{path}", "consul://"):
        config = Config.from_env({"CONSUL_HTTP_ADDR": f"unix://{path}"})
        resolver = start_resolver(uri, config=config)
        wait_until(lambda resolver=resolver: addresses(ask(resolver, NAME)) == ["10.0.0.1"])  # type: ignore[misc]
