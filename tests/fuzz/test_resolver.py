"""A few thousand of what `make fuzz` throws by the million, and the corpus with all its neighbours."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest

from resolver.engine import Transport
from tests.fuzz.packets import corpus, mutate
from tests.fuzz.resolver import make_engine, request, run, upstream_reply


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_requests(transport: str) -> None:
    engine, random = make_engine(), Random(7)
    for raw in corpus("requests"):
        request(engine, raw, cast(Transport, transport))
        for _ in range(100):
            request(engine, mutate(raw, random), cast(Transport, transport))


def test_replies_of_upstreams() -> None:
    engine, random = make_engine(), Random(7)
    for raw in corpus("replies"):
        for size in (None, 512, 1232, 4096):
            upstream_reply(engine, raw, size)
            for _ in range(200):
                upstream_reply(engine, mutate(raw, random), size)


@pytest.mark.parametrize("seed", range(4))
def test_a_run(seed: int) -> None:
    run(5_000, seed)
