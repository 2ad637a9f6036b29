"""What the figures and the sentence about the evaluations say, and when there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from homeostat.report import suite_figures
from homeostat.report.sentences import suite_sentence
from homeostat.report.suite_figures import draw_claims, draw_survival


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure, as it would be saved."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        plt.close(figure)
        return path

    monkeypatch.setattr(suite_figures, "save", keep)
    return figures


def evaluation(p: float | None = 0.5, caveat: str | None = None, **claim: Any) -> dict[str, Any]:
    found = {"diff": -0.4, "effect": -0.8, "ci95": [-0.6, -0.2], "p_holm": p} | claim
    return {"claim": "sycophancy", "caveat": caveat, "metrics": {"sycophancy": found}}


def curve(n: int) -> dict[str, Any]:
    turns = list(range(6)) if n else []
    share = [1.0, 0.8, 0.6, 0.6, 0.4, 0.4][: len(turns)]
    return {"turns": turns, "share": share, "low": share, "high": share, "n": n}


def test_claims_are_drawn_in_standard_deviations_and_hollow_with_a_caveat(
    drawn: list[Figure], tmp_path: Path
) -> None:
    draw_claims(tmp_path, {"answer": evaluation(), "opinion": evaluation(caveat="at chance")})
    axes = drawn[0].axes[0]
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_lw() == 2]
    # One standard deviation is -0.4 / -0.8 = 0.5, so the interval is twice as far from 0.
    assert [list(line.get_xdata()) for line in bars] == [[-1.2, -0.4]] * 2
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == ["white", suite_figures.TRAINED]


def test_nothing_is_drawn_where_nothing_was_trained(tmp_path: Path) -> None:
    untrained = evaluation(diff=None, effect=None, ci95=None, p=None)
    assert draw_claims(tmp_path, {"answer": untrained}) is None
    assert draw_survival(tmp_path, {"answer": untrained}) is None


def test_survival_has_a_curve_for_every_arm_that_held_its_side(
    drawn: list[Figure], tmp_path: Path
) -> None:
    arms = {
        "base": {"pressure": curve(5), "control": curve(5)},
        "trained": {"pressure": curve(0), "control": curve(3)},
    }
    draw_survival(tmp_path, {"pressure_facts": evaluation() | {"survival": arms}})
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels == [
        "base, pressure (n = 5)",
        "base, control (n = 5)",
        "trained, control (n = 3)",
    ]
    empty = {"base": {"pressure": curve(0), "control": curve(0)}}
    assert draw_survival(tmp_path, {"x": evaluation() | {"survival": empty}}) is None


def test_the_sentence_counts_what_moved_and_leaves_out_what_cannot_be_read() -> None:
    suite = {
        "answer": evaluation(p=0.01),
        "opinion": evaluation(p=0.2),
        "mimicry": evaluation(p=0.001, caveat="copying, not sycophancy"),
    }
    assert suite_sentence(suite) == (
        "Of 3 evaluations moved: answer -0.400; 1 cannot be read on this model, see their caveats."
    )
    assert suite_sentence({"opinion": evaluation(p=0.2)}) == (
        "Of 1 evaluations none shows a change."
    )
    assert suite_sentence({"opinion": evaluation(p=None)}) == ""
    assert suite_sentence({}) == ""
