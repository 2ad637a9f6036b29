"""What the figures about the signals show: read from the figures themselves, not from pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from homeostat.report import signal_figures
from homeostat.report.signal_figures import (
    draw_controls,
    draw_failures,
    draw_histograms,
    draw_layers,
    draw_reliability,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure, as it would be saved."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        figure.canvas.draw()
        figures.append(figure)
        plt.close(figure)
        return path

    monkeypatch.setattr(signal_figures, "save", keep)
    return figures


def report(**changes: Any) -> dict[str, Any]:
    controls = {
        "text_only": 0.75,
        "question_mark": 0.45,
        "shuffled_labels": 0.51,
        "random_direction": 0.55,
    }
    return {
        "layer": 12,
        "validation_auroc": {"3": 0.6, "12": 0.88, "20": 0.7},
        "auroc": 0.9,
        "ci95": [0.8, 0.95],
        "controls": controls,
        "reliability": [
            {"predicted": 0.2, "observed": 0.1, "n": 9},
            {"predicted": 0.7, "observed": 0.6, "n": 9},
        ],
    } | changes


def points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def lines_of(axes: Axes, name: str) -> Sequence[Line2D]:
    return [line for line in axes.get_lines() if line.get_label() == name]


def test_layers_are_in_order_with_a_ring_at_the_chosen_one(drawn: list[Figure]) -> None:
    assert draw_layers(Path("f"), {"boredom": report(), "joy": report(layer=3)}).name == (
        "probe_layers.png"
    )
    axes = drawn[0].axes[0]
    (line,) = lines_of(axes, "boredom")
    assert points(line) == [(3, 0.6), (12, 0.88), (20, 0.7)]
    rings = [x for x in axes.get_lines() if x.get_markerfacecolor() == "none"]
    assert [points(ring) for ring in rings] == [[(12, 0.88)], [(3, 0.6)]]


def test_controls_stand_beside_their_probe(drawn: list[Figure]) -> None:
    bare = report(
        auroc=0.6,
        ci95=None,
        controls=dict.fromkeys(report()["controls"], None) | {"text_only": 0.3},
    )
    draw_controls(Path("f"), {"boredom": report(), "joy": bare})
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joy", "boredom"]
    at_boredom = {x for line in axes.get_lines() for x, y in points(line) if y == 1} - {0.5}
    assert at_boredom == {0.8, 0.95, 0.9, 0.75, 0.45, 0.51, 0.55}
    at_joy = {x for line in axes.get_lines() for x, y in points(line) if y == 0} - {0.5}
    assert at_joy == {0.6, 0.3}


def test_reliability_has_a_panel_per_probe(drawn: list[Figure]) -> None:
    draw_reliability(Path("f"), {"boredom": report(), "joy": report(reliability=[])})
    first, second = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["boredom", "joy"]
    assert points(first.get_lines()[1]) == [(0.2, 0.1), (0.7, 0.6)]
    assert points(second.get_lines()[1]) == []


def failure(kind: str, signal: str, auroc: float | None) -> dict[str, Any]:
    return {"failure": kind, "signal": signal, "auroc": auroc}


def test_failures_are_a_grid_with_gaps(drawn: list[Figure]) -> None:
    rows = [
        failure("greedy_loop", "entropy", 0.875),
        failure("greedy_loop", "self_perplexity", 0.0),
        failure("empty", "self_perplexity", None),
        failure("empty", "all, as weighted", 1.0),
    ]
    draw_failures(Path("f"), rows)
    axes = drawn[0].axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.88", "0.00", "—", "—", "—", "1.00"]
    assert [text.get_position() for text in axes.texts][:4] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["greedy loop", "empty"]
    assert [x.get_text() for x in axes.get_xticklabels()] == [
        "entropy",
        "self\nperplexity",
        "all,\nas weighted",
    ]


def draw_one(values: list[float], point: dict[str, float] | None, unit: str = "tokens") -> None:
    signals = {"signal": {"n": len(values), "values": values}}
    draw_histograms(Path("f"), signals, {"signal": point} if point else {}, {"signal": unit})


def heights(axes: Axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches if hasattr(patch, "get_height")]


def test_histogram_counts_every_turn_and_its_last_bar_holds_the_tail(drawn: list[Figure]) -> None:
    """Forty turns between 0 and 3.9, two far beyond."""
    draw_one([*(np.arange(40) / 10).tolist(), 100.0, 900.0], None)
    (axes,) = drawn[0].axes
    assert axes.get_title(loc="left") == "signal, n=42"
    counts = heights(axes)
    assert len(counts) == 14
    assert sum(counts) == 42
    assert max(patch.get_x() + patch.get_width() for patch in axes.patches) < 5
    assert counts[-1] >= 3


@pytest.mark.parametrize(
    ("unit", "band"),
    [("tokens", (-0.5, 0.7)), ("probability", (0.0, 0.7)), ("share 0..1", (0.0, 0.7))],
)
def test_band_of_a_probability_stays_within_its_range(
    drawn: list[Figure], unit: str, band: tuple[float, float]
) -> None:
    draw_one([0.1, 0.2], {"setpoint": 0.1, "tolerance": 0.6}, unit)
    (axes,) = drawn[0].axes
    span = axes.patches[0]
    assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx(band)
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [0.1]


@pytest.mark.parametrize(
    "values", [[], [0.0], [0.0] * 9, [0.0] * 99 + [1.0], [-0.75, -0.5, -0.25], [2.0] * 5]
)
def test_histogram_of_odd_values(drawn: list[Figure], values: list[float]) -> None:
    draw_one(values, None)
    assert sum(heights(drawn[0].axes[0])) == len(values)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_every_signal_has_a_panel_and_no_panel_is_empty(drawn: list[Figure], count: int) -> None:
    signals = {f"s{i}": {"n": 2, "values": [1.0, 2.0]} for i in range(count)}
    draw_histograms(Path("f"), signals, {}, {})
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        f"s{i}, n=2" for i in range(count)
    ]
