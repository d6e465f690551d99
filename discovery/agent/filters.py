"""Filters of ``/v1/agent/services`` (Consul: "Filtering"): ``Service == web and Meta.zone == "a"``.

    expression  := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation    := "not" negation | "(" expression ")" | match
    match       := selector ("==" | "!=") value
                 | selector ["not"] "contains" value
                 | value ["not"] "in" selector
                 | selector "is" ["not"] "empty"
    selector    := name ("." name | "[" string "]")*        value := string | name | number

``matches`` (Go's regular expressions) is left out: ours would accept other patterns.

Laws:
- Pure. A filter is parsed once, then asked for each service.
- A selector or an operator that does not fit is an error before any service is looked at, as in Consul.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from discovery.errors import RegistryError

__all__ = ["Filter", "parse"]

Filter = Callable[[Mapping[str, Any]], bool]
"""Says whether a service, in the form of ``answers.agent_service``, passes."""

_Type = Literal["string", "int", "bool", "strings", "map"]
_FIELDS: Final[Mapping[str, _Type]] = {
    "ID": "string",
    "Service": "string",
    "Kind": "string",
    "Address": "string",
    "PeerName": "string",
    "Port": "int",
    "EnableTagOverride": "bool",
    "Tags": "strings",
    "Meta": "map",
    "Weights.Passing": "int",
    "Weights.Warning": "int",
}
_MAX_DEPTH: Final = 50
"""Parentheses and negations within each other: the parser recurses at each, and anybody may send some."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string> "[^"]*" | `[^`]*` )
      | (?P<symbol> == | != | \( | \) | \. | \[ | \] )
      | (?P<number> -?[0-9]+(?:\.[0-9]+)? (?![A-Za-z0-9_]) )
      | (?P<name> [A-Za-z][A-Za-z0-9_]* )
    )""",
    re.VERBOSE,
)


def parse(text: str) -> Filter:
    """Return the filter that *text* describes; an empty text lets everything pass.

    Raises:
        RegistryError: 500, as Consul answers a filter that it cannot read.
    """
    if not text:
        return lambda service: True
    return _Parser(text).parse()


def _wrong(why: str) -> RegistryError:
    return RegistryError(f"Failed to create boolean expression evaluator: {why}", status=500)


@dataclass(frozen=True, slots=True)
class _Selector:
    path: str
    """As it was written, for messages."""
    field: str
    key: str | None
    """Of a map's value."""
    type: _Type

    def value(self, service: Mapping[str, Any]) -> Any:
        """Return the value, or None where a map has no such key."""
        found: Any = service
        for part in self.field.split("."):
            found = found.get(part, "")
        return found.get(self.key) if self.key is not None else found


class _Parser:
    """Recursive descent over the grammar above; each method takes one rule's tokens and returns its test."""

    def __init__(self, text: str) -> None:
        self._text = text.rstrip()
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(self._text):
            token = _TOKEN.match(self._text, at)
            if token is None:
                raise _wrong(f"no match found at {at}: {self._text[at : at + 20]!r}")
            self._tokens.append((str(token.lastgroup), token[token.lastgroup or 0]))
            at = token.end()
        self._next = 0
        self._depth = 0

    def parse(self) -> Filter:
        test = self._expression()
        if self._next < len(self._tokens):
            raise self._unexpected('"and", "or" or the end')
        return test

    def _expression(self) -> Filter:
        tests = [self._conjunction()]
        while self._take("name", "or"):
            tests.append(self._conjunction())
        return tests[0] if len(tests) == 1 else lambda service: any(test(service) for test in tests)

    def _conjunction(self) -> Filter:
        tests = [self._negation()]
        while self._take("name", "and"):
            tests.append(self._negation())
        return tests[0] if len(tests) == 1 else lambda service: all(test(service) for test in tests)

    def _negation(self) -> Filter:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _wrong(f"more than {_MAX_DEPTH} parentheses and negations within each other")
        try:
            if self._take("name", "not"):
                test = self._negation()
                return lambda service: not test(service)
            if self._take("symbol", "("):
                inner = self._expression()
                if not self._take("symbol", ")"):
                    raise _wrong('rule "grouping": Unmatched parentheses')
                return inner
            return self._match()
        finally:
            self._depth -= 1

    def _match(self) -> Filter:
        start = self._next
        value = self._value()
        negated = self._take("name", "not")
        if self._take("name", "in"):
            return _contains(self._selector(), value, negated)
        self._next = start
        selector = self._selector()
        if self._take("symbol", "=="):
            return _equals(selector, self._value(), negated=False)
        if self._take("symbol", "!="):
            return _equals(selector, self._value(), negated=True)
        if self._take("name", "is"):
            negated = self._take("name", "not")
            if self._take("name", "empty"):
                return _empty(selector, negated)
        else:
            negated = self._take("name", "not")
            if self._take("name", "contains"):
                return _contains(selector, self._value(), negated)
        raise self._unexpected('"!=", "==", "contains", "in", "is" or "not"')

    def _selector(self) -> _Selector:
        parts = [self._expect("name", "a selector")]
        while True:
            if self._take("symbol", "."):
                parts.append(self._expect("name", "a name"))
            elif self._take("symbol", "["):
                parts.append(self._expect("string", "a string")[1:-1])
                if not self._take("symbol", "]"):
                    raise self._unexpected('"]"')
            else:
                break
        path = ".".join(parts)
        if path in _FIELDS:
            return _Selector(path, path, None, _FIELDS[path])
        if len(parts) == 2 and _FIELDS.get(parts[0]) == "map":
            return _Selector(path, parts[0], parts[1], "string")
        raise _wrong(f'Selector "{path}" is not valid')

    def _value(self) -> str:
        kind, text = self._peek()
        if kind not in ("string", "number", "name"):
            raise self._unexpected("a value")
        self._next += 1
        if kind == "string":
            return text[1:-1]
        while kind == "name" and self._take("symbol", "."):  # a.b without quotes is one value
            text += "." + self._expect("name", "a name")
        return text

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "the end")

    def _take(self, kind: str, text: str) -> bool:
        if self._peek() != (kind, text):
            return False
        self._next += 1
        return True

    def _expect(self, kind: str, what: str) -> str:
        found, text = self._peek()
        if found != kind:
            raise self._unexpected(what)
        self._next += 1
        return text

    def _unexpected(self, expected: str) -> RegistryError:
        return _wrong(f"no match found at {self._peek()[1]!r} in {self._text!r}, expected: {expected}")


def _equals(selector: _Selector, text: str, *, negated: bool) -> Filter:
    wanted: str | int | bool = text
    if selector.type in ("strings", "map"):
        raise _no_operator("Not Equal" if negated else "Equal", selector)
    if selector.type == "int":
        if not re.fullmatch(r"-?[0-9]+", text):
            raise _wrong(f'Failed to coerce value "{text}" for selector "{selector.path}": not an integer')
        wanted = int(text)
    if selector.type == "bool":
        if text not in ("true", "false"):
            raise _wrong(f'Failed to coerce value "{text}" for selector "{selector.path}": not a boolean')
        wanted = text == "true"
    return lambda service: (selector.value(service) == wanted) is not negated


def _contains(selector: _Selector, text: str, negated: bool) -> Filter:
    if selector.type in ("int", "bool"):
        raise _no_operator("Not In" if negated else "In", selector)
    return lambda service: (text in (selector.value(service) or ())) is not negated


def _empty(selector: _Selector, negated: bool) -> Filter:
    if selector.type not in ("strings", "map"):
        raise _no_operator("Is Not Empty" if negated else "Is Empty", selector)
    return lambda service: bool(selector.value(service)) is negated


def _no_operator(operator: str, selector: _Selector) -> RegistryError:
    return _wrong(f'Invalid match operator "{operator}" for selector "{selector.path}"')
