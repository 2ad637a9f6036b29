"""Simulates how often the intervals over seeds and items hold the truth, and cry wolf.

python scripts/check_coverage.py [--json] [--worlds 2000]

Worlds of `--items` items under 2 to 8 seeds, in which nothing has changed: a cell is an item's own
deviation plus a seed's own plus noise, all normal; the seeds' standard deviation is from none to
that of the items. `coverage` is the share of 95% intervals that hold 0; `false_positives` the share
of worlds in which the verdict is a change, for which interval and sign-flip test must agree.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from homeostat.report.compare_stats import difference, verdict

SEEDS = (1, 2, 3, 4, 5, 8)
RATIOS = (0.0, 0.5, 1.0)
FLIPS = 500


def simulate(seeds: int, ratio: float, items: int, worlds: int) -> dict[str, Any]:
    """One row: what becomes of many worlds without a change.

    Args:
        seeds: Of each arm.
        ratio: Standard deviation between seeds over that between items.
        items: Of each seed, the same for all.
        worlds: How many.
    """
    rng = np.random.default_rng([seeds, round(10 * ratio), items])
    names = [str(i) for i in range(items)]
    groups = {name: name for name in names}
    held = called = 0
    for _ in range(worlds):
        cells = rng.standard_normal(items) + ratio * rng.standard_normal((seeds, 1))
        cells = cells + 0.5 * rng.standard_normal((seeds, items))
        after = {s: dict(zip(names, row.tolist(), strict=True)) for s, row in enumerate(cells)}
        before = {s: dict.fromkeys(names, 0.0) for s in range(seeds)}
        change = difference(before, after, groups, samples=FLIPS)
        assert change is not None
        low, high = change["ci95"]
        held += low <= 0 <= high
        called += verdict(change | {"p_holm": change["p"]}, good=1) != "no change shown"
    return {
        "seeds": seeds,
        "seed_to_item_sd": ratio,
        "coverage": held / worlds,
        "false_positives": called / worlds,
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--items", type=int, default=30)
    options = parser.parse_args()
    rows = [
        simulate(seeds, ratio, options.items, options.worlds)
        for seeds in SEEDS
        for ratio in RATIOS
        if seeds > 1 or ratio == 0  # one seed cannot know of others
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'seeds':>6}{'seed/item sd':>14}{'coverage':>10}{'false positives':>17}")
    for row in rows:
        print(
            f"{row['seeds']:>6}{row['seed_to_item_sd']:>14}{row['coverage']:>10.3f}"
            f"{row['false_positives']:>17.3f}"
        )


if __name__ == "__main__":
    main()
