"""What is handed down through a run, and what either of its wings must be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from homeostat.config.run import RunConfig
from homeostat.models.placement import Placement
from homeostat.report.console import Console
from homeostat.report.metrics import MetricsLog
from homeostat.runs.interrupt import Interrupt
from homeostat.timing import Stopwatch
from homeostat.types import Progress, StepResult, Trainer

if TYPE_CHECKING:  # what prints the first line of a run imports this module
    from homeostat.models.adapters import Policy


@dataclass(frozen=True)
class Run:
    """One run: what it is, where it lies, whom it tells, and whether it is to stop."""

    config: RunConfig
    folder: Path
    overrides: tuple[str, ...]  # what the config was composed from, for a later resume
    placement: Placement
    console: Console
    watch: Stopwatch
    log: MetricsLog
    stop: Interrupt

    @contextmanager
    def section(self, title: str, timer: str, whole: bool = False) -> Iterator[Progress]:
        """Show progress under a title while the block runs, and count its time.

        Args:
            title: For people.
            timer: Of the stopwatch.
            whole: Do not leave it half way where the run is to stop.
        """
        with self.console.section(title, whole=whole) as progress, self.watch(timer):
            yield progress


@runtime_checkable
class Wing(Protocol):
    """What a run measures around the steps of its trainer; one for each founding system."""

    @staticmethod
    def check_files(config: RunConfig) -> None:
        """Read the files that the user gives, so that a bad one is named before anything else.

        Raises:
            HomeostatError: One is missing, or a row of it is not what it must be.
        """

    def __init__(self, run: Run, policy: Policy) -> None:
        """Nothing is computed yet."""

    def sequence_tokens(self) -> int:
        """Tokens of the longest conversation of a step, for the memory plan."""

    def prepare(self) -> Trainer | None:
        """Measure what the trainer needs to know, and make it; None if the run is to stop."""

    def start(self) -> None:
        """Measure what the first step is compared with, as far as no earlier process has."""

    def after_step(self, result: StepResult) -> None:
        """Measure and keep what a step has left."""

    def report_step(self, result: StepResult, seconds: float) -> None:
        """Tell what a step has come to."""

    @property
    def ended(self) -> str | None:
        """Why the run is over before its last step; None while it is not."""

    def finish(self) -> None:
        """Measure what was learnt."""

    def summary(self) -> Mapping[str, Any]:
        """What summary.json is to hold, as far as it is known."""

    def report(self) -> None:
        """Show on the console what a finished run has found."""
