"""The grammar of service names, and of the names that DNS makes of them.

Laws:
- Pure.
- Consul answers ``Web`` and ``web`` as one service: every comparison and every table key goes through
  ``fold``. DNS agrees (RFC 4343).
- A name becomes a URL path and a DNS label: it is validated before it becomes either.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

from discovery.errors import InvalidName
from discovery.model import ServiceName

__all__ = ["close_names", "dns_label_problem", "env_name", "fold", "service_name"]

MAX_NAME_LENGTH: Final = 255  # octets; no DNS name is longer (RFC 1035 section 2.3.4)
MAX_LABEL_LENGTH: Final = 63  # octets (RFC 1035 section 2.3.4)

_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\Z")
# Lone surrogates are what Python makes of bytes on a command line that are no UTF-8: no URL can carry them.
_UNUSABLE: Final = re.compile(r"[\x00-\x20\x7f/\\?#%\ud800-\udfff]")


def fold(name: str) -> str:
    """Return the form of *name* under which names are equal: in lower case.

    DNS ignores case in ASCII only (RFC 4343), Consul in all of Unicode; they agree on every name that DNS
    can carry.
    """
    return name.lower()


def service_name(value: str, *, origin: str = "lookup") -> ServiceName:
    """Check *value* and return it as a service name.

    Consul takes nearly anything; what is refused here could be looked up by nobody.

    Raises:
        InvalidName: *value* is empty, longer than 255 octets, ``.`` or ``..`` (which a URL path drops),
            or holds white space, a control character or one of ``/ \\ ? # %``. *origin* says in the
            message where it came from.
    """
    if not value:
        raise InvalidName(f"the service name from {origin} is empty; give a name such as 'web'")
    length = len(value.encode("utf-8", "surrogatepass"))
    if length > MAX_NAME_LENGTH:
        raise InvalidName(
            f"the service name {value[:40]!r}... from {origin} has {length} octets, "
            f"at most {MAX_NAME_LENGTH} are possible"
        )
    if value in (".", ".."):
        raise InvalidName(
            f"the service name {value!r} from {origin} is a step in a path; give a name such as 'web'"
        )
    if found := _UNUSABLE.search(value):
        raise InvalidName(
            f"the service name {value!r} from {origin} holds {found.group()!r}; "
            "use letters, digits, '-', '_' and '.'"
        )
    return ServiceName(value)


def dns_label_problem(name: str) -> str | None:
    """Say why *name* cannot be asked for as ``<name>.service.consul``, or return None when it can."""
    if len(name) > MAX_LABEL_LENGTH:
        return f"it has {len(name)} characters, and a DNS label has at most {MAX_LABEL_LENGTH}"
    if "." in name:
        return "it holds a '.', and DNS reads what stands before the last one as a tag"
    if not _LABEL.match(name):
        return "a DNS label is made of letters, digits and '-', and does not begin or end with '-'"
    return None


def env_name(name: str) -> str:
    """Return *name* as the middle of an environment variable: ``python-web`` gives ``PYTHON_WEB``."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def close_names(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return up to three of the *known* names that look like *name*, best first."""
    by_fold = {fold(other): other for other in known}
    found = difflib.get_close_matches(fold(name), by_fold, n=3, cutoff=0.6)
    return tuple(by_fold[match] for match in found)
