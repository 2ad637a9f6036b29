"""The suite of evaluations in a run: measure an arm, keep its rows, compare.

Like `homeostat.run`, which calls it, it evaluates and saves; nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homeostat.config import RunConfig
from homeostat.evals.items import read_items
from homeostat.evals.subject import PolicySubject
from homeostat.evals.suite import PACKAGED, Suite
from homeostat.models.adapters import Policy
from homeostat.models.cache import file_sha256, remembered
from homeostat.report.console import Console
from homeostat.report.metrics import write_rows
from homeostat.timing import Stopwatch

BASE, TRAINED = "base", "trained"
Rows = Mapping[str, Sequence[dict[str, Any]]]


def check_items(config: RunConfig) -> None:
    """Read every file of items, so that a bad one is named before anything is computed.

    Raises:
        HomeostatError: A file is missing, or a row lacks something.
    """
    for name in config.eval.suite:
        read_items(config.eval.files.get(name), *PACKAGED[name])


def measure_suite(
    config: RunConfig, policy: Policy, arm: str, console: Console, watch: Stopwatch
) -> Rows:
    """Rows of every evaluation for one arm; the base's come from the cache if nothing changed."""
    if not config.eval.suite:
        return {}

    def compute() -> Rows:
        context = policy.reference() if arm == BASE else nullcontext()
        subject = PolicySubject(policy)
        stage = console.stage(f"evaluations, {arm}")
        with context, stage as progress, watch("suite"):
            return Suite(config.eval).measure(subject, arm, progress)

    if arm != BASE or not config.signals.cache:
        return compute()
    base = (policy.base.fingerprint, str(policy.dtype), policy.device.type)
    files = {name: file_sha256(Path(path).expanduser()) for name, path in config.eval.files.items()}
    found: Rows = remembered("suite", [*base, asdict(config.eval), files], compute)
    return found


def save_suite(config: RunConfig, base: Rows, trained: Rows, folder: Path) -> dict[str, Any]:
    """Write ``evals/<name>.jsonl``, a row per item and arm; returns the comparison."""
    for name, rows in base.items():
        write_rows(folder / "evals" / f"{name}.jsonl", [*rows, *trained.get(name, ())])
    return Suite(config.eval).compare(base, trained) if base else {}


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
