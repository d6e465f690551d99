"""Fixtures for real Docker engines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.registrar.dockerd import Dockerd
from tests.tools import missing, require_root


@pytest.fixture(scope="session")
def shared_dockerd() -> Iterator[Dockerd]:
    """One dockerd for the session; ask for `dockerd` instead, which is the same one, emptied."""
    require_root("a dockerd in namespaces of its own")
    for command in ("dockerd", "unshare", "ip", "busybox"):
        if shutil.which(command) is None:
            missing(f"{command} is not installed")
    with Dockerd() as dockerd:
        yield dockerd


@pytest.fixture
def dockerd(shared_dockerd: Dockerd) -> Iterator[Dockerd]:
    """A real Docker engine without containers."""
    yield shared_dockerd
    shared_dockerd.clear()
