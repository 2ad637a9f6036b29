"""The suite of evaluations in a run: measure an arm, keep its rows, compare.

Like `homeostat.runs.run`, which calls it, it evaluates and saves; nothing else does.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homeostat.config.run import RunConfig
from homeostat.evals.praise import lexicon
from homeostat.evals.subject import PolicySubject
from homeostat.evals.suite import Suite, items_of, vignettes_of
from homeostat.models.adapters import Policy
from homeostat.models.cache import identity, remembered
from homeostat.report.console import Console
from homeostat.report.metrics import write_rows
from homeostat.timing import Stopwatch

BASE, TRAINED = "base", "trained"


def check_items(config: RunConfig) -> None:
    """Read every file of items, so that a bad one is named before anything is computed.

    Raises:
        HomeostatError: A file is missing, or a row lacks something.
    """
    for name in config.eval.suite:
        items_of(config.eval, name)
        if name == "foundations":
            vignettes_of(config.eval)


@dataclass(frozen=True)
class Measured:
    """Rows of every evaluation for one arm, and by evaluation ``time_s`` and ``tokens``.

    ``speed`` of rows that come from the cache says how long they took when they were measured.
    """

    rows: Mapping[str, Sequence[dict[str, Any]]]
    speed: Mapping[str, Mapping[str, Any]]


NOTHING = Measured({}, {})


def measure_suite(
    config: RunConfig, policy: Policy, arm: str, console: Console, watch: Stopwatch
) -> Measured:
    """Every evaluation for one arm.

    Each is kept in the cache as soon as it is done, by the weights and the items that it follows
    from: every run on one base shares the base's, and a run that was killed loses none.
    """
    if not config.eval.suite:
        return NOTHING
    suite, subject = Suite(config.eval), PolicySubject(policy)
    state = None if arm == BASE else policy.adapter_digest()
    rows: dict[str, list[dict[str, Any]]] = {}
    speed: dict[str, dict[str, Any]] = {}
    context = policy.reference() if arm == BASE else nullcontext()
    with context, console.section(f"evaluations, {arm}") as shown, watch("suite"):
        for done, name in enumerate(config.eval.suite, 1):
            fresh = False

            def compute(name: str = name) -> dict[str, Any]:
                nonlocal fresh
                fresh, began, before = True, time.perf_counter(), subject.tokens
                found = suite.rows(subject, name)
                seconds, tokens = time.perf_counter() - began, subject.tokens - before
                spent = {"time_s": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds}
                return {"rows": found, "speed": spent}

            recipe = [*identity(policy), state, name, *_asked(config, name)]
            found = remembered("suite", recipe, compute) if config.signals.cache else compute()
            rows[name] = [{"arm": arm} | row for row in found["rows"]]
            speed[name] = found["speed"] | {"cached": not fresh}
            shown(done, len(config.eval.suite))
    return Measured(rows, speed)


def _asked(config: RunConfig, name: str) -> tuple[Any, ...]:
    """What the rows of an evaluation follow from beside the model: items, words, settings."""
    own = config.eval
    vignettes = name == "foundations"
    items = [asdict(v) for v in vignettes_of(own)] if vignettes else items_of(own, name)
    text = json.dumps([items, lexicon()], sort_keys=True)
    settings = (own.mode, own.reply_tokens, own.foundations_readout)
    return (*settings, hashlib.sha256(text.encode()).hexdigest())


def save_suite(
    config: RunConfig, base: Measured, trained: Measured, folder: Path
) -> dict[str, Any]:
    """Write ``evals/<name>.jsonl``, a row per item and arm; returns the comparison."""
    for name, rows in base.rows.items():
        write_rows(folder / "evals" / f"{name}.jsonl", [*rows, *trained.rows.get(name, ())])
    if not base.rows:
        return {}
    found = Suite(config.eval).compare(base.rows, trained.rows)
    for name, own in found.items():
        arms = {BASE: base.speed, TRAINED: trained.speed}
        own["speed"] = {arm: speed[name] for arm, speed in arms.items() if name in speed}
    return found


def describe_speed(found: Mapping[str, Any]) -> str | None:
    """How long the suite took an arm, and its tokens per second; None where nothing was run."""
    parts = []
    for arm in (BASE, TRAINED):
        speeds = [own["speed"][arm] for own in found.values() if arm in own.get("speed", {})]
        if speeds:
            seconds, tokens = (sum(one[key] for one in speeds) for key in ("time_s", "tokens"))
            cached = [one["cached"] for one in speeds]
            note = ", from the cache" if all(cached) else ", partly from the cache" * any(cached)
            parts.append(f"{arm} {seconds:.0f} s, {tokens / seconds:.0f} tokens/s{note}")
    return f"evaluations: {'; '.join(parts)}" if parts else None


def describe_suite(found: Mapping[str, Any]) -> list[str]:
    """A line per evaluation."""
    lines = []
    for name, own in found.items():
        claim = own["metrics"][own["claim"]]
        text = f"{name}: {own['claim']} {_signed(own['level']['mean'], own['level']['ci95'])}"
        if claim["diff"] is not None:
            text += f", trained less base {_signed(claim['diff'], claim['ci95'])}"
        lines.append(text + (f" ({own['caveat']})" if own["caveat"] else ""))
    return lines


def _signed(mean: float | None, ci95: Sequence[float] | None) -> str:
    if mean is None:
        return "missing"
    return f"{mean:+.3f}" + (f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]" if ci95 else "")
