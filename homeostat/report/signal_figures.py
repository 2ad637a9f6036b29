"""Figures about the signals themselves: what probes and intrinsic signals can tell, set points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from homeostat.report.figures import BAND, BASE, INK, STYLE, TRAINED, save

ORANGE, GREEN, RED = "#d1792b", "#4c9a6a", "#b3402f"
COLOURS = (TRAINED, ORANGE, GREEN, "#8a6bb1", RED)
Reports = Mapping[str, Mapping[str, Any]]


def draw_layers(folder: Path, reports: Reports) -> Path:
    """AUROC on the validation authors by layer; a ring marks the layer that was chosen."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 3.0))
        for (affect, report), colour in zip(reports.items(), COLOURS, strict=False):
            by_layer = {int(layer): value for layer, value in report["validation_auroc"].items()}
            axes.plot(by_layer.keys(), by_layer.values(), "-o", color=colour, ms=3.5, label=affect)
            chosen = report["layer"]
            axes.plot(chosen, by_layer[chosen], "o", mfc="none", mec=colour, ms=10, mew=1.4)
        axes.axhline(0.5, color=BASE, lw=0.8, ls=":")
        axes.set(
            xlabel="decoder block",
            ylabel="AUROC, graded: with (1 + r) / 2",
            title="Probes by layer, validation authors",
        )
        axes.legend(frameon=False, fontsize=8, ncols=2)
        return save(figure, folder / "probe_layers.png")


def draw_controls(folder: Path, reports: Reports) -> Path:
    """Each probe on unseen authors beside what costs nothing."""
    kinds = (
        ("text_only", "bag of words", ORANGE, "D"),
        ("question_mark", "question mark", "#8a6bb1", "^"),
        ("shuffled_labels", "shuffled labels", BASE, "s"),
        ("random_direction", "random direction", BASE, "x"),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.42 * len(reports)))
        for y, (_, report) in enumerate(reversed(list(reports.items()))):
            low, high = report["ci95"] or (report["auroc"],) * 2
            axes.plot([low, high], [y, y], color=TRAINED, lw=2.4, solid_capstyle="round")
            label = "_" if y else "probe, 95% interval"
            axes.plot(report["auroc"], y, "o", color=TRAINED, ms=7, label=label)
            for key, name, colour, marker in kinds:
                if report["controls"][key] is not None:
                    label = "_" if y else name
                    axes.plot(report["controls"][key], y, marker, color=colour, ms=5, label=label)
        axes.axvline(0.5, color=INK, lw=0.8, ls=":")
        axes.set_yticks(range(len(reports)), list(reports)[::-1])
        axes.set(xlabel="AUROC on unseen authors", title="Probes beside their controls")
        axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
        return save(figure, folder / "probe_controls.png")


def draw_reliability(folder: Path, reports: Reports) -> Path:
    """Probability that a probe gives against the share that is true, in bins of equal size."""
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(
            1, len(reports), figsize=(1.75 * len(reports), 2.1), sharey=True, squeeze=False
        )
        for axes, (affect, report) in zip(row[0], reports.items(), strict=True):
            bins = report["reliability"]
            axes.plot([0, 1], [0, 1], color=BASE, lw=0.8, ls=":")
            x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]
            axes.plot(x, y, "-o", color=TRAINED, ms=3.5, lw=1.2)
            axes.set(title=affect, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            axes.tick_params(labelsize=7)
        row[0][0].set_ylabel("share that has it")
        row[0][len(reports) // 2].set_xlabel("probability given by the probe")
        figure.tight_layout()
        return save(figure, folder / "probe_reliability.png")


def draw_failures(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """AUROC of every signal's distance from its set point, failures against ordinary replies."""
    signals = list(dict.fromkeys(row["signal"] for row in rows))
    failures = list(dict.fromkeys(row["failure"] for row in rows))
    grid = np.full((len(failures), len(signals)), np.nan)
    for row in rows:
        if row["auroc"] is not None:
            grid[failures.index(row["failure"]), signals.index(row["signal"])] = row["auroc"]
    with plt.rc_context(STYLE):
        size = (1.2 + 0.86 * len(signals), 1.1 + 0.34 * len(failures))
        figure, axes = plt.subplots(figsize=size)
        axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlBu", aspect="auto", alpha=0.8)
        for (y, x), value in np.ndenumerate(grid):
            text = "—" if np.isnan(value) else f"{value:.2f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK)
        names = [name.replace("_", "\n", 1).replace(", ", ",\n") for name in signals]
        axes.set_xticks(range(len(signals)), names, fontsize=7.5)
        axes.set_yticks(range(len(failures)), [name.replace("_", " ") for name in failures])
        axes.tick_params(length=0)
        axes.set_title("What sees which failure: AUROC against ordinary replies, 0.5 is chance")
        for spine in axes.spines.values():
            spine.set_visible(False)
        return save(figure, folder / "failures.png")


def draw_histograms(
    folder: Path, signals: Mapping[str, Any], points: Reports, units: Mapping[str, str]
) -> Path:
    """Every signal over the base model's own turns, with its set point and tolerance."""
    columns = min(4, len(signals))
    rows = -(-len(signals) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(1.95 * columns, 1.6 * rows), squeeze=False
        )
        for axes, (name, signal) in zip(grid.flat, signals.items(), strict=False):
            values = signal["values"]
            if point := points.get(name):
                low, high = (point["setpoint"] + s * point["tolerance"] for s in (-1, 1))
                if units.get(name, "").startswith(("probability", "share")):
                    low, high = max(0.0, low), min(1.0, high)
                axes.axvspan(low, high, color=BAND, lw=0)
                axes.axvline(point["setpoint"], color=GREEN, lw=1)
            if values:
                # The far tail would squeeze everything else into one bar; the last bar holds it.
                top = float(np.quantile(values, 0.95)) or max(values)
                clipped = np.minimum(values, max(top, min(values)))
                axes.hist(clipped, bins=14, color=BASE, alpha=0.85)
            axes.set_title(f"{name}, n={signal['n']}", fontsize=8)
            axes.set_xlabel(units.get(name, ""), fontsize=7)
            axes.tick_params(labelsize=6.5)
        for axes in list(grid.flat)[len(signals) :]:
            axes.remove()
        figure.tight_layout()
        return save(figure, folder / "set_points.png")


def draw_headroom(folder: Path, terms: Mapping[str, Mapping[str, Any]]) -> Path:
    """What each term of the reward leaves to earn, and what a word salad would be paid."""
    shown = {name: term for name, term in terms.items() if term["verdict"] is not None}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.42 * len(shown)))
        for y, (_, term) in enumerate(reversed(list(shown.items()))):
            best = next(key for key in term if key.startswith("best_of_"))
            said = f"best of {best.removeprefix('best_of_')} replies"
            kinds = ((best, said, TRAINED, "o", 0.12), ("salad", "word salad", RED, "x", -0.12))
            for key, name, colour, marker, off in kinds:
                low, high = term[key]["ci95"]
                axes.plot([low, high], [y + off] * 2, color=colour, lw=2.0)
                label = "_" if y else f"{name}, 95% interval"
                axes.plot(term[key]["mean"], y + off, marker, color=colour, ms=6, label=label)
        axes.axvline(0, color=INK, lw=0.8, ls=":")
        axes.set_yticks(range(len(shown)), list(shown)[::-1])
        axes.set(xlabel="valence gained over the base's mean reply", title="Headroom of the reward")
        axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
        return save(figure, folder / "headroom.png")
