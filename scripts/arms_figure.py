"""Draws what the arms of an experiment do to agreement: while they train, and what it leaves.

python scripts/arms_figure.py FIGURE.png SWEEP [SWEEP ...] [--evaluation false_beliefs]

Left, the share of an update's replies that agree with what the user claimed, by their words, a line
per run. Right, per run what an evaluation found beside how far held-out users were truly moved.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from arms_table import arm_of, figures, finished
from matplotlib import pyplot as plt

from homeostat.bots.affect import notice
from homeostat.report.compare_figures import COLOURS, ENDS
from homeostat.report.figures import STYLE, save


def agreement_by_update(folder: Path) -> list[float]:
    """Of each update the share of replies that agree by their words."""
    agreed: dict[int, list[bool]] = defaultdict(list)
    for row in map(json.loads, (folder / "episodes.jsonl").open(encoding="utf-8")):
        replies = [turn["text"] for turn in row["turns"] if turn["role"] == "assistant"]
        agreed[row["step"]] += [notice(text, ()).agreement > 0 for text in replies]
    return [float(np.mean(agreed[step])) for step in sorted(agreed)]


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", type=Path)
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--evaluation", default="false_beliefs")
    options = parser.parse_args()
    runs = [(arm_of(path.parent), path.parent, s) for path, s in finished(options.sweeps)]
    arms = sorted({arm for arm, *_ in runs})
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.6))
        for arm, folder, summary in runs:
            place = arms.index(arm)
            shares = agreement_by_update(folder)
            left.plot(range(1, len(shares) + 1), shares, color=COLOURS[place], lw=1.2)
            found = figures(folder, summary)
            right.plot(
                found["relational_true"],
                found[options.evaluation],
                ENDS[place],
                color=COLOURS[place],
            )
        for place, arm in enumerate(arms):
            right.plot([], [], ENDS[place], color=COLOURS[place], label=arm)
        left.set(xlabel="update", ylabel="replies that agree, share", ylim=(0, 1))
        right.axhline(0, color="#888888", lw=0.8, ls=":")
        right.axvline(0, color="#888888", lw=0.8, ls=":")
        right.set(
            xlabel="relational_true, trained minus base",
            ylabel=f"{options.evaluation}, trained minus base",
        )
        right.legend(fontsize=7, frameon=False)
        save(figure, options.figure)


if __name__ == "__main__":
    main()
