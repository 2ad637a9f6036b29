"""What a person sees while a run works: stages, progress, tokens per second, time left.

In a terminal this is a live display; elsewhere it is one plain line per stage and update. Text that
a model wrote is never printed here as markup.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.table import Table
from rich.text import Text

from homeostat.signals.probing.validation import ProbeReport
from homeostat.types import Estimate, Progress


class _TokensPerSecond(ProgressColumn):
    """Tokens done so far over the time since the stage began."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first tokens."""
        tokens, elapsed = task.fields.get("tokens", 0), task.elapsed or 0.0
        return Text(f"{tokens / elapsed:.0f} tok/s" if tokens and elapsed else "", style="cyan")


class Console:
    """Progress and results of one run on standard output."""

    def __init__(self, rich: RichConsole | None = None) -> None:
        self.rich = rich or RichConsole(highlight=False, soft_wrap=False)
        self._started = time.perf_counter()
        self._training: list[float] = []

    def say(self, message: str) -> None:
        """One line of plain text."""
        self.rich.print(Text.assemble((self._clock(), "dim"), " ", message), soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """Show a stage while the block runs; yields where the block reports its progress."""
        if not self.rich.is_terminal:
            with self._plain_stage(title) as progress:
                yield progress
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _TokensPerSecond(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.rich, transient=True) as display:
            task = display.add_task(title, total=None, tokens=0)

            def report(done: int, total: int, tokens: int = 0) -> None:
                seen = display.tasks[0].fields["tokens"]
                display.update(task, completed=done, total=total, tokens=seen + tokens)

            start = time.perf_counter()
            yield report
            seen = display.tasks[0].fields["tokens"]
        self.say(_finished(title, time.perf_counter() - start, seen))

    @contextmanager
    def _plain_stage(self, title: str) -> Iterator[Progress]:
        seen = 0

        def report(done: int, total: int, tokens: int = 0) -> None:  # noqa: ARG001
            nonlocal seen
            seen += tokens

        self.say(f"{title} ...")
        start = time.perf_counter()
        yield report
        self.say(_finished(title, time.perf_counter() - start, seen))

    def update(self, step: int, total: int, metrics: Mapping[str, float], seconds: float) -> None:
        """One line per training update, with the time left at the mean pace so far."""
        self._training.append(seconds)
        left = sum(self._training) / len(self._training) * (total - step)
        paid = "valence" if "reward/valence" in metrics else "total"
        shown = {
            "reward" if paid == "total" else paid: metrics.get(f"reward/{paid}"),
            "KL": metrics.get("policy/kl_nats_per_token"),
            "grad": metrics.get("optim/grad_norm"),
        }
        figures = "  ".join(f"{k} {v:+.3f}" for k, v in shown.items() if v is not None)
        terms = ", ".join(f"{k} {v:+.2f}" for k, v in largest_terms(metrics).items())
        rate = metrics.get("rollout/response_tokens", 0.0) / seconds
        self.say(f"update {step}/{total}  {figures}  {rate:.0f} reply tok/s  {duration(left)} left")
        if terms:
            self.say(f"  valence = {terms}")

    def memory(self, parts: Mapping[str, int], total: int, limit: float) -> None:
        """What training will hold in memory, by part; bytes."""
        table = Table(title="Memory that training needs (estimate)", title_justify="left")
        table.add_column("part", overflow="fold")
        table.add_column("GB", justify="right", no_wrap=True)
        for name, size in parts.items():
            table.add_row(name.replace("_", " "), f"{size / 1e9:.2f}")
        table.add_section()
        table.add_row("at once", f"{total / 1e9:.2f}")
        table.add_row("limit", f"{limit / 1e9:.2f}")
        self.rich.print(table)

    def comparison(self, metrics: Mapping[str, Estimate]) -> None:
        """The before/after table; a narrow window gets fewer columns."""
        table = Table(title="Held-out episodes, base against trained", title_justify="left")
        table.add_column("metric", overflow="fold")
        wide = self.rich.width >= 76
        for name in (["before", "after"] if wide else []) + ["difference", "95% interval"]:
            table.add_column(name, justify="right", no_wrap=True)
        # The summands of valence stand right below it.
        for name, found in sorted(metrics.items(), key=lambda item: _place(item[0])):
            ends = [number(found.before), number(found.after)] if wide else []
            table.add_row(Text(name), *ends, number(found.diff, sign=True), interval(found.ci95))
        self.rich.print(table)

    def verdicts(self, reports: Mapping[str, ProbeReport]) -> None:
        """Which affect probes may be trusted; a narrow window gets fewer columns."""
        table = Table(title="Affect probes on unseen authors", title_justify="left")
        table.add_column("affect", overflow="fold")
        wide = self.rich.width >= 76
        for name in ["AUROC", "verdict"] + (["95% interval", "words alone"] if wide else []):
            table.add_column(name, justify="right", no_wrap=True)
        for affect, found in reports.items():
            bounds = "—" if found.ci95 is None else f"[{found.ci95[0]:.3f}, {found.ci95[1]:.3f}]"
            more = [bounds, number(found.controls["text_only"])] if wide else []
            table.add_row(Text(affect), number(found.auroc), found.verdict, *more)
        self.rich.print(table)

    def failures(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Which intrinsic signal sees which failure best."""
        table = Table(title="Failures against ordinary replies", title_justify="left")
        table.add_column("failure", overflow="fold")
        table.add_column("best signal", overflow="fold")
        table.add_column("AUROC", justify="right", no_wrap=True)
        for failure, best in found.items():
            seen = "" if best["seen_by"] else " not seen"
            table.add_row(Text(failure), Text(best["best"]), number(best["auroc"]) + seen)
        self.rich.print(table)

    def _clock(self) -> str:
        return duration(time.perf_counter() - self._started).rjust(5)


def duration(seconds: float) -> str:
    """Minutes and seconds, such as 2:05; hours in front where needed."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float | None, sign: bool = False) -> str:
    """A number for a table; an em dash for a missing one."""
    if value is None:
        return "—"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def interval(bounds: tuple[float, float] | list[float] | None) -> str:
    """A 95% interval for a table; an em dash for a missing one."""
    return "—" if bounds is None else f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]"


def largest_terms(metrics: Mapping[str, float], count: int = 2) -> dict[str, float]:
    """The largest summands of valence by name, and the sum of the others as ``rest``."""
    prefix = "reward/term/"
    terms = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
    ordered = sorted(terms, key=lambda name: terms[name])
    found = {name: terms[name] for name in ordered[:count]}
    return found | ({"rest": sum(terms[n] for n in ordered[count:])} if ordered[count:] else {})


def _place(name: str) -> int:
    return 0 if name == "valence" else 1 if name.startswith(("term/", "own/")) else 2


def _finished(title: str, seconds: float, tokens: int) -> str:
    rate = f", {tokens:,} tokens, {tokens / seconds:.0f} tok/s" if tokens else ""
    return f"{title}: {duration(seconds)}{rate}"
