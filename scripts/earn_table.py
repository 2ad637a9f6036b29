"""The preregistered table of `experiment=earn`: per arm, mean over seeds with a t interval.

python scripts/earn_table.py SWEEP [SWEEP ...] [--json]

The seed is the unit: a run counts as its one figure, trained minus base on the same held-out
episodes. Arms are paired with `relational_only` by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import yaml

FIGURES = (
    "relational_true",
    "relational_read",
    "true/sentiment",
    "true/curiosity",
    "true/frustration",
    "true/confusion",
    "true/boredom",
    "coherence/kl",
    "coherence/base_perplexity",
)
TESTED = "relational_only"


def read_runs(sweeps: Sequence[Path]) -> dict[str, dict[int, dict[str, Any]]]:
    """By arm and seed the summary of every finished run."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(p for sweep in sweeps for p in sweep.glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        said = yaml.safe_load((path.parent / "overrides.yaml").read_text(encoding="utf-8"))
        arm = next(o.partition("=")[2] for o in said if o.startswith("reward="))
        if summary["status"] == "finished":
            runs.setdefault(arm, {})[summary["seed"]] = summary
    return runs


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, 95% t interval and what it rests on; no interval below two."""
    x = np.array(values)
    found: dict[str, Any] = {"mean": float(x.mean()), "values": list(values), "ci95": None}
    if len(x) > 1:
        reach = scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
        found["ci95"] = [float(x.mean() - reach), float(x.mean() + reach)]
    return found


def table(runs: dict[str, dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per arm."""
    rows = []
    for arm, by_seed in runs.items():
        seeds = sorted(by_seed)
        row: dict[str, Any] = {"arm": arm, "seeds": seeds}
        for name in FIGURES:
            row[name] = over_seeds([by_seed[s]["eval"][name]["diff"] for s in seeds])
        both = [s for s in seeds if s in runs.get(TESTED, {})]
        if arm != TESTED and both:
            own, other = (
                [r[s]["eval"][FIGURES[0]]["diff"] for s in both] for r in (runs[TESTED], by_seed)
            )
            row[f"{TESTED} minus this"] = over_seeds(np.subtract(own, other).tolist())
        rows.append(row)
    first = next(iter(next(iter(runs.values())).values()))
    for arm, name in (("cool", "base at 0.7"), ("prompted", "prompted base")):
        if first.get(arm):  # a sweep of before knows of no prompted base
            told = first[arm][FIGURES[0]]
            figure = {"mean": told["diff"], "ci95": told["ci95"]}
            rows.append({"arm": name, FIGURES[0]: figure, "unit": "episodes"})
    return rows


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = table(read_runs(options.sweeps))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dict):
                low, high = value["ci95"] or (float("nan"),) * 2
                each = ", ".join(f"{v:+.3f}" for v in value.get("values", ()))
                print(
                    f"{row['arm']:<18}{name:<28}{value['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
                    f"   {each}"
                )


if __name__ == "__main__":
    main()
