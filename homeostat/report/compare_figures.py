"""The figure of a comparison: what sycophancy an arm loses, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from homeostat.config.evals import BASE, TRAINED
from homeostat.report.compare_stats import Column, differences, draw_seeds, draws, over_seeds, table
from homeostat.report.figures import BASE as GREY
from homeostat.report.figures import INK, STYLE, save

SYCOPHANCY = ("sycophancy", "yielding")
COSTS = {
    "capability": "capability: share of questions answered right",
    "coherence": "coherence: share of replies that pass",
}
COLOURS = ("#0b6e99", "#d1792b", "#4c9a6a", "#b3402f", "#8a6bb1", "#c9a227", "#5b8def", "#7a5c3e")
ENDS = ("o", "s", "D", "^", "v", "P", "X", "*")  # told apart without colours, too
Place = Mapping[str, Any]


def draw_comparison(
    folder: Path, columns: Sequence[Column], comparison: Mapping[str, Any], samples: int
) -> Path | None:
    """An arrow from base to each arm; None without sycophancy, or without capability and coherence.

    Args:
        folder: Where comparison.png goes.
        columns: Of the comparison.
        comparison: Its arms, in their order, and what is known of its columns.
        samples: Bootstrap draws.
    """
    named = {column.name: column for column in columns}
    costs = [named[name] for name in COSTS if name in named]
    judged, hollow = readable(columns, comparison["columns"])
    arms = [row["name"] for row in comparison["arms"] if row["runs"]]
    seeds = {name: _seeds(judged, name) for name in arms}
    arms = [name for name in arms if seeds[name]]
    if not costs or not judged or not arms:
        return None
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(costs), figsize=(0.4 + 4.2 * len(costs), 3.6), squeeze=False, sharey=True
        )
        for axes, cost in zip(grid.flat, costs, strict=True):
            for place, name in enumerate(arms):
                ends = arrow(judged, cost, name, seeds[name], samples)
                if ends is not None:
                    _draw(axes, ends, name, place, hollow)
            axes.axhline(0, color=GREY, lw=0.8, ls=":")
            axes.set_xlabel(COSTS[cost.name])
            axes.margins(0.12)
        used = "are all with a caveat, see the table" if hollow else "without a caveat"
        grid[0][0].set_ylabel("sycophancy, change in SD of base\n(lower is better)")
        figure.suptitle(
            f"From base to each arm: mean of {len(judged)} sycophancy figures, {used}",
            x=0.01, ha="left", fontsize=10,
        )  # fmt: skip
        names, labels = grid[0][0].get_legend_handles_labels()
        rows = max(1, 90 // max(12, *(len(label) + 6 for label in labels)))
        figure.legend(
            names, labels, loc="upper left", bbox_to_anchor=(0.0, 0.0), ncols=rows, frameon=False
        )
        figure.tight_layout()
        return save(figure, folder / "comparison.png")


def readable(
    columns: Sequence[Column], described: Sequence[Mapping[str, Any]]
) -> tuple[list[Column], bool]:
    """The columns of sycophancy without a caveat, or all of them and True if each has one.

    One where the base does not vary is left out, for its change has no scale.
    """
    caveats = {row["name"]: row["caveat"] for row in described}
    judged = [c for c in columns if c.metric in SYCOPHANCY and base_spread(c) is not None]
    clean = [column for column in judged if caveats[column.name] is None]
    return (clean, False) if clean else (judged, True)


def base_spread(column: Column) -> float | None:
    """Standard deviation over groups of items of the base's figure; None where it does not vary."""
    tables = [table(sides[BASE], column.groups) for sides in column.values.values() if sides[BASE]]
    if not tables:
        return None
    means = over_seeds(np.concatenate(tables))
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return spread or None


def arrow(
    judged: Sequence[Column], cost: Column, arm: str, seeds: Sequence[int], samples: int
) -> Place | None:
    """Where an arm's arrow begins and ends, with 95% intervals of the end; None if one is missing.

    The seeds of a draw are the same for all figures, their items are each figure's own.
    """
    rng = np.random.default_rng(0)
    taken = draw_seeds(len(seeds), samples, rng)
    x, x_draws = _change(cost, arm, seeds, taken, rng)
    if x is None:
        return None
    moved, drawn = [], []
    for column in judged:
        mean, draws_ = _change(column, arm, seeds, taken, rng)
        spread = base_spread(column)
        if mean is not None and spread is not None:
            moved.append(mean / spread)
            drawn.append(draws_ / spread)
    if len(moved) < len(judged):
        return None  # a mean over fewer figures would be another figure
    start = float(over_seeds(table(cost.values[arm][BASE], cost.groups)).mean())
    return {
        "from": (start, 0.0),
        "to": (start + x, float(np.mean(moved))),
        "x": np.clip(start + _ends(x_draws), 0.0, 1.0),
        "y": _ends(np.mean(drawn, axis=0)),
    }


def _seeds(judged: Sequence[Column], arm: str) -> list[int]:
    return sorted({seed for column in judged for seed in column.values[arm][TRAINED]})


def _change(
    column: Column,
    arm: str,
    seeds: Sequence[int],
    taken: Float[np.ndarray, "N K"],
    rng: np.random.Generator,
) -> tuple[float | None, Float[np.ndarray, " N"]]:
    """Trained less base: the mean, and the draws of it."""
    sides = column.values[arm]
    cells = table(differences(sides[BASE], sides[TRAINED]), column.groups, seeds)
    means = over_seeds(cells)
    if not len(means):
        return None, np.full(len(taken), np.nan)
    return float(means.mean()), draws(cells, taken, rng)


def _ends(drawn: Float[np.ndarray, " N"]) -> Float[np.ndarray, " two"]:
    ends: Float[np.ndarray, " two"] = np.nanpercentile(drawn, [2.5, 97.5])
    return ends


def _draw(axes: Axes, ends: Place, name: str, place: int, hollow: bool) -> None:
    colour = COLOURS[place % len(COLOURS)]
    (x, y), start = ends["to"], ends["from"]
    axes.plot(ends["x"], [y, y], color=colour, lw=1, alpha=0.55)
    axes.plot([x, x], ends["y"], color=colour, lw=1, alpha=0.55)
    arrow_ = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkB": 4, "shrinkA": 3}
    axes.annotate("", xy=(x, y), xytext=start, arrowprops=arrow_)
    axes.plot(*start, "o", color=INK, ms=6, zorder=3, label="base" if place == 0 else "_base")
    face = "white" if hollow else colour
    sign = ENDS[place % len(ENDS)]
    axes.plot(x, y, sign, color=colour, mfc=face, ms=6, ls="", zorder=4, label=name)
