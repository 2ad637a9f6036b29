"""What becomes of the parts of `gpu_acceptance.py`: their budget, their records, their table."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from homeostat.models.load import first_sentence

LEAST_S = 10.0  # seconds; with less left no part is begun
PASSED, MISSED, DONE = "passed", "MISSED", "done"


class Skipped(Exception):
    """A part cannot run here; the message says why."""


class OutOfTime(BaseException):
    """The time is up in the middle of a part; no library that catches errors may keep it."""


@dataclass(frozen=True)
class Finding:
    """What a part has found.

    Attributes:
        says: In one line.
        figures: JSON-ready; None where something was not measured.
        met: Whether its bar is met; None without a bar.
    """

    says: str
    figures: Mapping[str, Any]
    met: bool | None = None


@dataclass(frozen=True)
class Record:
    """What became of a part.

    Attributes:
        name: Of the part.
        status: ``passed``, ``MISSED`` (its bar), ``done`` (it has none that can be judged here),
            ``failed: <why>`` or ``skipped: <why>``.
        seconds: That it took.
        says: Its finding in one line.
        figures: Of its finding.
    """

    name: str
    status: str
    seconds: float = 0.0
    says: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        """Whether the run as a whole is not accepted for it."""
        return self.status == MISSED or self.status.startswith("failed")


Records = Mapping[str, Record]


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Attributes:
        name: For the table.
        work: Does it; gets what became of the parts before.
        least_s: Seconds that must be left for it to be begun; 0 where it takes next to none, and
            is done even when the time is up.
    """

    name: str
    work: Callable[[Records], Finding]
    least_s: float = LEAST_S


class Budget:
    """The seconds that all parts have together, counted from its making."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 once they are spent."""
        return max(0.0, self._end - time.monotonic())

    @contextmanager
    def held_to(self) -> Iterator[None]:
        """Within this context `OutOfTime` is raised when the time is up.

        Raises:
            OutOfTime: It is.
        """

        def ring(*_: Any) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def sentence(error: BaseException) -> str:
    """An error's class and the first sentence of what it says, on one line."""
    kind, first = type(error).__name__, first_sentence(error)
    return kind if first == kind else f"{kind}: {first}"


def run_part(part: Part, budget: Budget, records: Records) -> Record:
    """Do a part if there is time for it; whatever it raises becomes its status."""
    if budget.left < part.least_s:
        return Record(part.name, "skipped: no time left")
    began = time.perf_counter()
    try:
        with budget.held_to() if part.least_s else nullcontext():
            finding = part.work(records)
    except Skipped as reason:
        return Record(part.name, f"skipped: {reason}", time.perf_counter() - began)
    except OutOfTime:
        spent = time.perf_counter() - began
        return Record(part.name, f"failed: no time left after {spent:.0f} s", spent)
    # Whatever it is, among it CUDA's errors: one part must not cost the others their turn.
    except Exception as error:
        traceback.print_exc()
        return Record(part.name, f"failed: {sentence(error)}", time.perf_counter() - began)
    status = DONE if finding.met is None else PASSED if finding.met else MISSED
    spent = time.perf_counter() - began
    return Record(part.name, status, spent, finding.says, finding.figures)


def run_parts(
    parts: Sequence[Part], budget: Budget, tell: Callable[[Sequence[Record]], None]
) -> list[Record]:
    """Do every part that there is time for; ``tell`` gets all records after each."""
    records: dict[str, Record] = {}
    for part in parts:
        records[part.name] = run_part(part, budget, records)
        tell(list(records.values()))
    return list(records.values())


def table(records: Sequence[Record]) -> list[str]:
    """A line for each part: name, seconds, what became of it, what it has found."""
    width = max(len(record.name) for record in records)
    lines = [f"{'part':<{width}}  {'s':>6}  result"]
    for record in records:
        result = ": ".join(filter(None, (record.status, record.says)))
        lines.append(f"{record.name:<{width}}  {record.seconds:>6.1f}  {result}")
    return lines


def verdict(records: Sequence[Record]) -> str:
    """One line: how many parts were accepted, and how many not."""
    bad = sum(record.is_bad for record in records)
    skipped = sum(record.status.startswith("skipped") for record in records)
    ran = len(records) - bad - skipped
    return f"{ran} of {len(records)} parts in order, {bad} failed or missed, {skipped} skipped"
