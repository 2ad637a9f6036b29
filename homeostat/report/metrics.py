"""Metrics, episodes and timing as JSON lines; a tracker is a mirror of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from homeostat.config.rows import kept_rows
from homeostat.errors import HomeostatError
from homeostat.files import naming_full_disk, read_json, writing
from homeostat.report.trackers import Tracker

SUMMARY = "summary.json"
LOGS = ("metrics.jsonl", "episodes.jsonl", "timing.jsonl")


class MetricsLog:
    """Appends to the three logs of a run, and mirrors metrics and timing to its tracker.

    Seconds have a file of their own, so that the other two are the same whenever the run is.
    """

    def __init__(self, folder: Path, tracker: Tracker | None, say: Callable[[str], None]) -> None:
        """Nothing is written yet.

        Args:
            folder: Of the run.
            tracker: Told the rows that are there already before the next one; None for no mirror.
            say: Told if the tracker fails; the run goes on without it.
        """
        self._folder, self._tracker, self._say = folder, tracker, say
        self._caught_up = False

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        episodes: Iterable[Mapping[str, Any]],
        timing: Mapping[str, float],
    ) -> None:
        """Log one update; ``timing`` is seconds, keyed ``time/<part>_s``."""
        self._catch_up()
        append_rows(self._folder / "metrics.jsonl", [{"step": step, **metrics}])
        append_rows(self._folder / "episodes.jsonl", episodes)
        append_rows(self._folder / "timing.jsonl", [{"step": step, **timing}])
        self._mirror(step, {**metrics, **timing})

    def _catch_up(self) -> None:
        """Tell the tracker what an earlier process of this run has logged."""
        if self._caught_up:
            return
        self._caught_up = True
        rows: dict[int, dict[str, float]] = {}
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self._folder / name
            for row in kept_rows(path) if path.is_file() else ():
                known = {key: value for key, value in row.items() if value is not None}
                rows.setdefault(row["step"], {}).update(known)
        for step, figures in sorted(rows.items()):
            self._mirror(step, {key: value for key, value in figures.items() if key != "step"})

    def _mirror(self, step: int, figures: Mapping[str, float]) -> None:
        with self._surviving():
            if self._tracker is not None:
                self._tracker.log(step, figures)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Whatever a tracker raises must not cost what it mirrors: it is said, and left behind."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self._say(
                f"the tracker has failed ({type(error).__name__}: {reason}); the run goes on "
                "without it, and has everything in its folder."
            )
            self._tracker = None

    def sizes(self) -> dict[str, int]:
        """Bytes in each log; 0 for one that was never written to."""
        paths = {name: self._folder / name for name in LOGS}
        return {name: p.stat().st_size if p.exists() else 0 for name, p in paths.items()}

    def truncate(self, sizes: Mapping[str, int]) -> None:
        """Cut every log back to an earlier size in bytes; a log of size 0 is removed.

        Raises:
            HomeostatError: A log is shorter than that.
        """
        for name, written in self.sizes().items():
            path, size = self._folder / name, sizes[name]
            if written < size:
                raise HomeostatError(
                    f"{path} has {written} bytes, but its checkpoint was taken at {size}; put the "
                    "lost rows back, or start the run anew."
                )
            if size:
                os.truncate(path, size)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Finish the mirror; the files are complete after every step."""
        self._catch_up()
        path = self._folder / SUMMARY
        with self._surviving():
            if self._tracker is not None:
                self._tracker.finish(read_json(path) if path.is_file() else {})
        self._tracker = None


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines in a single write, so that a kill never leaves half of a batch of rows."""
    text = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
    with naming_full_disk(path.parent), path.open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            _write_all(stream, text.encode("utf-8"))
        except OSError:
            stream.truncate(before)
            raise
        os.fsync(stream.fileno())


def _write_all(stream: FileIO, data: bytes) -> None:
    """All of it, though a disk that is nearly full takes only a part at once."""
    while data:
        data = data[stream.write(data) :]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as scratch:
        append_rows(scratch, rows)


def finite(value: Any) -> Any:
    """The value with NaN and infinities as None: valid JSON, and missing is missing."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
