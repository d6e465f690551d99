"""Why an instance is in the answer to a question, or why not.

Laws:
- Pure but for ``read``, which is an argument: it answers one catalogue question.
- It asks the rules themselves, ``zone.resolve``, for each instance alone and for all together: there is no
  second opinion that could differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from discovery import model
from discovery.model import (
    ConnectQuery,
    IngressQuery,
    NodesQuery,
    PreparedQuery,
    Reply,
    ServiceEntry,
    ServiceQuery,
)
from resolver import wire, zone
from resolver.facts import AddressesQuery, AliasQuery, Fact, Query, digest, gather_addresses
from resolver.records import Found
from resolver.wire import name_from_text, type_from_text
from resolver.zone import Need, Outcome, ZoneSettings

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """``lines`` for people; ``answered`` when the answer has records."""

    lines: tuple[str, ...]
    answered: bool


def explain(
    name: str, qtype: str, read: Callable[[model.Query], Reply], settings: ZoneSettings
) -> Explanation:
    """Say what the answer to *name* and *qtype* is made from.

    Args:
        read: answers a catalogue question, now.

    Raises:
        DiscoveryError: *read* could not.
        Malformed: *name* or *qtype* is none.
    """
    query = wire.Query.of(name_from_text(name), type_from_text(qtype))
    facts: dict[Query, Fact] = {}

    def answer(known: dict[Query, Fact]) -> Outcome | None:
        """Resolve *query*, reading what is not known yet."""
        outcome = zone.resolve(query, known, settings, serial=0)
        while isinstance(outcome, Need):
            known[outcome.query] = Fact(_value(outcome.query, known, read))
            outcome = zone.resolve(query, known, settings, serial=0)
        return outcome

    outcome = answer(facts)
    if outcome is None:
        return Explanation(("not in our zone: forwarded to an upstream",), answered=False)
    if not isinstance(outcome, Found):
        return Explanation(("the catalogue does not say",), answered=False)

    lines = [_summary(outcome)]
    for asked, fact in list(facts.items()):
        match asked:
            case ServiceQuery() | ConnectQuery() | IngressQuery():
                ones = [(entry, (entry,)) for entry in fact.value]
            case PreparedQuery():
                ones = [(entry, replace(fact.value, entries=(entry,))) for entry in fact.value.entries]
            case _:
                continue
        alone = [answer({**facts, asked: Fact(value)}) for _, value in ones]
        lines += _instances(query.type, [entry for entry, _ in ones], alone, outcome)
    return Explanation(tuple(lines), answered=bool(outcome.choices))


def _value(query: Query, facts: dict[Query, Fact], read: Callable[[model.Query], Reply]) -> Any:
    match query:
        case AliasQuery():
            return ()  # an upstream would be asked; why an instance is in the answer does not depend on it
        case AddressesQuery():
            return gather_addresses(facts[NodesQuery()].value.by_name.values(), read)
        case _:
            return digest(query, read(query).value)


def _summary(found: Found) -> str:
    count = sum(len(choice.answer) for choice in found.choices)
    if count:
        ttl = found.choices[0].answer[0].ttl
        return f"NOERROR with {count} {'record' if count == 1 else 'records'}, TTL {ttl}"
    if found.rcode == wire.NXDOMAIN:
        return "NXDOMAIN: the name does not exist, or none of its instances may be used"
    return "NODATA: the name exists and has no record of this type"


def _instances(
    qtype: int, entries: Sequence[ServiceEntry], alone: Sequence[Outcome | None], found: Found
) -> list[str]:
    """One line per instance.

    Args:
        alone: for each of *entries*, the answer if there were no other.
    """
    seen: set[bytes] = set()
    given = _data(found)
    lines = []
    for entry, outcome in zip(entries, alone, strict=True):
        records = _data(outcome) if isinstance(outcome, Found) else set()
        why = outcome.left_out[0][1] if isinstance(outcome, Found) and outcome.left_out else ""
        if not why and not records:
            why = f"its address {entry.host!r} makes no {wire.type_to_text(qtype)} record"
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
