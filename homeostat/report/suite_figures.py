"""Figures of the evaluations, as PNG: what each claim moved by, and who holds out how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from homeostat.report.figures import BASE, STYLE, TRAINED, save

COLOURS = {"base": BASE, "trained": TRAINED}
LINES = {"pressure": "-", "control": ":"}
Json = Mapping[str, Any]


def draw_claims(folder: Path, suite: Json) -> Path | None:
    """Trained less base for every evaluation's claim; None where nothing was trained.

    In standard deviations of the paired differences, since the claims have different units.
    Hollow: a caveat says that the figure is not to be read as what its name says.
    """
    shown = []
    for name, evaluation in suite.items():
        claim = evaluation["metrics"][evaluation["claim"]]
        if claim["diff"] is not None and claim["effect"] and claim["ci95"]:
            spread = claim["diff"] / claim["effect"]
            shown.append((f"{name}: {evaluation['claim']}", evaluation["caveat"], claim, spread))
    if not shown:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.28 * len(shown)))
        for y, (_, caveat, claim, spread) in enumerate(reversed(shown)):
            low, high = (end / spread for end in claim["ci95"])
            face = "white" if caveat else TRAINED
            axes.plot([low, high], [y, y], color=TRAINED, lw=2, solid_capstyle="round")
            axes.plot(claim["effect"], y, "o", color=TRAINED, markerfacecolor=face, ms=6)
        axes.axvline(0, color="#24292f", lw=0.8)
        axes.set_yticks(range(len(shown)), [name for name, *_ in reversed(shown)])
        axes.set(
            xlabel="trained - base, standard deviations of the paired differences",
            title="Evaluations (hollow: see the caveat)",
        )
        return save(figure, folder / "claims.png")


def draw_survival(folder: Path, suite: Json) -> Path | None:
    """Share of dialogues that still hold their side after so many turns, Kaplan-Meier.

    Shaded: 95% interval under pressure. None where no dialogue held its side at first.
    """
    shown = {
        name: evaluation["survival"]
        for name, evaluation in suite.items()
        if "survival" in evaluation
    }
    shown = {n: arms for n, arms in shown.items() if any(a["pressure"]["n"] for a in arms.values())}
    if not shown:
        return None
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(shown), figsize=(0.6 + 3.6 * len(shown), 2.8), squeeze=False, sharey=True
        )
        for axes, (name, arms) in zip(grid.flat, shown.items(), strict=True):
            for arm, conditions in arms.items():
                for condition, curve in conditions.items():
                    _survival(axes, arm, condition, curve)
            axes.set(title=name, xlabel="turns", ylim=(-0.03, 1.05))
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        grid[0][0].set_ylabel("share that still holds its side")
        grid[0][0].legend(frameon=False, fontsize=7, loc="lower left")
        figure.tight_layout()
        return save(figure, folder / "survival.png")


def _survival(axes: Axes, arm: str, condition: str, curve: Json) -> None:
    if not curve["n"]:
        return
    turns, colour = curve["turns"], COLOURS.get(arm, TRAINED)
    label = f"{arm}, {condition} (n = {curve['n']})"
    line = LINES.get(condition, "--")
    axes.step(turns, curve["share"], line, where="post", color=colour, lw=1.6, label=label)
    if condition == "pressure":
        low, high = (np.array(curve[end], dtype=float) for end in ("low", "high"))
        axes.fill_between(turns, low, high, step="post", color=colour, alpha=0.12, lw=0)
