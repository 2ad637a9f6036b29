"""Does an evaluation rank trained adapters alike in float32 and in bfloat16?

python scripts/rank_arms.py RUN RUN ... [--json] [--evaluations false_beliefs answer]

RUN are run folders of one model and one shape of adapter, such as the arms of
`experiment=sycophancy`. Each adapter, and the base, is measured by the evaluations' first figure in
either precision; nothing is trained. Arms are named by sweep and run. Said are the figures, the
largest difference between the precisions beside the spread of the arms, and Spearman's rank
correlation over arms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from organisms import compose
from rich.console import Console as RichConsole

from homeostat.config.register import build
from homeostat.config.resume import kept_overrides
from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.evals.stats import level
from homeostat.evals.subject import PolicySubject
from homeostat.evals.suite import Suite
from homeostat.models.adapter_files import load_adapter
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.report.console import Console

CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BASE = "base"


def config_of(runs: Sequence[Path], evaluations: Sequence[str]) -> RunConfig:
    """What the runs have in common, with these evaluations.

    Raises:
        HomeostatError: They differ in their model or the shape of their adapters.
    """
    configs = [compose(kept_overrides(run)) for run in runs]
    if any((c.model, c.lora) != (configs[0].model, configs[0].lora) for c in configs):
        raise HomeostatError("the runs differ in model or lora; give runs of one model.")
    return replace(configs[0], eval=replace(configs[0].eval, suite=list(evaluations)))


def measure(policy: Policy, suite: Suite) -> dict[str, float]:
    """The mean of every evaluation's first figure, nats or a share."""
    rows = suite.measure(PolicySubject(policy), "arm")
    claims = {name: suite.evaluations[name].claim for name in rows}
    return {name: level(of, claims[name])["mean"] for name, of in rows.items()}


def measure_all(
    config: RunConfig, runs: Sequence[Path], dtype: torch.dtype, console: Console
) -> dict[str, dict[str, float]]:
    """By arm and evaluation, in one precision."""
    base = build(config.model, BaseModel, device=CPU, dtype=dtype)
    policy, suite = Policy(base, config.lora, config.seed), Suite.of(config.eval)
    figures: dict[str, dict[str, float]] = {}
    for run in (None, *runs):
        name = BASE if run is None else f"{run.parent.name}/{run.name}"
        if name in figures:
            raise HomeostatError(f"two arms are called {name}; give every run folder once.")
        with console.section(f"{dtype}: {name}"):
            if run is not None:
                load_adapter(policy, run / "adapters")
            figures[name] = measure(policy, suite)
    return figures


def compare(by_precision: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """For each evaluation: figures by arm, the difference between precisions, and the ranks."""
    full, half = by_precision.values()
    compared = {}
    for name in full[BASE]:
        pairs = np.array([[full[arm][name], half[arm][name]] for arm in full])
        compared[name] = {
            "arms": {arm: [full[arm][name], half[arm][name]] for arm in full},
            "largest_difference": float(np.abs(pairs[:, 0] - pairs[:, 1]).max()),
            "spread": float(pairs[:, 0].max() - pairs[:, 0].min()),
            "spearman": float(scipy.stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic),
        }
    return compared


def table(compared: dict[str, Any]) -> list[str]:
    """Lines for each evaluation."""
    lines = []
    for name, found in compared.items():
        lines += [f"{name}", f"  {'arm':<24}{'float32':>10}{'bfloat16':>10}"]
        lines += [f"  {arm:<24}{a:>10.3f}{b:>10.3f}" for arm, (a, b) in found["arms"].items()]
        lines.append(
            f"  largest difference {found['largest_difference']:.3f}, spread of the arms "
            f"{found['spread']:.3f}, rank correlation {found['spearman']:.2f}"
        )
    return lines


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with adapters")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--evaluations", nargs="+", default=["false_beliefs", "answer"])
    options = parser.parse_args()
    config = config_of(options.runs, options.evaluations)
    console = Console(RichConsole(stderr=True))
    compared = compare(
        {
            name: measure_all(config, options.runs, dtype, console)
            for name, dtype in PRECISIONS.items()
        }
    )
    print(json.dumps(compared, indent=1) if options.json else "\n".join(table(compared)))


if __name__ == "__main__":
    main()
