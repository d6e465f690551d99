"""What the operator decided: the rules by which containers become registrations.

Laws:
- Pure; every field has a default under which Registrator's users find what they are used to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Deregister", "Drain", "Rules", "Suffix"]

Deregister = Literal["always", "on-success", "never"]
Drain = Literal["deregister", "maintenance", "off"]
Suffix = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Rules:
    """See the module. Durations are seconds."""

    # Where an instance is reached.
    ip: str = ""
    """Register every published port at this address, whatever it is bound to."""
    internal: bool = False
    """Register the container's own address and the port inside."""
    use_ip_from_label: str = ""
    """Name of a label that holds the address to register."""
    network: str = ""
    """With ``internal``: the network whose address is registered, where the container is attached to it."""
    allow_service_ip: bool = False
    """Let containers say with SERVICE_IP where they are reached. Not by default: checks go there too, so a
    container could have the agent ask any address of its network; and to Registrator it is Meta."""
    every_binding: bool = False
    """Register an instance for each address and port that a port is published as, not for the best alone."""
    allow_loopback: bool = False
    """Register ports bound to a loopback address, which only this host can reach."""

    # What is registered.
    prefix: str = ""
    """Begins every name (``prefix-name``) and every id (``prefix:id``)."""
    explicit: bool = False
    """Register only ports that are given a SERVICE_NAME."""
    tags: tuple[str, ...] = ()
    """Added to the tags of every service; ``{container}`` and the like are filled in."""
    suffix: Suffix = "auto"
    """When a name that was not given for its port gets ``-<port>``: where there are several ports,
    always, or never."""

    # What containers may ask for. They are not trusted.
    allow_names: tuple[str, ...] = ()
    """Patterns of the names that may be registered (``team-*``); none: every name."""
    label_filter: tuple[tuple[str, str | None], ...] = ()
    """Labels that a container must have, with their value or any (None)."""
    allow_script_checks: bool = False
    """Let containers have commands run on the agent's host."""

    # How a container's state shows.
    healthcheck: bool = True
    """Register Docker's HEALTHCHECK as a check of the service."""
    ready: bool = False
    """Register a container with a HEALTHCHECK only when that has passed once."""
    drain: Drain = "deregister"
    """What the stop signal does to an instance that still runs."""
    deregister: Deregister = "always"
    """Which containers are removed when they have ended; the others stay visible, as critical."""
    keep_failed: float = float("inf")
    """How long the others stay, in seconds; at most until the container is removed or started again."""
    heartbeat: float = 0.0
    """Seconds after which everything turns critical when the registrar no longer renews it; 0: never."""
