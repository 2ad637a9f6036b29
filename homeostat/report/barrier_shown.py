"""The comparison of barriers as people see it: tables in Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from homeostat.report.figures import STYLE, save
from homeostat.report.plain import in_markdown, interval, number

UNHEALED = ("no heal", "prompted")
AGAINST = "mean"
METRICS = ("trait_nats", "shown_nats", "coherent", "log_perplexity", "trait_per_nat")
RUN_COLUMNS = ("folder", "arm", "seed", "status")
TITLES = {
    "trait_nats": "trait moved, nats/token",
    "shown_nats": "shows more in replies, nats/token",
    "coherent": "coherent share",
    "log_perplexity": "log perplexity, change",
    "trait_per_nat": "trait per nat of KL",
}
COLOURS = ("#8a8f98", "#b3402f", "#0b6e99", "#4c9a6a", "#8a6bb1", "#c9a227", "#d1792b", "#24292f")
FIRED = {
    True: "The barriers fired equally often over all rounds, within 0.05.",
    False: "**No comparison of barriers**: they did not fire equally often.",
    None: "How often the barrier fired:",
}


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The table that people read, and which runs it is made of."""
    lines = _table(comparison["arms"], METRICS)
    differences = [f"{name}_against_{AGAINST}" for name in METRICS]
    compared = [row for row in comparison["arms"] if row.get(differences[0])]
    if compared:
        lines += ["", f"Less {AGAINST}, seed by seed and item by item:", ""]
        lines += _table(compared, differences)
    if comparison["final"]:
        lines += ["", "After the last round that each run has come to:", ""]
        final = [
            row | {"round": _span(row["rounds"]), "seeds": row["rounds"]}
            for row in comparison["final"]
        ]
        lines += _table(final, METRICS)
        lines += ["", f"Less {AGAINST}:", ""]
        lines += _table([row for row in final if row.get(differences[0])], differences)
    if comparison["firing"]:
        lines += ["", FIRED[comparison["equal_firing"]], ""]
        lines += ["| barrier | round | fired, share of steps | by seed |", "| --- " * 4 + "|"]
        lines += [
            f"| {in_markdown(row['arm'])} | {row['round']} | {row['rate']:.2f} | "
            + ", ".join(f"{rate:.2f}" for rate in row["by_seed"].values())
            + " |"
            for row in comparison["firing"]
        ]
        lines += [
            f"| {in_markdown(arm)} | all | {rate:.2f} | |"
            for arm, rate in comparison["firing_over_rounds"].items()
        ]
    lines += ["", "| run | arm | seed | status |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {' | '.join(in_markdown(str(run[key])) for key in RUN_COLUMNS)} |"
        for run in comparison["runs"]
    ]
    return "\n".join(lines) + "\n"


def _table(arms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """A row per arm and round; ``names`` are the metrics, or their differences."""
    return [
        "| arm | round | seeds | " + " | ".join(TITLES.values()) + " |",
        "| --- " * (3 + len(names)) + "|",
        *(
            f"| {in_markdown(row['arm'])} | {row['round']} | {len(row['seeds'])} | "
            + " | ".join(_show(row.get(name)) for name in names)
            + " |"
            for row in arms
        ),
    ]


def _span(rounds: Mapping[str, int]) -> str:
    """The rounds that runs have ended at: one, or from the first to the last."""
    first, last = min(rounds.values()), max(rounds.values())
    return str(first) if first == last else f"{first} to {last}"


def _show(estimate: Mapping[str, Any] | None) -> str:
    return (
        "—"
        if estimate is None
        else f"{number(estimate['mean'], sign=True)} {interval(estimate['ci95'])}"
    )


def draw_arms(folder: Path, arms: Sequence[Mapping[str, Any]]) -> Path:
    """Coherence by round, and where every arm ends: trait against coherence."""
    names = list(dict.fromkeys(row["arm"] for row in arms))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.4))
        for number_, name in enumerate(names):
            rows = [row for row in arms if row["arm"] == name]
            colour = COLOURS[number_ % len(COLOURS)]
            if name in UNHEALED:
                left.axhline(rows[-1]["coherent"]["mean"], color=colour, lw=1, ls=":")
            else:
                x = np.array([row["round"] for row in rows]) + 0.05 * (number_ - 2)
                left.plot(x, [row["coherent"]["mean"] for row in rows], "-o", color=colour, ms=4)
                for at, row in zip(x, rows, strict=True):
                    left.plot([at, at], _ends(row["coherent"]), color=colour, lw=1, alpha=0.6)
            _end(right, rows[-1], name, colour)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        share: dict[str, Any] = {"ylabel": "coherent share", "ylim": (-0.04, 1.04)}
        left.set(xlabel="round", title="Coherence, healed, by round", **share)
        right.set(xlabel="trait moved, nats per token", title="After the last", **share)
        right.legend(frameon=False, fontsize=7)
        figure.tight_layout()
        return save(figure, folder / "comparison.png")


def _end(axes: Axes, row: Mapping[str, Any], name: str, colour: str) -> None:
    trait, coherent = row["trait_nats"], row["coherent"]
    axes.plot(_ends(trait), [coherent["mean"]] * 2, color=colour, lw=1, alpha=0.6)
    axes.plot([trait["mean"]] * 2, _ends(coherent), color=colour, lw=1, alpha=0.6)
    axes.plot(trait["mean"], coherent["mean"], "o", color=colour, ms=5, label=name)


def _ends(found: Mapping[str, Any]) -> Sequence[float]:
    """Both ends of an interval; of an unknown one, the mean."""
    ends: Sequence[float] = found["ci95"] or [found["mean"]] * 2
    return ends
