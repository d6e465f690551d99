"""A reconciler that runs while a test looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from discovery.backends import Backend
from registrar.config import Settings
from registrar.reconcile import Engine, Reconciler
from tests.tools import wait_until

__all__ = ["Running"]


class Running:
    """Runs a ``Reconciler`` in a thread, and stops it, whatever happens in between.

    with Running(engine, registry, owner="host-1") as running:
        ...
    """

    def __init__(
        self,
        engine: Engine,
        registry: Backend,
        *,
        wall_clock: Callable[[], int] = time.time_ns,
        **settings: Any,
    ) -> None:
        self.reconciler = Reconciler(
            engine,
            registry,
            Settings(**{"owner": "host-1", **settings}),
            hostname="registrator",
            wall_clock=wall_clock,
        )
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="the reconciler of a test")

    def _run(self) -> None:
        try:
            self.reconciler.run()
        except BaseException as exc:  # noqa: BLE001 it is the test's to judge
            self.error = exc

    def settle(self) -> None:
        """Have everything looked at, and wait until nothing is left to do."""
        self.reconciler.look()
        wait_until(self.reconciler.idle, message="the reconciler has nothing to do")

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.reconciler.stop()
        self._thread.join(10)
        assert self.ended(), "the reconciler did not stop"
        if kind is None and self.error is not None:
            raise self.error
