"""A Consul that denies by default: the policy in docs/registrar.md is enough, and a refusal is explained.

Numbers in test names are Registrator's issues.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from discovery.backends import open_backend
from discovery.config import Config
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.running import Running
from tests.tools import ConsulAgent, wait_until

ROOT = "8e4f6a9c-0b53-4d4e-9a57-3a1f2f9f6d10"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "registrar.md"
SERVICES_ONLY = 'service_prefix "" {\n  policy = "write"\n}\n'


@pytest.fixture
def consul(start_consul: Callable[..., ConsulAgent], consul_executable: str) -> ConsulAgent:
    current = ConsulAgent(binary=consul_executable).version >= (1, 11)
    tokens = {"initial_management" if current else "master": ROOT, "agent": ROOT}
    acl = {"enabled": True, "default_policy": "deny", "tokens": tokens}
    return start_consul(config={"acl": acl}, token=ROOT)


def token(consul: ConsulAgent, rules: str) -> str:
    consul.request("PUT", "/v1/acl/policy", {"Name": "registrar", "Rules": rules})
    made = consul.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "registrar"}]})
    return str(made["SecretID"])


def ids(consul: ConsulAgent) -> set[str]:
    return set(consul.request("GET", "/v1/agent/services"))


@pytest.mark.parametrize("least", [False, True], ids=["the page's policy", "services only"])
def test_135_411_538_565_604_the_policy_of_the_page_is_enough(
    consul: ConsulAgent, least: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "registrar")
    (rules,) = re.findall(r"^```hcl\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    secret = token(consul, SERVICES_ONLY if least else rules)
    docker = FakeDocker()
    with (
        closing(open_backend(consul.uri, Config.from_env({"CONSUL_HTTP_TOKEN": secret}))) as backend,
        Running(docker, backend) as running,
    ):
        labels = {"SERVICE_CHECK_TTL": "1h"}
        docker.run("web", publish=["80/tcp"], labels=labels)
        docker.run("shop", publish=["80/tcp"])
        docker.health("shop", "healthy", "fine")
        wait_until(lambda: ids(consul) == {"host-1:web:80", "host-1:shop:80"})
        check = "host-1:shop:80:container"
        wait_until(
            lambda: consul.request("GET", "/v1/agent/checks").get(check, {}).get("Status") == "passing"
        )
        # Somebody else's change is noticed, and an operator's maintenance mode survives it being undone.
        consul.request("PUT", "/v1/agent/service/maintenance/host-1:web:80?enable=true")
        consul.request("PUT", "/v1/agent/service/deregister/host-1:shop:80")
        wait_until(lambda: "host-1:shop:80" in ids(consul))
        docker.remove("web")
        wait_until(lambda: ids(consul) == {"host-1:shop:80"})
        running.settle()
    polled = [message for message in caplog.messages if "has to be polled" in message]
    assert bool(polled) is least
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_135_411_538_565_604_a_refusal_is_explained_once(
    consul: ConsulAgent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "registrar")
    docker = FakeDocker()
    with (
        closing(open_backend(consul.uri, Config.from_env({}))) as backend,
        Running(docker, backend),
    ):
        docker.run("web", publish=["80/tcp"])
        refused = "the registry refuses host-1:web:80: "

        def told() -> list[str]:
            return [message for message in caplog.messages if message.startswith(refused)]

        wait_until(told)
    (message,) = told()
    assert "HTTP 403" in message
    assert "set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE" in message
    assert ids(consul) == set()
