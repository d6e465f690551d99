"""Where a port is reached: the address and the port to register, or why there is none.

    network             default                          with -internal
    bridge, own         the port's binding on the host   container's address, inner port
    host                node's address, inner port       node's address, inner port
    container:X         X's binding of that port         X's address, inner port
    none                nowhere                          nowhere
    macvlan, ipvlan     not published, so nowhere        container's address, inner port
    Swarm's ingress     not published, so nowhere        nowhere: its addresses are the routing mesh's own

Laws:
- Pure.
- Address and port are always of one binding, or both of the container: never one of each.
- An empty address means the node's, and Consul answers with what its agent advertises.
- Loopback and unspecified addresses, which others cannot reach, are used only where the operator says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from discovery.model import Address
from registrar.containers import Binding, Container, Port
from registrar.metadata import EXTENSION_PREFIX, Problem
from registrar.rules import Rules

__all__ = ["Place", "address_problem", "find_places", "label_problem"]

NETWORK_LABEL: Final = f"{EXTENSION_PREFIX}network"
INGRESS: Final = "ingress"
"""The network of Swarm's routing mesh. What it publishes does not show in the containers of the tasks."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a port is reached."""

    address: str
    """Empty: the node's."""
    port: int
    rule: str
    """What made it this place."""
    tagged: Mapping[str, Address] = field(default_factory=lambda: MappingProxyType({}))


def find_places(container: Container, port: Port, rules: Rules) -> Sequence[Place] | str:
    """Return where others reach *port*, the best place first, or why they cannot.

    It is one place, unless every binding is asked for.
    """
    mode = container.network_mode
    if mode == "none":
        return "the container has no network"
    if container.shared_network:
        return f"the container whose network this one uses, {mode}, cannot be found"
    label_address, _ = _label_address(container, rules)
    if mode == "host":
        found: list[Place] | Place | str = Place(
            "", port.number, "host network: the node's address and the port inside"
        )
    elif rules.internal:
        found = _inside(container, port, rules, label_address)
    else:
        found = _published(container, port, rules)
    if isinstance(found, str):
        return found
    places = found if isinstance(found, list) else [found]
    if label_address:
        rule = f"label {rules.use_ip_from_label} (-useIpFromLabel)"
        places = [Place(label_address, place.port, rule) for place in places]
    elif rules.ip and not rules.internal:
        places = [Place(rules.ip, place.port, f"-ip, with the port of: {place.rule}") for place in places]
    distinct: dict[tuple[str, int], Place] = {}
    for place in places:
        distinct.setdefault((place.address, place.port), place)
    return list(distinct.values())


def label_problem(container: Container, rules: Rules) -> Problem | None:
    """Return what is wrong with the address in the label of ``-useIpFromLabel``."""
    return _label_address(container, rules)[1]


def _inside(container: Container, port: Port, rules: Rules, label_address: str) -> Place | str:
    """The container's own address: that of the chosen network, else of its first, else of any."""
    networks = {network.name: network for network in container.networks}
    own = "bridge" if container.network_mode in ("default", "") else container.network_mode
    labelled = container.labels.get(NETWORK_LABEL, "")
    for name in (labelled, rules.network, own, *sorted(networks.keys() - {INGRESS})):
        network = networks.get(name)
        if network and (network.ipv4 or network.ipv6):
            why = f" (label {NETWORK_LABEL})" if name == labelled else ""
            why = why or (" (--network)" if name == rules.network else "")
            rule = f"-internal: the container's address in network {name}{why}"
            return Place(network.ipv4 or network.ipv6, port.number, rule)
    if label_address:
        return Place(label_address, port.number, "-internal")
    return f"the container has no address in any network{' but ' + INGRESS if INGRESS in networks else ''}"


def _published(container: Container, port: Port, rules: Rules) -> list[Place] | Place | str:
    if not port.number:
        return Place("", 0, "a service without a port, at the node's address")
    if not port.bindings:
        if any(network.name == INGRESS for network in container.networks):
            return "Swarm's routing mesh publishes the port, and not this task (publish it with mode=host)"
        return "the port is not published (-internal registers such ports)"
    usable = _usable(port.bindings, rules)
    if not usable:
        hosts = ", ".join(sorted({binding.host_ip for binding in port.bindings}))
        return f"the port is published on {hosts} only, out of reach for others (--allow-loopback)"
    if rules.every_binding:
        return [Place(one.host_ip, one.host_port, f"published as {_endpoint(one)}") for one in usable]
    first = usable[0]
    rule = f"published as {_endpoint(first)}"
    if others := sorted({binding.host_port for binding in usable} - {first.host_port}):
        rule += f" (also as {', '.join(map(str, others))})"
    # Both families under one port: clients of either find theirs in the tagged addresses.
    families: dict[str, Address] = {}
    for binding in usable:
        if binding.host_ip and binding.host_port == first.host_port:
            family = "lan_ipv6" if ":" in binding.host_ip else "lan_ipv4"
            families.setdefault(family, Address(binding.host_ip, binding.host_port))
    tagged = families if first.host_ip and len(families) > 1 else {}
    return Place(first.host_ip, first.host_port, rule, MappingProxyType(tagged))


def _usable(bindings: Sequence[Binding], rules: Rules) -> list[Binding]:
    """Return the bindings that others can reach, the one to register first.

    Best is every address of the host, then a given one; IPv4 before IPv6; the lowest port.
    """

    def preference(binding: Binding) -> tuple[bool, bool, bool, int, str]:
        host_ip = binding.host_ip
        return _is_loopback(host_ip), bool(host_ip), ":" in host_ip, binding.host_port, host_ip

    return sorted(
        (b for b in bindings if rules.allow_loopback or not _is_loopback(b.host_ip)), key=preference
    )


def _label_address(container: Container, rules: Rules) -> tuple[str, Problem | None]:
    """Return the address in the label of ``-useIpFromLabel``, without a prefix length.

    Without one it is ``""``, and what is wrong.
    """
    label = rules.use_ip_from_label
    if not label:
        return "", None
    raw = container.labels.get(label, "")
    if not raw:
        message = "there is no address in it, so -useIpFromLabel changes nothing here"
        return "", Problem(container.name, f"label {label}", raw, message) if container.ports else None
    text = raw.rpartition("/")[0] or raw
    if problem := address_problem(text, rules):
        return "", Problem(container.name, f"label {label}", raw, problem)
    return text, None


def address_problem(text: str, rules: Rules) -> str:
    """Say why a container cannot be reached at the address *text*, or return ``""``."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "it is no IP address; write for example 10.0.0.5"
    if address.is_unspecified or (address.is_loopback and not rules.allow_loopback):
        return "nobody else can reach this address; write that of the network"
    return ""


def _is_loopback(host_ip: str) -> bool:
    return bool(host_ip) and ipaddress.ip_address(host_ip).is_loopback


def _endpoint(binding: Binding) -> str:
    host = binding.host_ip or "*"
    return f"[{host}]:{binding.host_port}" if ":" in host else f"{host}:{binding.host_port}"
