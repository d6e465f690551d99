"""Why an instance is in the answer to a question, or why not.

Laws:
- Pure but for ``read``, which is an argument: it answers one catalogue question.
- It asks the rules themselves, ``zone.resolve``, for each instance alone and for all together: there is no
  second opinion that could differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from discovery.model import Query, Reply, ServiceEntry, ServiceQuery
from resolver import wire, zone
from resolver.wire import Name, name_from_text, name_to_wire, type_from_text
from resolver.zone import Fact, Found, Need, ZoneSettings, digest

__all__ = ["Explanation", "explain"]

_ROUNDS: Final = 8  # no question needs more facts than it has kinds of


@dataclass(frozen=True, slots=True)
class Explanation:
    """``lines`` for people; ``answered`` when the answer has records."""

    lines: tuple[str, ...]
    answered: bool


def explain(name: str, qtype: str, read: Callable[[Query], Reply], settings: ZoneSettings) -> Explanation:
    """Say what the answer to *name* and *qtype* is made from.

    Args:
        read: answers a catalogue question, now.

    Raises:
        DiscoveryError: *read* could not.
        Malformed: *name* or *qtype* is none.
    """
    query = _query(name_from_text(name), type_from_text(qtype))
    facts: dict[Query, Fact] = {}
    outcome = zone.resolve(query, facts, settings, serial=0)
    for _ in range(_ROUNDS):
        if not isinstance(outcome, Need):
            break
        facts[outcome.query] = Fact(digest(outcome.query, read(outcome.query).value))
        outcome = zone.resolve(query, facts, settings, serial=0)
    if outcome is None:
        return Explanation(("not in our zone: forwarded to an upstream",), answered=False)
    if not isinstance(outcome, Found):
        return Explanation(("the catalogue does not say",), answered=False)

    lines = [_summary(outcome)]
    for asked, fact in facts.items():
        if isinstance(asked, ServiceQuery):
            lines += _instances(query, asked, fact.value, outcome, facts, settings)
    return Explanation(tuple(lines), answered=bool(outcome.choices))


def _query(name: Name, qtype: int) -> wire.Query:
    question = name_to_wire(name) + qtype.to_bytes(2) + wire.IN.to_bytes(2)
    return wire.Query(0, wire.RD, question, name, qtype, wire.IN, None, plain=True)


def _summary(found: Found) -> str:
    count = sum(len(choice.answer) for choice in found.choices)
    if count:
        ttl = found.choices[0].answer[0].ttl
        return f"NOERROR with {count} {'record' if count == 1 else 'records'}, TTL {ttl}"
    if found.rcode == wire.NXDOMAIN:
        return "NXDOMAIN: the name does not exist, or none of its instances may be used"
    return "NODATA: the name exists and has no record of this type"


def _instances(
    query: wire.Query,
    asked: ServiceQuery,
    entries: tuple[ServiceEntry, ...],
    found: Found,
    facts: dict[Query, Fact],
    settings: ZoneSettings,
) -> list[str]:
    """One line per instance."""
    seen: set[bytes] = set()
    given = _data(found)
    lines = []
    for entry in entries:
        alone = zone.resolve(query, facts | {asked: Fact((entry,))}, settings, serial=0)
        records = _data(alone) if isinstance(alone, Found) else set()
        why = alone.left_out[0][1] if isinstance(alone, Found) and alone.left_out else ""
        if not why and not records:
            why = f"its address {entry.host!r} makes no {wire.type_to_text(query.type)} record"
        elif not why and not records & given:
            why = "it is known by a name, and others have addresses"
        elif not why and records <= seen:
            why = "it says the same as an instance above, and equal records are given once"
        seen |= records
        where = f"{entry.id} at {entry.host}:{entry.port} on {entry.node.name}"
        lines.append(f"out  {where}: {why}" if why else f"in   {where}")
    return lines


def _data(found: Found) -> set[bytes]:
    return {record.data for choice in found.choices for record in choice.answer}
