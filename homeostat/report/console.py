"""What a person sees while a run works: sections, progress, tokens per second, time left.

In a terminal this is a live display; elsewhere it is plain lines: where a section begins and ends,
how far it is every half minute, and one per update. Text that a model wrote is never printed here
as markup.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
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
from rich.table import Column, Table
from rich.text import Text

from homeostat.report.plain import duration, interval, number, visible
from homeostat.signals.probing.validation import ProbeReport
from homeostat.types import Estimate, Progress

PLAIN_EVERY_S = 30.0  # between two lines about the same section, where there is no live display
WIDE = 76  # columns of a window that holds every column of a table, and a bar


class _TokensPerSecond(ProgressColumn):
    """Tokens done so far over the time since the section began."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first tokens."""
        tokens, elapsed = task.fields.get("tokens", 0), task.elapsed or 0.0
        return Text(f"{tokens / elapsed:.0f} tok/s" if tokens and elapsed else "", style="cyan")


class _Count:
    """How far a section is."""

    def __init__(self) -> None:
        self.done, self.total, self.tokens = 0, 0, 0
        self._started = time.perf_counter()

    def add(self, done: int, total: int, tokens: int) -> None:
        """Take over what a section has reported; ``tokens`` are those since it last did."""
        self.done, self.total, self.tokens = done, total, self.tokens + tokens

    @property
    def seconds(self) -> float:
        """Since the section began."""
        return time.perf_counter() - self._started

    @property
    def tokens_per_s(self) -> float:
        """Mean since the section began."""
        return self.tokens / self.seconds

    def describe(self) -> str:
        """Items done, their rate and the time left at that rate."""
        text = f"{self.done:,} of {self.total:,}"
        if self.tokens:
            text += f", {self.tokens_per_s:.0f} tok/s"
        if self.done:
            rate = self.done / self.seconds
            text += f", {rate:.3g} a second, {duration((self.total - self.done) / rate)} left"
        return text


