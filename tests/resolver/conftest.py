"""Resolvers on real sockets, following an embedded agent."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pytest
from hypothesis import settings

from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from resolver.config import Endpoint, Settings
from resolver.server import Resolver

# Examples are bounded in number; how long one takes says more about who else uses the machine.
settings.register_profile("resolver", deadline=None)
settings.load_profile("resolver")

Start = Callable[..., Resolver]
ANYWHERE = Endpoint("127.0.0.1", 0)


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent(http=("127.0.0.1", 0), node="host-1", address="10.1.0.1", check_update_interval=0) as agent:
        yield agent


@pytest.fixture
def start_resolver() -> Iterator[Start]:
    """Start a resolver that follows the registry at a URI; it ends with the test."""
    with ExitStack() as started:

        def start(uri: str, settings: Settings | None = None, config: Config | None = None) -> Resolver:
            config = config or Config()
            backend = open_backend(uri, config)
            started.callback(backend.close)
            settings = settings or Settings(upstreams=())
            if settings.listen == Settings().listen:
                settings = replace(settings, listen=(ANYWHERE,))
            return started.enter_context(Resolver(settings, backend, config=config))

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and dns.example.test that signs itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=dns.example.test",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:dns.example.test",
         "-keyout", path, "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    with path.open("a") as both:
        both.write(Path(f"{path}.crt").read_text())
    return path


def ask(
    where: Resolver | tuple[str, int], name: str, qtype: str = "A", *, tcp: bool = False, **options: Any
) -> dns.message.Message:
    """Ask over a real socket and return the reply; dnspython checks id, question and peer."""
    host, port = (where.addresses[0].host, where.addresses[0].port) if isinstance(where, Resolver) else where
    options.setdefault("use_edns", None)
    message = dns.message.make_query(name, qtype, **options)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(message, host, port=port, timeout=10)


def addresses(reply: dns.message.Message) -> list[str]:
    """The data of the answer's records, in the order in which they came."""
    return [str(record) for rrset in reply.answer for record in rrset]
