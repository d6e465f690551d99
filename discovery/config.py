"""Settings of the client: arguments over environment over defaults, parsed once into frozen values.

Laws:
- Parsing is pure: the environment is an argument. ``Config.from_env()`` is the one place that reads the
  process's own.
- An argument beats its variable, a variable beats its default; ``CONSUL_*`` mean what they mean to
  Consul's own command line.
- An empty variable is an unset one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from discovery.errors import ConfigurationError
from discovery.names import env_name

if TYPE_CHECKING:
    from discovery.balance import Strategy

__all__ = ["Config", "ConsulConfig"]

DEFAULT_PORT: Final = 8500
_PORTS: Final = {"http": 80, "https": 443, "consul": DEFAULT_PORT, "consul-tls": DEFAULT_PORT}
"""Where the address names none: what a URL means by that, and what ``host`` alone or ``consul://`` does."""
_LONGEST: Final = {"timeout": 86400.0, "wait": 600.0, "idle": math.inf}
"""Seconds. Consul holds a read for at most 600; a socket's timer overflows after 24 days."""
_TRUE: Final = frozenset({"1", "t", "true"})
_FALSE: Final = frozenset({"0", "f", "false"})


@dataclass(frozen=True, slots=True)
class ConsulConfig:
    """How to reach one Consul agent."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    socket_path: str | None = None
    """A unix socket; host and port are not used then."""
    tls: bool = False
    verify: bool = True
    """Check the agent's certificate. False only where CONSUL_HTTP_SSL_VERIFY says so."""
    cacert: str | None = None
    capath: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    tls_server_name: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    """Read anew for each request, and beats ``token``: tokens are rotated by replacing the file."""
    auth: str | None = field(default=None, repr=False)
    """``user:password`` for HTTP basic authentication."""
    namespace: str | None = None
    partition: str | None = None
    explicit: bool = False
    """True when somebody chose this address; only a defaulted one may be replaced by another guess."""

    @property
    def url(self) -> str:
        """The address as people write it."""
        if self.socket_path:
            return f"unix://{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ConsulConfig:
        """Read the ``CONSUL_*`` variables (Consul: "Commands", Environment Variables).

        Raises:
            ConfigurationError: a variable holds what it cannot mean; the message names it.
        """
        config = cls(
            tls=_flag(env, "CONSUL_HTTP_SSL", default=False),
            verify=_flag(env, "CONSUL_HTTP_SSL_VERIFY", default=True),
            cacert=env.get("CONSUL_CACERT") or None,
            capath=env.get("CONSUL_CAPATH") or None,
            client_cert=env.get("CONSUL_CLIENT_CERT") or None,
            client_key=env.get("CONSUL_CLIENT_KEY") or None,
            tls_server_name=env.get("CONSUL_TLS_SERVER_NAME") or None,
            token=env.get("CONSUL_HTTP_TOKEN") or None,
            token_file=env.get("CONSUL_HTTP_TOKEN_FILE") or None,
            auth=env.get("CONSUL_HTTP_AUTH") or None,
            namespace=env.get("CONSUL_NAMESPACE") or None,
            partition=env.get("CONSUL_PARTITION") or None,
        )
        if address := env.get("CONSUL_HTTP_ADDR"):
            config = config.at(address, origin="CONSUL_HTTP_ADDR")
        return config

    def at(self, address: str, *, origin: str) -> ConsulConfig:
        """Return this configuration for another *address*.

        *address* is ``host``, ``host:port``, ``http(s)://host[:port]``, ``unix:///path``, or one of
        Registrator's ``consul://``, ``consul-tls://`` and ``consul-unix://``.

        Raises:
            ConfigurationError: naming *address* and *origin*.
        """
        address = address.strip()
        wrong = f"cannot use the Consul address {address!r} from {origin}"
        if "://" not in address:
            address = f"consul://{address}"
        if "@" in address and "unix" not in address.partition("://")[0]:
            raise ConfigurationError(  # without the address: there may be a password in it
                f"cannot use the Consul address from {origin}: it holds a user name; "
                "write host:port, and user:password into CONSUL_HTTP_AUTH"
            )
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise ConfigurationError(f"{wrong}: {exc}; write host:port, for example 127.0.0.1:8500") from exc
        if parts.scheme in ("unix", "consul-unix"):
            path = address.partition("://")[2]
            if not path:
                raise ConfigurationError(f"{wrong}: the path is missing, write unix:///run/consul.sock")
            return replace(self, socket_path=path, explicit=True)
        if parts.scheme not in _PORTS:
            raise ConfigurationError(
                f"{wrong}: unknown scheme {parts.scheme!r}; "
                "use http, https, unix, consul, consul-tls or consul-unix"
            )
        if not host:
            raise ConfigurationError(f"{wrong}: the host is missing, write host:port")
        if port == 0:
            raise ConfigurationError(f"{wrong}: nothing listens on port 0, write 1 to 65535")
        if beyond := address.partition("://")[2].removeprefix(parts.netloc).strip("/"):
            raise ConfigurationError(f"{wrong}: Consul has no use for {beyond!r}, write host:port alone")
        # A plain http:// never undoes CONSUL_HTTP_SSL=true: whoever set that wants no plain text.
        tls = self.tls or parts.scheme in ("https", "consul-tls")
        return replace(
            self,
            host=host,
            port=port or _PORTS[parts.scheme],
            socket_path=None,
            tls=tls,
            explicit=True,
        )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a client. Durations are seconds."""

    consul: ConsulConfig = ConsulConfig()
    dc: str | None = None
    """Data centre that lookups ask; None is the agent's own."""
    failover: tuple[str, ...] = ()
    """Data centres that are asked in turn when that one has no instance that may be used."""
    zone: str | None = None
    """Instances of this zone are preferred, and those of others used when it has none."""
    strategy: str | Strategy = "round_robin"
    """Which of several instances: a name from ``discovery.balance.STRATEGIES``, or an object."""
    static: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Services that are where they are: name as in a variable (``names.env_name``) to
    ``host:port,host:port``. From the environment: every ``DISCOVERY_<NAME>`` that is no setting."""
    static_file: str | None = None
    """The same in a file, JSON or TOML (``backends.static``), read anew when it changes."""
    dns: tuple[str, ...] = ()
    """Name servers to ask when no Consul can be asked over HTTP: ``host``, ``host:port``, or ``auto`` for
    those that are likely (``sources``). From the environment: ``auto`` unless DISCOVERY_DNS is set; ``off``
    is none."""
    domain: str = "consul"
    """The domain of the registry in DNS."""
    cache: str | None = None
    """The directory of the snapshots that a cold start falls back to. From the environment: portcall's own
    in the user's cache unless DISCOVERY_CACHE is set; ``off`` is none."""
    share: str | None = None
    """The directory through which the processes of this user on this host share one watch for each service.
    From the environment: ``auto``, portcall's own in memory (``sources``), unless DISCOVERY_SHARE is set;
    ``off`` is none."""
    timeout: float = 1.0
    """What a lookup may take in all when it has to wait for a first answer."""
    wait: float = 55.0
    """How long the registry may hold a blocking read. Under a minute, because proxies and NAT tables
    between here and there commonly forget connections idle for longer."""
    max_watches: int = 64
    """Questions followed by a blocking read each. Consul accepts 200 connections per client address, and
    several processes share that: questions beyond are asked again once a second instead."""
    idle: float = 600.0
    """A name not asked for in this time is no longer followed."""

    def __post_init__(self) -> None:
        for name in _LONGEST:
            _check_seconds(name, getattr(self, name), f"{name}={getattr(self, name)!r}")
        _check_watches(self.max_watches, f"max_watches={self.max_watches!r}")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Read the environment (the process's own when *env* is None); *overrides* win.

        Raises:
            ConfigurationError: a variable or an override cannot be used.
        """
        env = os.environ if env is None else env
        settings: dict[str, Any] = {"consul": ConsulConfig.from_env(env)}
        for name in ("dc", "zone", "strategy", "static_file", "domain"):
            if raw := env.get(_VARIABLES[name]):
                settings[name] = raw
        settings["failover"] = _words(env.get(_VARIABLES["failover"], ""))
        settings["dns"] = _words(env.get(_VARIABLES["dns"], "") or "auto", off="off")
        settings["cache"] = env.get(_VARIABLES["cache"]) or default_cache(env)
        settings["share"] = env.get(_VARIABLES["share"]) or "auto"
        for name in ("cache", "share"):
            if settings[name] == "off":
                settings[name] = None
        settings["static"] = {
            variable.removeprefix("DISCOVERY_"): raw
            for variable, raw in env.items()
            if variable.startswith("DISCOVERY_") and raw and variable not in _VARIABLES.values()
        }
        for name in _LONGEST:
            if raw := env.get(variable := _VARIABLES[name]):
                settings[name] = _check_seconds(name, _number(float, raw), f"{variable}={raw!r}")
        if raw := env.get(variable := _VARIABLES["max_watches"]):
            settings["max_watches"] = _check_watches(_number(int, raw), f"{variable}={raw!r}")
        return cls(**settings).but(**overrides)

    def but(self, **overrides: Any) -> Config:
        """Return these settings with *overrides*.

        A string means what it means in the variable: ``off`` is none, ``dc2,dc3`` are two, and *consul* is
        an address, asked with the token and the certificates that there are. Names in *static* are services'.

        Raises:
            ConfigurationError: there is no such setting, or it cannot have that value.
        """
        if unknown := overrides.keys() - self.__dataclass_fields__.keys():
            known = ", ".join(self.__dataclass_fields__)
            raise ConfigurationError(f"there is no setting {min(unknown)!r}; the settings are {known}")
        return replace(self, **{name: self._meant(name, value) for name, value in overrides.items()})

    def _meant(self, name: str, value: Any) -> Any:
        """Return what *value* as the argument *name* says; ``__post_init__`` judges numbers."""
        match name:
            case "consul" if isinstance(value, str):
                return self.consul.at(value, origin="consul=")
            case "consul" if not isinstance(value, ConsulConfig):
                raise ConfigurationError(f"consul={value!r} is not possible: give an address, host:port")
            case "dns" if isinstance(value, str):
                return _words(value, off="off")
            case "failover" if isinstance(value, str):
                return _words(value)
            case "dns" | "failover":
                return tuple(value or ())
            case "cache" | "share":
                return None if value == "off" else value
            case "static":
                return {env_name(service): _addresses(service, text) for service, text in value.items()}
        return value


_VARIABLES: Final = {
    name: "DISCOVERY_STATIC" if name == "static_file" else f"DISCOVERY_{name.upper()}"
    for name in Config.__dataclass_fields__
    if name not in ("consul", "static")
}
"""The variable of each setting."""


def default_cache(env: Mapping[str, str]) -> str | None:
    """Return portcall's directory in the user's cache (XDG Base Directory Specification), None without one.

    A relative path there is invalid by that specification, and would make snapshots follow ``chdir``.
    """
    for base in (env.get("XDG_CACHE_HOME"), env.get("HOME") and f"{env['HOME']}/.cache"):
        if base and base.startswith("/"):
            return f"{base}/portcall/snapshots"
    return None


def _words(raw: str, *, off: str | None = None) -> tuple[str, ...]:
    return () if raw == off else tuple(filter(None, re.split(r"[,\s]+", raw)))


def _addresses(service: str, text: object) -> str:
    """Check what ``static`` says of *service*, at once: unlike a variable it is meant for nobody else."""
    from discovery.backends.static import address  # which needs TOML and JSON

    said = f"static={{{service!r}: {text!r}}}"
    if not isinstance(text, str):
        raise ConfigurationError(f"{said} is not possible: give 'host:port', or 'host:port,host:port'")
    for word in _words(text):
        address(word, origin=said)
    return text


def _flag(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    raw = env.get(name, "")
    if not raw:
        return default
    if raw.lower() in _TRUE:
        return True
    if raw.lower() in _FALSE:
        return False
    raise ConfigurationError(f"{name}={raw!r} is neither true nor false; write true or false")


def _number(kind: type[int] | type[float], raw: str) -> object:
    """Read *raw* as a number; what is none comes back as it is, for the check that follows to refuse."""
    try:
        return kind(raw)
    except ValueError:
        return raw


def _check_seconds(name: str, value: object, said: str) -> float:
    longest = _LONGEST[name]
    if isinstance(value, (int, float)) and 0 < value <= longest:
        return value
    limit = "" if longest == math.inf else f" and at most {longest:g}"
    raise ConfigurationError(f"{said} is not possible: give seconds above 0{limit}, for example 1.5")


def _check_watches(value: object, said: str) -> int:
    if isinstance(value, int) and value >= 1:
        return value
    raise ConfigurationError(f"{said} is not possible: give a whole number of at least 1, for example 64")
