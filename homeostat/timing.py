"""Where the time goes: seconds per part of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall-clock seconds by part of a run; parts do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Seconds since the run began, in a part or not."""
        return time.perf_counter() - self._started

    def add(self, seconds: Mapping[str, float], wall_s: float) -> None:
        """Count what an earlier process has spent on the same run."""
        for part, spent in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + spent
        self._started -= wall_s

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``part``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[part] = self.seconds.get(part, 0.0) + spent

    def shares(self) -> dict[str, float]:
        """Each part's share of all measured time, 0..1."""
        total = sum(self.seconds.values())
        return {part: spent / total for part, spent in self.seconds.items()} if total else {}