class Console:
    """Progress and results of one run on standard output."""

    def __init__(self, rich: RichConsole | None = None) -> None:
        # Asked of the stream itself: FORCE_COLOR does not make a terminal of a log file.
        live = sys.stdout is not None and sys.stdout.isatty()
        self.rich = rich or RichConsole(highlight=False, soft_wrap=False, force_terminal=live)
        self._started = time.perf_counter()
        self._training: list[float] = []
        self._heed: Callable[[], None] = _nothing

    @contextmanager
    def heeding(self, heed: Callable[[], None]) -> Iterator[None]:
        """While the block runs, call ``heed`` when a section reports; what it raises ends it."""
        self._heed = heed
        try:
            yield
        finally:
            self._heed = _nothing

    def say(self, message: str) -> None:
        """One line of plain text; a terminal breaks it between words."""
        clock = self._clock()
        line = f"{clock} {visible(message)}"
        if self.rich.is_terminal:
            line = _between_words(line, self.rich.width)
        text = Text(line)
        text.stylize("dim", 0, len(clock))
        self.rich.print(text, soft_wrap=True)

    @contextmanager
    def section(self, title: str, whole: bool = False, quiet: bool = False) -> Iterator[Progress]:
        """Show a section while the block runs; yields where the block reports its progress.

        Args:
            title: Of the section.
            whole: A stop that is asked for waits until the section is over.
            quiet: No lines where it begins and ends: the block says itself what came of it.
        """
        count = _Count()
        if not (quiet or self.rich.is_terminal):
            self.say(f"{title} ...")
        show = self._live if self.rich.is_terminal else self._plain
        with show(title, count) as shown:

            def report(done: int, total: int, tokens: int = 0) -> None:
                count.add(done, total, tokens)
                shown()
                if not whole:
                    self._heed()

            yield report
        if quiet:
            return
        rate = f", {count.tokens:,} tokens, {count.tokens_per_s:.0f} tok/s" if count.tokens else ""
        self.say(f"{title}: {duration(count.seconds)}{rate}")

    @contextmanager
    def _live(self, title: str, count: _Count) -> Iterator[Callable[[], None]]:
        """Keep one line of a terminal up to date."""
        wide = self.rich.width >= WIDE
        # In a narrow window the title gives way to the figures.
        place = Column(no_wrap=True, overflow="ellipsis", ratio=None if wide else 1)
        more = (_TokensPerSecond(), TimeElapsedColumn(), TextColumn("left")) if wide else ()
        columns = (
            SpinnerColumn("dots" if self.rich.encoding.startswith("utf") else "line"),
            TextColumn("{task.description}", markup=False, table_column=place),
            *((BarColumn(bar_width=24),) if wide else ()),
            MofNCompleteColumn(),
            *more,
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.rich, transient=True, expand=not wide) as display:
            task = display.add_task(title, total=None, tokens=0)
            yield lambda: display.update(
                task, completed=count.done, total=count.total, tokens=count.tokens
            )

    @contextmanager
    def _plain(self, title: str, count: _Count) -> Iterator[Callable[[], None]]:
        """A line every `PLAIN_EVERY_S` that the section reports after."""
        said = count.seconds

        def show() -> None:
            nonlocal said
            if count.seconds - said >= PLAIN_EVERY_S and count.done < count.total:
                said = count.seconds
                self.say(f"{title}: {count.describe()}")

        yield show

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
        wide = self.rich.width >= WIDE
        for name in (["before", "after"] if wide else []) + ["difference", "95% interval"]:
            table.add_column(name, justify="right", no_wrap=True)
        # The summands of valence stand right below it.
        for name, estimate in sorted(metrics.items(), key=lambda item: _place(item[0])):
            ends = [number(estimate.before), number(estimate.after)] if wide else []
            table.add_row(
                Text(name), *ends, number(estimate.diff, sign=True), interval(estimate.ci95)
            )
        self.rich.print(table)

    def probe_verdicts(self, reports: Mapping[str, ProbeReport]) -> None:
        """Which affect probes may be trusted; a narrow window gets fewer columns."""
        table = Table(title="Affect probes on unseen authors", title_justify="left")
        table.add_column("affect", overflow="fold")
        wide = self.rich.width >= WIDE
        for name in ["AUROC", "verdict"] + (["95% interval", "words alone"] if wide else []):
            table.add_column(name, justify="right", no_wrap=True)
        for affect, report in reports.items():
            bounds = "—" if report.ci95 is None else f"[{report.ci95[0]:.3f}, {report.ci95[1]:.3f}]"
            more = [bounds, number(report.controls["text_only"])] if wide else []
            table.add_row(Text(affect), number(report.auroc), report.verdict, *more)
        self.rich.print(table)

    def failures(self, best_by_failure: Mapping[str, Mapping[str, Any]]) -> None:
        """Which intrinsic signal sees which failure best."""
        table = Table(title="Failures against ordinary replies", title_justify="left")
        table.add_column("failure", overflow="fold")
        table.add_column("best signal", overflow="fold")
        table.add_column("AUROC", justify="right", no_wrap=True)
        for failure, best in best_by_failure.items():
            seen = "" if best["seen_by"] else " not seen"
            table.add_row(Text(failure), Text(best["best"]), number(best["auroc"]) + seen)
        self.rich.print(table)

    def _clock(self) -> str:
        return duration(time.perf_counter() - self._started).rjust(5)


def largest_terms(metrics: Mapping[str, float], count: int = 2) -> dict[str, float]:
    """The largest summands of valence by name, and the sum of the others as ``rest``."""
    prefix = "reward/term/"
    terms = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
    ordered = sorted(terms, key=lambda name: terms[name])
    largest = {name: terms[name] for name in ordered[:count]}
    return largest | ({"rest": sum(terms[n] for n in ordered[count:])} if ordered[count:] else {})


def _place(name: str) -> int:
    return 0 if name == "valence" else 1 if name.startswith(("term/", "own/")) else 2


def _nothing() -> None:
    """Nobody has asked for a stop."""


def _between_words(line: str, width: int) -> str:
    """The line broken for a window; a path that is longer stays whole, and can be copied."""
    return textwrap.fill(
        line,
        max(width, 20),
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
        subsequent_indent=" " * 6,
    )
