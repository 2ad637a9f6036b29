"""What training does to a run over time: means over stretches of updates, and when it collapsed.

python scripts/course_table.py SWEEP [SWEEP ...] [--every 20] [--json]

A row per run and stretch, from `metrics.jsonl`: what was paid, entropy, perplexity under the base,
KL and repetition. Collapsed: the first update from which on, for five in a row, the entropy is
below a tenth of that of the first five, or a fifth of the replies' text is a copy of what came
before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arms_table import arm_of, finished

SHOWN = {
    "paid": "reward/total",
    "entropy": "policy/entropy_nats_per_token",
    "base perplexity": "signal/base_perplexity_mean",
    "KL": "policy/kl_nats_per_token",
    "repetition": "signal/repetition_mean",
}
FIRST, IN_A_ROW = 5, 5
LEAST_ENTROPY, MOST_REPETITION = 0.1, 0.2


def collapsed_at(entropy: Sequence[float], repetition: Sequence[float]) -> int | None:
    """The first of the updates, from 1, that was collapsed as the four after it were; or None."""
    floor = LEAST_ENTROPY * float(np.mean(entropy[:FIRST]))
    gone = [e < floor or r > MOST_REPETITION for e, r in zip(entropy, repetition, strict=True)]
    starts = range(len(gone) - IN_A_ROW + 1)
    return next((i + 1 for i in starts if all(gone[i : i + IN_A_ROW])), None)


def course(folder: Path, every: int) -> dict[str, Any]:
    """Means over stretches of one run's updates, and when it collapsed."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    columns = {name: [row[key] for row in rows] for name, key in SHOWN.items()}
    stretches = [
        {"updates": [start + 1, min(start + every, len(rows))]}
        | {name: float(np.mean(own[start : start + every])) for name, own in columns.items()}
        for start in range(0, len(rows), every)
    ]
    at = collapsed_at(columns["entropy"], columns["repetition"])
    return {"arm": arm_of(folder), "collapsed_at": at, "stretches": stretches}


def main() -> None:
    """Print a Markdown table, or one JSON list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=20, help="updates in a stretch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = [
        course(path.parent, options.every) | {"seed": summary["seed"]}
        for path, summary in finished(options.sweeps)
    ]
    if options.json:
        print(json.dumps(runs, indent=1))
        return
    print(f"| arm | seed | updates | {' | '.join(SHOWN)} | collapsed at |")
    print("|" + " --- |" * (len(SHOWN) + 4))
    for run in runs:
        at = "never" if run["collapsed_at"] is None else str(run["collapsed_at"])
        for stretch in run["stretches"]:
            first, last = stretch["updates"]
            values = " | ".join(f"{stretch[name]:.3f}" for name in SHOWN)
            print(f"| `{run['arm']}` | {run['seed']} | {first} to {last} | {values} | {at} |")


if __name__ == "__main__":
    main()
