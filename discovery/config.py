"""Settings of the client: arguments over environment over defaults, parsed once into frozen values.

Laws:
- Parsing is pure: the environment is an argument. ``Config.from_env()`` is the one place that reads the
  process's own.
- An argument beats its variable, a variable beats its default; ``CONSUL_*`` mean what they mean to
  Consul's own command line.
- An empty variable is an unset one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from discovery.errors import ConfigurationError

__all__ = ["Config", "ConsulConfig"]

DEFAULT_PORT: Final = 8500
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
    """Read anew for each connection, and beats ``token``: tokens are rotated by replacing the file."""
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
        wrong = f"cannot use the Consul address {address!r} from {origin}"
        if "://" not in address:
            address = f"consul://{address}"
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise ConfigurationError(f"{wrong}: {exc}; write host:port, for example 127.0.0.1:8500") from exc
        if parts.scheme in ("unix", "consul-unix"):
            path = unquote(parts.netloc + parts.path)
            if not path:
                raise ConfigurationError(f"{wrong}: the path is missing, write unix:///run/consul.sock")
            return replace(self, socket_path=path, explicit=True)
        if parts.scheme not in ("http", "https", "consul", "consul-tls"):
            raise ConfigurationError(
                f"{wrong}: unknown scheme {parts.scheme!r}; "
                "use http, https, unix, consul, consul-tls or consul-unix"
            )
        if not host and parts.netloc:
            raise ConfigurationError(f"{wrong}: the host is missing, write host:port")
        # A plain http:// never undoes CONSUL_HTTP_SSL=true: whoever set that wants no plain text.
        tls = self.tls or parts.scheme in ("https", "consul-tls")
        return replace(
            self,
            host=host or "127.0.0.1",
            port=port or DEFAULT_PORT,
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
    timeout: float = 1.0
    """What a lookup may take in all when it has to wait for a first answer."""
    wait: float = 55.0
    """How long the registry may hold a blocking read. Under a minute, because proxies and NAT tables
    between here and there commonly forget connections idle for longer."""
    max_watches: int = 64
    """Names followed by a blocking read each. Consul accepts 200 connections per client address, and
    several processes share that: names beyond are read anew when asked for, at most once a second."""
    idle: float = 600.0
    """A name not asked for in this time is no longer followed."""

    def __post_init__(self) -> None:
        for name in ("timeout", "wait", "idle"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigurationError(f"{name}={value!r} is not possible: give seconds above 0")
        if self.wait > 600:
            raise ConfigurationError(
                f"wait={self.wait!r} is not possible: Consul holds a read for at most 600 s"
            )
        if self.max_watches < 1:
            raise ConfigurationError(f"max_watches={self.max_watches!r} is not possible: give at least 1")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Read the environment (the process's own when *env* is None); *overrides* win.

        Raises:
            ConfigurationError: a variable or an override cannot be used.
        """
        env = os.environ if env is None else env
        settings: dict[str, Any] = {"consul": ConsulConfig.from_env(env)}
        if dc := env.get("DISCOVERY_DC"):
            settings["dc"] = dc
        for name in ("timeout", "wait", "idle"):
            if raw := env.get(f"DISCOVERY_{name.upper()}"):
                settings[name] = _seconds(raw, f"DISCOVERY_{name.upper()}")
        if raw := env.get("DISCOVERY_MAX_WATCHES"):
            settings["max_watches"] = _whole(raw, "DISCOVERY_MAX_WATCHES")
        settings.update(overrides)
        try:
            return cls(**settings)
        except TypeError as exc:
            known = ", ".join(cls.__dataclass_fields__)
            raise ConfigurationError(f"{exc}; the settings are {known}") from exc


def _flag(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    raw = env.get(name, "")
    if not raw:
        return default
    if raw.lower() in _TRUE:
        return True
    if raw.lower() in _FALSE:
        return False
    raise ConfigurationError(f"{name}={raw!r} is neither true nor false; write true or false")


def _seconds(raw: str, origin: str) -> float:
    try:
        return float(raw)
    except ValueError:
        raise ConfigurationError(
            f"{origin}={raw!r} is not a number of seconds, write for example 1.5"
        ) from None


def _whole(raw: str, origin: str) -> int:
    try:
        return int(raw)
    except ValueError:
        raise ConfigurationError(f"{origin}={raw!r} is not a whole number, write for example 64") from None
