"""A few thousand of what `python -m tests.fuzz.resolver` throws by the million."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.resolver import corpus, make_engine, mutate, request, upstream_reply


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_requests(transport: str) -> None:
    engine, random = make_engine(), Random(7)
    for raw in corpus("requests"):
        request(engine, raw, transport)  # type: ignore[arg-type]
        for _ in range(100):
            request(engine, mutate(raw, random), transport)  # type: ignore[arg-type]
    for _ in range(1000):
        request(engine, random.randbytes(random.randrange(80)), transport)  # type: ignore[arg-type]


def test_replies_of_upstreams() -> None:
    engine, random = make_engine(), Random(7)
    for raw in corpus("replies"):
        for size in (512, 1232, 4096):
            upstream_reply(engine, raw, size)
            for _ in range(200):
                upstream_reply(engine, mutate(raw, random), size)
