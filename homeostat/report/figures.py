"""Figures of one run, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from homeostat.files import writing

BASE, TRAINED, BAND, INK = "#8a8f98", "#0b6e99", "#cfe6d8", "#24292f"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b8bec6",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 160,
    "savefig.bbox": "tight",
    "text.parse_math": False,  # a dollar sign in a name is one
}
Rows = Sequence[Mapping[str, Any]]
Estimates = Mapping[str, Mapping[str, Any]]


def draw_valence(folder: Path, steps: Rows, estimates: Estimates) -> Path:
    """Mean valence of every update's own episodes, between the held-out means before and after.

    The whole reward where it holds nothing at a set point.
    """
    held = any(row.get("reward/valence") is not None for row in steps) or not steps
    key, title = ("reward/valence", "Valence") if held else ("reward/total", "Reward")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 2.8))
        _over_updates(axes, steps, key)
        _held_out(axes, estimates.get("valence"), len(steps), label=True)
        label = "valence (0 = all at set point)" if held else "reward"
        axes.set(xlabel="update", ylabel=label, title=title)
        axes.legend(frameon=False, loc="best", fontsize=8)
        return save(figure, folder / "valence.png")


def draw_signals(
    folder: Path, steps: Rows, estimates: Estimates, set_points: Estimates, units: Mapping[str, str]
) -> Path:
    """Every signal over the updates, with the band of one tolerance around its set point."""
    names = [n.removeprefix("signal/") for n in estimates if n.startswith("signal/")]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.3 * columns, 1.9 * rows), squeeze=False, sharex=True
        )
        for axes, name in zip(grid.flat, names, strict=False):
            point = set_points.get(name)
            if point:
                low, high = (point["setpoint"] + s * point["tolerance"] for s in (-1, 1))
                if units.get(name) == "probability":
                    low, high = max(0.0, low), min(1.0, high)
                axes.axhspan(low, high, color=BAND, lw=0)
                axes.axhline(point["setpoint"], color="#4c9a6a", lw=0.8)
            _over_updates(axes, steps, f"signal/{name}_mean")
            _held_out(axes, estimates[f"signal/{name}"], len(steps))
            axes.set_title(name)
            axes.set_ylabel(units.get(name, ""), fontsize=7)
            axes.tick_params(labelsize=7)
        for axes in list(grid.flat)[len(names) :]:
            axes.remove()
        figure.supxlabel("update", fontsize=8)
        figure.tight_layout()
        return save(figure, folder / "signals.png")


def draw_effects(folder: Path, estimates: Estimates) -> Path:
    """What each term adds to the change of valence, 95% intervals; right of 0 is nearer home."""
    names = ["valence", *(n for n in estimates if n.startswith(("term/", "own/")))]
    shown = [(n, estimates[n]) for n in names if estimates[n]["diff"] is not None]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.26 * max(1, len(shown))))
        for y, (name, estimate) in enumerate(reversed(shown)):
            low, high = estimate["ci95"] or (estimate["diff"], estimate["diff"])
            colour = TRAINED if low > 0 else "#b3402f" if high < 0 else BASE
            axes.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="round")
            axes.plot(estimate["diff"], y, "o", color=colour, ms=7 if name == "valence" else 4.5)
        axes.axvline(0, color=INK, lw=0.8)
        labels = [name.partition("/")[2] or "valence (sum)" for name, _ in reversed(shown)]
        axes.set_yticks(range(len(shown)), labels)
        axes.set(xlabel="trained - base on held-out episodes, units of valence", title="Change")
        return save(figure, folder / "effects.png")


def _over_updates(axes: Axes, steps: Rows, key: str) -> None:
    points = [(row["step"], row[key]) for row in steps if row.get(key) is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "-o", color=TRAINED, ms=3, lw=1.3, label="training episodes")


def _held_out(
    axes: Axes, estimate: Mapping[str, Any] | None, last: int, label: bool = False
) -> None:
    """Held-out means: the base at update 0, the trained model after the last update."""
    if estimate is None or estimate["before"] is None:
        return
    name = "held-out, {}" if label else "_{}"
    axes.plot(0, estimate["before"], "s", color=BASE, ms=5, label=name.format("base"), zorder=3)
    if estimate["after"] is not None:
        axes.plot(
            last,
            estimate["after"],
            "D",
            color="#d1792b",
            ms=5,
            label=name.format("trained"),
            zorder=3,
        )
    axes.set_xlim(-0.4, last + 0.4)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def save(figure: Figure, path: Path) -> Path:
    """Write the figure whole, close it, and return where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as scratch:
        figure.savefig(scratch, format="png")
    plt.close(figure)
    return path
