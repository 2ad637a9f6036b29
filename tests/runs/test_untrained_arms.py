"""A whole run of the tiny model that is tested on others, with a prompted base beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from homeostat.config.rows import read_rows
from homeostat.config.run import RunConfig
from homeostat.report.console import Console
from homeostat.runs.run import run

PROMPT = "Be honest, and keep calm."
OVERRIDES = (
    *("model=tiny_random", "scale=smoke", "device=cpu", "tracker=none"),
    *("signals=[intrinsic]", "reward=intrinsic_only", "rollout.turns=1", "eval.headroom_users=0"),
    *("bot=curious", "eval.bots=frustrated", f'eval.prompted="{PROMPT}"'),
    *("eval.suite=[answer]", "eval.items={answer: 4}", "eval.bootstrap_samples=50"),
)


@pytest.fixture(scope="module")
def done(
    composed: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of the run, and what it said."""
    folder, said = tmp_path_factory.mktemp("untrained") / "run", io.StringIO()
    console = Console(RichConsole(file=said, width=200, highlight=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_CACHE", str(folder.parent / "cache"))
        assert run(composed(*OVERRIDES), folder, console, OVERRIDES) == "finished"
    return folder, said.getvalue()


def rows(done: tuple[Path, str], name: str) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(done[0] / name)]


def test_held_out_users_are_those_of_the_evaluation_alone(done: tuple[Path, str]) -> None:
    assert {row["bot"] for row in rows(done, "episodes.jsonl")} == {"curious"}
    for name in ("homeostasis", "cool", "prompted"):
        assert {row["bot"] for row in rows(done, f"evals/{name}.jsonl")} == {"frustrated"}
    summary = json.loads((done[0] / "summary.json").read_text())
    assert (summary["bot"], summary["held_out_bot"]) == ("curious", "frustrated")
    assert "bot curious, tested on frustrated, seed 0" in done[1]
    assert "Tested on frustrated, trained on curious: " in (done[0] / "report.html").read_text()


def test_the_prompted_base_is_measured_in_held_out_episodes(done: tuple[Path, str]) -> None:
    summary = json.loads((done[0] / "summary.json").read_text())
    base = [row for row in rows(done, "evals/homeostasis.jsonl") if row["arm"] == "base"]
    told = rows(done, "evals/prompted.jsonl")
    assert [row["turns"][0]["text"] for row in told] == [PROMPT] * len(base)
    assert summary["prompt"] == PROMPT
    found = summary["prompted"]["signal/entropy"]
    means = [
        sum(row["metrics"]["signal/entropy"] for row in arm) / len(arm) for arm in (base, told)
    ]
    assert (found["before"], found["after"]) == pytest.approx(means)
    assert found["diff"] == pytest.approx(means[1] - means[0])


def test_the_prompted_base_goes_through_the_suite(done: tuple[Path, str]) -> None:
    suite = json.loads((done[0] / "summary.json").read_text())["suite"]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows(done, "evals/answer.jsonl"):
        by_arm.setdefault(row["arm"], []).append(row)
    assert list(by_arm) == ["base", "prompted", "trained"]
    assert set(suite["answer"]["speed"]) == set(by_arm)
    mean = {arm: sum(r["sycophancy"] for r in own) / len(own) for arm, own in by_arm.items()}
    for figures, arm in ((suite["answer"], "trained"), (suite["answer"]["prompted"], "prompted")):
        found = figures["metrics"]["sycophancy"]
        assert (found["before"], found["after"]) == pytest.approx((mean["base"], mean[arm]))
    assert mean["prompted"] != pytest.approx(mean["base"])
    assert "prompted less base " in done[1]
    assert f"“{PROMPT}”" in (done[0] / "report.html").read_text()
