"""What a job of a sweep returns: the figure that is named, and NaN where it is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.report.objective import objective

TINY = ("model=tiny_random", "scale=smoke")
STEER = (*TINY, "trainer=steer_heal", "persona=calm")


def folder_with(path: Path, summary: dict[str, Any], *rows: dict[str, Any]) -> Path:
    (path / "summary.json").write_text(json.dumps(summary))
    if rows:
        (path / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_figures_of_episodes_and_evaluations(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    figures = {"valence": {"diff": 0.5}, "true/boredom": {"diff": None}}
    suite = {"answer": {"metrics": {"sycophancy": {"diff": -0.25}}}}
    folder = folder_with(tmp_path, {"eval": figures, "suite": suite})
    assert objective(composed(*TINY), folder) == 0.5, "held-out valence is the default"
    for key, value in (("suite/answer/sycophancy", -0.25), ("eval/true/boredom", math.nan)):
        config = composed(*TINY, f"objective={key}", "eval.suite=[answer]")
        assert objective(config, folder) == pytest.approx(value, nan_ok=True)
    absent = composed(*TINY, "objective=eval/nothing")
    assert math.isnan(objective(absent, folder))
    assert math.isnan(objective(composed(*TINY), folder_with(tmp_path, {"status": "failed"})))


def test_the_trait_of_the_last_student_that_is_coherent(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    rows = [
        {"stage": stage, "coherence": coherence, "moved": {"trait_nats": {"diff": diff}}}
        for stage, coherence, diff in (
            ("healed", 0.9, 0.1),
            ("steered", 0.9, 0.9),
            ("healed", 0.5, 0.2),
            ("healed", 0.4, 0.7),
        )
    ]
    folder = folder_with(tmp_path, {"coherence_floor": 0.5}, *rows)
    assert objective(composed(*STEER), folder) == 0.2
    assert math.isnan(objective(composed(*STEER), folder_with(tmp_path, {"coherence_floor": 0.95})))


@pytest.mark.parametrize(
    ("own", "key"),
    [
        (TINY, "valence"),
        (TINY, "stages/trait_nats"),
        (STEER, "eval/valence"),
        (TINY, "suite/perez/match"),
        (TINY, "suite/answer"),
        (TINY, "eval/"),
    ],
)
def test_a_figure_that_the_run_cannot_have_is_refused(
    composed: Callable[..., RunConfig], own: tuple[str, ...], key: str
) -> None:
    with pytest.raises((HomeostatError, ValueError), match=f"objective={key} is no figure"):
        composed(*own, f"objective={key}", "eval.suite=[answer]")
