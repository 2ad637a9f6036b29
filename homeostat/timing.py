"""Where the time goes: seconds per stage of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall-clock seconds by stage; stages do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Seconds since the run began, stages or not."""
        return time.perf_counter() - self._started

    def add(self, seconds: Mapping[str, float], wall_s: float) -> None:
        """Count what an earlier process has spent on the same run."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        self._started -= wall_s

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def shares(self) -> dict[str, float]:
        """Each stage's share of all measured time, 0..1."""
        total = sum(self.seconds.values())
        return {stage: spent / total for stage, spent in self.seconds.items()} if total else {}
