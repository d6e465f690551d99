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
- Docker may publish one port at different ports for IPv4 and IPv6. Which one counts is decided by the address
  that clients are given: the other port leads nowhere there, or to another container.
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

__all__ = ["GivenAddress", "Place", "address_problem", "find_places", "label_problem"]

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


@dataclass(frozen=True, slots=True)
class GivenAddress:
    """An address that counts in place of a binding's or the container's."""

    address: str
    rule: str
    """Who gives it."""


def find_places(
    container: Container,
    port: Port,
    rules: Rules,
    *,
    node_address: str = "",
    service_ip: GivenAddress | None = None,
) -> Sequence[Place] | str:
    """Return where others reach *port*, the best place first, or why they cannot.

    It is one place, unless every binding is asked for.

    Args:
        node_address: what the agent advertises; empty when it does not tell.
        service_ip: what the container says of itself, if it may; the strongest address.
    """
    mode = container.network_mode
    if mode == "none":
        return "the container has no network"
    if container.shared_network:
        return f"the container whose network this one uses, {mode}, cannot be found"
    given = service_ip or _label_address(container, rules)[0]
    if given is None and rules.ip and not rules.internal:
        given = GivenAddress(rules.ip, "-ip")
    if mode == "host":
        found: list[Place] | Place | str = Place(
            "", port.number, "host network: the node's address and the port inside"
        )
    elif rules.internal:
        found = _inside(container, port, rules, given)
    else:
        found = _published(container, port, rules, given, node_address)
    if isinstance(found, str):
        return found
    places = found if isinstance(found, list) else [found]
    if given:
        places = [
            Place(given.address, place.port, f"{given.rule}, with the port of: {place.rule}")
            for place in places
        ]
    distinct: dict[tuple[str, int], Place] = {}
    for place in places:
        distinct.setdefault((place.address, place.port), place)
    return list(distinct.values())


def label_problem(container: Container, rules: Rules) -> Problem | None:
    """Return what is wrong with the address in the label of ``-useIpFromLabel``."""
    return _label_address(container, rules)[1]


def _inside(container: Container, port: Port, rules: Rules, given: GivenAddress | None) -> Place | str:
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
    if given:
        return Place("", port.number, "-internal")
    return f"the container has no address in any network{' but ' + INGRESS if INGRESS in networks else ''}"


def _published(
    container: Container, port: Port, rules: Rules, given: GivenAddress | None, node_address: str
) -> list[Place] | Place | str:
    """The binding that serves whoever is given the address *given*, else the node's."""
    if not port.number:
        return Place("", 0, "a service without a port, at the node's address")
    if not port.bindings:
        if any(network.name == INGRESS for network in container.networks):
            return "Swarm's routing mesh publishes the port, and not this task (publish it with mode=host)"
        return "the port is not published (-internal registers such ports)"
    reachable = [one for one in port.bindings if rules.allow_loopback or not _is_loopback(one.host_ip)]
    if not reachable:
        hosts = ", ".join(sorted({binding.host_ip for binding in port.bindings}))
        return f"the port is published on {hosts} only, out of reach for others (--allow-loopback)"
    usable = _usable(reachable, given.address if given else "", node_address)
    if not usable:
        other = "IPv4" if ":" in node_address else "IPv6"
        return f"the port is published over {other} only, where the node's address {node_address} is not"
    if rules.every_binding:
        return [Place(_address(one), one.host_port, f"published as {_endpoint(one)}") for one in usable]
    first = usable[0]
    rule = f"published as {_endpoint(first)}"
    if others := sorted({binding.host_port for binding in usable} - {first.host_port}):
        rule += f" (also as {', '.join(map(str, others))})"
    # Both families under one port: clients of either find theirs in the tagged addresses.
    families: dict[str, Address] = {}
    for binding in usable:
        if not binding.everywhere and binding.host_port == first.host_port:
            family = "lan_ipv6" if ":" in binding.host_ip else "lan_ipv4"
            families.setdefault(family, Address(binding.host_ip, binding.host_port))
    tagged = families if not first.everywhere and len(families) > 1 else {}
    return Place(_address(first), first.host_port, rule, MappingProxyType(tagged))


def _usable(bindings: Sequence[Binding], given: str, node_address: str) -> list[Binding]:
    """Return the bindings that serve who is *given* an address, else their own, the one to register first.

    Best is the address that is given, then every address of the host, then another one; IPv4 before IPv6; the
    lowest port. Every address means those of one family, so it serves at none of the other.
    """
    ipv6 = ":" in (given or node_address)

    def fits(binding: Binding) -> bool:
        return not binding.host_ip or (":" in binding.host_ip) is ipv6

    def preference(binding: Binding) -> tuple[bool, bool, bool, bool, int, str]:
        host_ip = binding.host_ip
        return (
            _is_loopback(host_ip),
            bool(given) and host_ip != given,
            not binding.everywhere,
            ":" in host_ip,
            binding.host_port,
            host_ip,
        )

    if given:
        # What -ip says in front of an address of the other family is the operator's to know.
        usable = [one for one in bindings if fits(one)] or bindings
    elif node_address or any(one.everywhere and fits(one) for one in bindings):
        usable = [one for one in bindings if not one.everywhere or fits(one)]
    else:
        usable = bindings
    return sorted(usable, key=preference)


def _label_address(container: Container, rules: Rules) -> tuple[GivenAddress | None, Problem | None]:
    """Return the address in the label of ``-useIpFromLabel``, without a prefix length.

    Without one it is None, and what is wrong.
    """
    label = rules.use_ip_from_label
    if not label:
        return None, None
    raw = container.labels.get(label, "")
    if not raw:
        message = "there is no address in it, so -useIpFromLabel changes nothing here"
        return None, Problem(container.name, f"label {label}", raw, message) if container.ports else None
    text = raw.rpartition("/")[0] or raw
    if problem := address_problem(text, rules):
        return None, Problem(container.name, f"label {label}", raw, problem)
    return GivenAddress(text, f"label {label} (-useIpFromLabel)"), None


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


def _address(binding: Binding) -> str:
    """The address to register: empty, so the node's, for every address of the host."""
    return "" if binding.everywhere else binding.host_ip


def _endpoint(binding: Binding) -> str:
    host = _address(binding) or "*"
    return f"[{host}]:{binding.host_port}" if ":" in host else f"{host}:{binding.host_port}"
