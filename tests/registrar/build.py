"""Containers as Docker tells them, in one line each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from registrar.containers import Container
from registrar.desired import Decision, Desired, Host, desire
from registrar.owner import Owner
from registrar.rules import Rules

OWNER = Owner("host-1", "ENGN:0000:0001")
HOST = Host(OWNER, "172.28.128.3")


def container_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def raw_container(
    name: str = "web",
    *,
    image: str = "nginx",
    expose: Sequence[str] = (),
    publish: Mapping[str, Sequence[tuple[str, int]]] | None = None,
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    network: str = "default",
    networks: Mapping[str, str] | None = None,
    state: Mapping[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """The answer of ``/containers/<id>/json``, as far as anybody reads it.

    Args:
        publish: port inside -> (host address, host port) of each binding.
        networks: name -> address; a colon in it makes it an IPv6 address.
    """
    publish = publish or {}
    if networks is None:
        networks = {"bridge": "172.17.0.2"} if network in ("default", "bridge") else {}
    ports: dict[str, Any] = dict.fromkeys(expose)
    for port, bindings in publish.items():
        ports[port] = [{"HostIp": host, "HostPort": str(number)} for host, number in bindings]
    return {
        "Id": container_id(name),
        "Name": f"/{name}",
        "State": {"Running": True, "StartedAt": "2024-05-01T10:00:00.5Z", **(state or {})},
        "Config": {
            "Image": image,
            "Hostname": container_id(name)[:12],
            "Env": [f"{key}={value}" for key, value in (env or {}).items()],
            "Labels": dict(labels or {}),
            "ExposedPorts": {port: {} for port in (*expose, *publish)},
            **config,
        },
        "HostConfig": {"NetworkMode": network},
        "NetworkSettings": {
            # Without a network of its own a container has no ports either, whatever it exposes.
            "Ports": {} if network in ("host", "none") or network.startswith("container:") else ports,
            "Networks": {
                key: {"IPAddress": "", "GlobalIPv6Address": value} if ":" in value else {"IPAddress": value}
                for key, value in networks.items()
            },
        },
    }


def container(name: str = "web", **options: Any) -> Container:
    return Container.from_json(raw_container(name, **options))


def decided(rules: Rules | None = None, **options: Any) -> Desired:
    """What is desired of a container that is described as for ``raw_container``."""
    return desire(container(**options), rules or Rules(), HOST)


def decision(rules: Rules | None = None, port: str = "80/tcp", **options: Any) -> Decision:
    """What becomes of one of its ports."""
    return next(one for one in decided(rules, **options).decisions if str(one.port) == port)


def registered(rules: Rules | None = None, port: str = "80/tcp", **options: Any) -> Any:
    """The registration of one of its ports, which there must be."""
    made = decision(rules, port, **options)
    assert made.registration is not None, made.reason
    return made.registration


PUBLISHED = {"80/tcp": [("0.0.0.0", 32768), ("::", 32768)]}
"""Port 80 as ``docker run -P`` publishes it."""
