"""Runs of the tiny model repeat what was recorded before the package was laid out anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden
import pytest

from homeostat.config.run import RunConfig
from homeostat.report.console import Console
from homeostat.runs.run import run

RECORDED = json.loads(golden.PLACE.read_text(encoding="utf-8"))
ALIKE = golden.rounding() == RECORDED["rounding"]
# One in the quick tests, the others among the slow ones.
NAMES = [
    name if name == "ppo" else pytest.param(name, marks=pytest.mark.slow) for name in golden.RUNS
]


def assert_as_recorded(folder: Path, name: str) -> None:
    recorded = RECORDED["runs"][name]
    if ALIKE:
        assert golden.files(folder) == recorded["files"]
        return
    assert list(golden.files(folder)) == list(recorded["files"])
    for path, rows in golden.figures(folder).items():
        for row, before in zip(rows, recorded["figures"][path], strict=True):
            assert row == pytest.approx(before, rel=0.05, abs=0.05, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("cache")
def test_a_run_is_what_it_was(
    name: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    run(composed(*golden.COMMON, *golden.RUNS[name]), tmp_path / name, Console())
    assert_as_recorded(tmp_path / name, name)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_resumed_run_is_what_it_was(composed: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    begun = composed(*golden.COMMON, *golden.RESUMED)
    run(begun, folder, Console())
    longer = replace(
        begun,
        resume=str(folder),
        resume_override=True,
        trainer=replace(begun.trainer, max_steps=2),
    )
    run(longer, folder, Console())
    assert_as_recorded(folder, "resumed")
