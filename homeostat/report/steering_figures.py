"""Figures of steer and heal, as PNG: where trait and coherence went, what the filter let fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from homeostat.report.figures import BASE, INK, STYLE, TRAINED, save

STEERED = "#d1792b"
DROPPED = "#b3402f"
COLOURS = {
    "base": BASE,
    "prompted": "#8a6bb1",
    "steered": STEERED,
    "healed": TRAINED,
    "dropped": DROPPED,
    "reversed": "#c9a227",
    "contrary": "#5f9ea0",
    "examples": "#5b3f8f",
    "ablated": "#4c9a6a",
    "base ablated": "#7f8a94",
}
MARKERS = {
    "base": "s",
    "prompted": "D",
    "steered": "^",
    "healed": "o",
    "dropped": "x",
    "reversed": "v",
    "contrary": "P",
    "examples": "d",
    "ablated": "<",
    "base ablated": ">",
}
# Not on the student's way.
ASIDE = ("prompted", "examples", "dropped", "reversed", "contrary", "ablated", "base ablated")
GATE_COLOURS = ("#b3402f", "#d1792b", "#c9a227", "#4c9a6a", "#5f9ea0", "#0b6e99", "#8a6bb1", BASE)
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 7, "ncols": 4}
Rows = Sequence[Mapping[str, Any]]


def draw_trajectory(folder: Path, rounds: Rows, floor: float) -> Path:
    """Trait against coherence, base → steered → healed → ..., and perplexity by round."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8.4, 3.2), gridspec_kw={"width_ratios": [1.5, 1]}
        )
        points = [(row, _movement(row)) for row in rounds if row["coherence"] is not None]
        path = [(x, row["coherence"]) for row, (x, _) in points if row["stage"] not in ASIDE]
        left.plot(*zip(*path, strict=True), color="#c9ced4", lw=1, zorder=1)
        named: set[str] = set()
        for row, (x, ends) in points:
            colour, marker = COLOURS[row["stage"]], MARKERS[row["stage"]]
            if ends is not None:
                left.plot(ends, [row["coherence"]] * 2, color=colour, lw=1.2, alpha=0.5, zorder=2)
            name = None if row["stage"] in named else row["stage"]
            named.add(row["stage"])
            left.plot(x, row["coherence"], marker, color=colour, ms=6, label=name, zorder=3)
            if row["round"]:
                left.annotate(
                    str(row["round"]),
                    (x, row["coherence"]),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                )
        left.axhline(floor, color="#b3402f", lw=0.8, ls="--")
        left.text(0.01, floor + 0.01, "floor", transform=left.get_yaxis_transform(), fontsize=7)
        left.set(
            xlabel="movement of the trait from the base, nats per token",
            ylabel="coherent share of replies",
            ylim=(min(-0.02, floor - 0.1), 1.06),
            title="Trait and coherence, by stage and round",
        )
        left.legend(frameon=False, fontsize=7, loc="lower right")
        _perplexity(right, rounds)
        figure.tight_layout()
        return save(figure, folder / "trajectory.png")


def _movement(row: Mapping[str, Any]) -> tuple[float, Sequence[float] | None]:
    """How far the trait moved from the base, and its interval; the base has not moved."""
    estimate = (row.get("moved") or {}).get("trait_nats")
    if estimate is None or estimate["diff"] is None:
        return 0.0, None
    return estimate["diff"], estimate["ci95"]


def _perplexity(axes: Axes, rounds: Rows) -> None:
    for stage in ("steered", "healed", *ASIDE[1:]):
        named = [row for row in rounds if row["stage"] == stage and row["round"]]
        rows = [row for row in named if row["median_perplexity"] is not None]
        if rows:
            x, y = [r["round"] for r in rows], [r["median_perplexity"] for r in rows]
            line = "" if stage in ASIDE else "-"
            axes.plot(x, y, line + MARKERS[stage], color=COLOURS[stage], ms=5, label=stage)
    base = next((r for r in rounds if r["stage"] == "base"), None)
    if base is not None and base["median_perplexity"] is not None:
        axes.axhline(base["median_perplexity"], color=BASE, lw=1, label="base")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.tick_params(which="minor", labelsize=7)
    axes.set_xlim(0.5, max(1, *(r["round"] for r in rounds)) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel="median perplexity under the base", title="Perplexity")
    axes.legend(frameon=False, fontsize=7)


def draw_foundations(
    folder: Path, rounds: Rows, first: str = "care", second: str = "authority"
) -> Path | None:
    """Where every stage stands on two moral foundations; None where they were not measured."""
    keys = f"foundations/{first}_nats", f"foundations/{second}_nats"
    measured = [row for row in rounds if all(row.get(key) is not None for key in keys)]
    if not measured:
        return None
    chance = (measured[0].get("foundations/informedness") or 0.0) <= 0
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.4))
        for row in measured:
            x, y = (row[key] for key in keys)
            axes.plot(x, y, MARKERS[row["stage"]], color=COLOURS[row["stage"]], ms=6)
            label = row["stage"] + (f" {row['round']}" if row["round"] else "")
            axes.annotate(
                label, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7, color=INK
            )
        axes.margins(0.2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        caveat = " - not interpretable: the base is at chance" if chance else ""
        axes.set(
            xlabel=f"{first}, ln of its mean share",
            ylabel=f"{second}, ln of its mean share",
            title=f"{first.capitalize()} and {second}{caveat}",
        )
        return save(figure, folder / "foundations.png")


def draw_filter(folder: Path, filtered: Rows) -> Path | None:
    """What was kept and what each gate let fall, by round and dose; None without completions."""
    if not filtered:
        return None
    gates = list(dict.fromkeys(gate for row in filtered for gate in row["fell"]))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8.4, 1.6 + 0.3 * len(filtered)), sharey=True
        )
        y = np.arange(len(filtered))[::-1]
        kept = np.array([row["kept"] for row in filtered])
        total = np.array([row["n"] for row in filtered])
        left.barh(y, kept, color="#4c9a6a", height=0.7, label="kept")
        left.barh(y, total - kept, left=kept, color="#e3c5bf", height=0.7, label="fell")
        left.set_yticks(y, [f"round {r['round']}, dose {r['dose']:.2g}" for r in filtered])
        left.set(xlabel="completions", title="Filter")
        figure.legend(*left.get_legend_handles_labels(), loc="lower left", **LEGEND)
        start = np.zeros(len(filtered))
        for gate, colour in zip(gates, GATE_COLOURS * 2, strict=False):
            count = np.array([row["fell"].get(gate, 0) for row in filtered])
            right.barh(y, count, left=start, color=colour, height=0.7, label=gate)
            start = start + count
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="fell through (one may fall through several)", title="By gate")
        if gates:
            figure.legend(*right.get_legend_handles_labels(), loc="lower right", **LEGEND)
        figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
        return save(figure, folder / "filter.png")
