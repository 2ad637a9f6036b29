"""The suite of evaluations in a run: measure an arm, keep its rows, compare.

Like `homeostat.runs.work`, which calls it, it evaluates and saves; nothing else does.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import homeostat
from homeostat.config.evals import BASE, PROMPTED, TRAINED, EvalConfig
from homeostat.config.run import RunConfig
from homeostat.evals.evaluation import Evaluation, chosen_evaluations
from homeostat.evals.praise import lexicon
from homeostat.evals.subject import Keep, PolicySubject, compute_anew
from homeostat.evals.suite import Suite
from homeostat.files import cache_root
from homeostat.models.adapter_files import adapter_digest
from homeostat.models.adapters import Policy
from homeostat.models.cache import code_digest, identity, remembered
from homeostat.report.console import Console
from homeostat.report.metrics import write_rows
from homeostat.runs.parts import Parts
from homeostat.timing import Stopwatch
from homeostat.types import Progress


def check_items(config: RunConfig) -> None:
    """Read the items of every evaluation, so that a bad file is named before anything is computed.

    Raises:
        HomeostatError: A file is missing, or a row of it is not what it must be.
    """
    for evaluation in chosen_evaluations(config.eval).values():
        evaluation.items(config.eval)


@dataclass(frozen=True)
class Measured:
    """Rows of every evaluation for one arm, and by evaluation ``time_s`` and ``tokens``.

    ``speed`` of rows that come from the cache says how long they took when they were measured.
    """

    rows: Mapping[str, Sequence[dict[str, Any]]]
    speed: Mapping[str, Mapping[str, Any]]


NOTHING = Measured({}, {})


class ItemCount:
    """Tells a progress display of items, where a subject tells of batches of replies."""

    def __init__(self, progress: Progress, items: Mapping[str, int]) -> None:
        """A count that begins at 0.

        Args:
            progress: Of the whole suite.
            items: How many each evaluation has.
        """
        self._progress = progress
        self._items = items
        self._before = 0

    def within(self, name: str, replies: float, tokens: int) -> None:
        """So many replies an item are there of an evaluation that is still going on."""
        items = min(self._items[name], int(replies))
        self._progress(self._before + items, sum(self._items.values()), tokens)

    def finish(self, name: str) -> None:
        """An evaluation is done."""
        self._before += self._items[name]
        self._progress(self._before, sum(self._items.values()))


def measure_suite(
    config: RunConfig, policy: Policy, arm: str, console: Console, watch: Stopwatch
) -> Measured:
    """Every evaluation for one arm.

    Each is kept in the cache as soon as it is done, by the weights and the items that it follows
    from: every run on one base shares the base's. Of one that is going on every batch is kept, so
    that a run that was killed goes on where it was.
    """
    if not config.eval.suite:
        return NOTHING
    suite = Suite.of(config.eval)
    items = {name: len(one.items(config.eval)) for name, one in suite.evaluations.items()}
    state = adapter_digest(policy) if arm == TRAINED else None
    system = config.eval.prompted if arm == PROMPTED else None
    rows: dict[str, list[dict[str, Any]]] = {}
    speed: dict[str, dict[str, Any]] = {}
    context = nullcontext() if arm == TRAINED else policy.reference()
    with context, console.section(f"evaluations, {arm}") as shown, watch("suite"):
        count = ItemCount(shown, items)
        for name, evaluation in suite.evaluations.items():
            recipe = [*identity(policy), state, system, name, *_asked(config.eval, evaluation)]
            cache = config.signals.cache
            measured, fresh = _measure_one(suite, name, policy, system, recipe, cache, count)
            rows[name] = [{"arm": arm} | row for row in measured["rows"]]
            speed[name] = measured["speed"] | {"cached": not fresh}
            count.finish(name)
    return Measured(rows, speed)


def _measure_one(
    suite: Suite,
    name: str,
    policy: Policy,
    system: str | None,
    recipe: Any,
    cache: bool,
    count: ItemCount,
) -> tuple[dict[str, Any], bool]:
    """``rows`` and ``speed`` of an evaluation, and whether they were not in the cache."""
    fresh = False
    talks = suite.evaluations[name].reading(suite.config.mode).talks

    def compute(kept: Keep) -> dict[str, Any]:
        nonlocal fresh
        fresh, began = True, time.perf_counter()

        def told(tokens: int) -> None:
            count.within(name, subject.talks / talks, tokens)

        subject = PolicySubject(policy, told, kept, system)
        rows = suite.rows(subject, name)
        seconds = time.perf_counter() - began + subject.spared_s
        spent = {"time_s": seconds, "tokens": subject.tokens}
        return {"rows": rows, "speed": spent | {"tokens_per_s": subject.tokens / seconds}}

    if not cache:
        return compute(compute_anew), True
    text = json.dumps([code_digest(), recipe], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    parts = Parts(cache_root() / "suite" / f"{digest}.parts.jsonl")
    measured = remembered("suite", recipe, lambda: compute(parts))
    parts.remove()
    return measured, fresh


def _asked(config: EvalConfig, evaluation: Evaluation) -> tuple[Any, ...]:
    """What the rows of an evaluation follow from beside the model: items, words, settings, code."""
    text = json.dumps([evaluation.items(config), lexicon()], sort_keys=True)
    settings = [config.mode, config.reply_tokens, config.foundations_readout]
    items = hashlib.sha256(text.encode()).hexdigest()
    return (*settings, config.foundations_self, items, foreign_code(evaluation))


def foreign_code(evaluation: Evaluation) -> str | None:
    """Digest of the sources of a user's own evaluation; None for one of this package's.

    Of all Python files of the package that its rows come from, or of the one file.
    """
    module = inspect.getmodule(evaluation.given.rows)
    top = sys.modules[module.__name__.partition(".")[0]] if module else None
    if module is None or top is None or top is homeostat:
        return None
    path = Path(str(top.__file__ or module.__file__))
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def save_suite(config: RunConfig, arms: Mapping[str, Measured], folder: Path) -> dict[str, Any]:
    """Write ``evals/<name>.jsonl``, a row per item and arm; returns the comparison.

    Of the trained arm with the base, and below ``prompted`` of each evaluation what the prompted
    base shows against the base: ``caveat`` and ``metrics``, corrected apart from the other.
    """
    base, trained = arms[BASE], arms.get(TRAINED, NOTHING)
    for name in base.rows:
        rows = [row for measured in arms.values() for row in measured.rows.get(name, ())]
        write_rows(folder / "evals" / f"{name}.jsonl", rows)
    if not base.rows:
        return {}
    suite = Suite.of(config.eval)
    comparison = suite.compare(base.rows, trained.rows)
    for name, compared in comparison.items():
        speeds = {arm: measured.speed for arm, measured in arms.items()}
        compared["speed"] = {arm: speed[name] for arm, speed in speeds.items() if name in speed}
    if PROMPTED in arms:
        prompted = arms[PROMPTED].rows
        for name, compared in suite.compare(base.rows, prompted).items():
            caveat = suite.evaluations[name].caveat(prompted[name])
            comparison[name][PROMPTED] = {"caveat": caveat, "metrics": compared["metrics"]}
    return comparison


def describe_speed(comparison: Mapping[str, Any]) -> str | None:
    """How long the suite took an arm, and its tokens per second; None where nothing was run."""
    parts = []
    for arm in (BASE, PROMPTED, TRAINED):
        speeds = [one["speed"][arm] for one in comparison.values() if arm in one.get("speed", {})]
        if speeds:
            seconds, tokens = (sum(one[key] for one in speeds) for key in ("time_s", "tokens"))
            cached = [one["cached"] for one in speeds]
            note = ", from the cache" if all(cached) else ", partly from the cache" * any(cached)
            parts.append(f"{arm} {seconds:.0f} s, {tokens / seconds:.0f} tokens/s{note}")
    return f"evaluations: {'; '.join(parts)}" if parts else None


def describe_suite(comparison: Mapping[str, Any]) -> list[str]:
    """A line per evaluation."""
    lines = []
    for name, compared in comparison.items():
        claim, level = compared["metrics"][compared["claim"]], compared["level"]
        text = f"{name}: {compared['claim']} {_signed(level['mean'], level['ci95'])}"
        if claim["diff"] is not None:
            text += f", trained less base {_signed(claim['diff'], claim['ci95'])}"
        if PROMPTED in compared:
            claim = compared[PROMPTED]["metrics"][compared["claim"]]
            text += f", prompted less base {_signed(claim['diff'], claim['ci95'])}"
        lines.append(text + (f" ({compared['caveat']})" if compared["caveat"] else ""))
    return lines


def _signed(mean: float | None, ci95: Sequence[float] | None) -> str:
    if mean is None:
        return "missing"
    return f"{mean:+.3f}" + (f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]" if ci95 else "")
