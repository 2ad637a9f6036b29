"""The suite of evaluations in whole runs on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.evals.subject import Subject
from homeostat.evals.suite import Suite
from homeostat.report.console import Console
from homeostat.runs.run import run
from homeostat.runs.suite import describe_speed

SUITE = ("answer", "opinion", "pressure_facts")
OVERRIDES = (
    "model=tiny_random",
    "scale=smoke",
    "device=cpu",
    "wandb.mode=disabled",
    "signals=[intrinsic]",
    "reward=intrinsic_only",
    f"eval.suite=[{','.join(SUITE)}]",
    "eval.items={answer: 4, opinion: 3, pressure_facts: 2}",
    "eval.reply_tokens=4",
    "eval.bootstrap_samples=50",
)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(composed: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(composed(*OVERRIDES), folder, Console(), OVERRIDES) == "finished"
    return folder


def test_base_and_trained_model_answer_the_same_items(trained: Path) -> None:
    for name, count in (("answer", 4), ("opinion", 3), ("pressure_facts", 2)):
        found = rows(trained / "evals" / f"{name}.jsonl")
        by_arm = {arm: [r["item"] for r in found if r["arm"] == arm] for arm in ("base", "trained")}
        assert by_arm["base"] == by_arm["trained"]
        assert len(by_arm["base"]) == count


def test_the_summary_and_the_report_hold_the_comparison(trained: Path) -> None:
    suite = json.loads((trained / "summary.json").read_text())["suite"]
    assert tuple(suite) == SUITE
    for own in suite.values():
        claim = own["metrics"][own["claim"]]
        assert claim["after"] is not None
        assert claim["p_holm"] is None or claim["p_holm"] >= claim["p"]
    assert "at chance" in suite["answer"]["caveat"], "a random model knows nothing"
    page = (trained / "report.html").read_text()
    assert "<h2>Evaluations</h2>" in page
    assert "at chance" in page
    assert "How long a side is held" in page
    for key in ("turn_of_flip", "flips", "regressive", "progressive", "control_flips"):
        assert f">{key}</td>" in page
    for arm in ("base", "trained"):
        held = suite["pressure_facts"]["survival"][arm]
        assert tuple(held) == ("pressure", "control", "user_right")
        assert all({"share", "median", "mean", "n"} <= own.keys() for own in held.values())


def test_a_run_that_is_killed_among_the_evaluations_goes_on_with_the_next(
    trained: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder, asked = tmp_path / "run", []
    rows_of = Suite.rows

    def asking(self: Suite, subject: Subject, name: str) -> list[dict[str, Any]]:
        asked.append(name)
        if len(asked) == len(SUITE) - 1:
            raise KeyboardInterrupt
        return rows_of(self, subject, name)

    # Another seed's adapter, so that nothing of the trained arm is known yet; the base's all is.
    overrides = (*OVERRIDES, "seed=7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Suite, "rows", asking)
        with pytest.raises(KeyboardInterrupt):
            run(composed(*overrides), folder, Console(), overrides)
        config = replace(composed(*overrides), resume=str(folder))
        assert run(config, folder, Console(), overrides) == "finished"
    assert asked == [SUITE[0], SUITE[1], SUITE[1], SUITE[2]]
    suite = json.loads((folder / "summary.json").read_text())["suite"]
    assert [suite[name]["speed"]["trained"]["cached"] for name in SUITE] == [True, False, False]
    said = describe_speed(suite)
    assert said is not None
    assert "s, partly from the cache" not in said.partition("trained")[0]
    assert said.endswith("tokens/s, partly from the cache")
    for name in SUITE:
        found = rows(folder / "evals" / f"{name}.jsonl")
        assert {row["arm"] for row in found} == {"base", "trained"}
        base = [row for row in rows(trained / "evals" / f"{name}.jsonl") if row["arm"] == "base"]
        assert [row for row in found if row["arm"] == "base"] == base


def test_figures_are_read_from_replies_on_request(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    overrides = (*OVERRIDES, "trainer=none", "eval.mode=generate")
    run(composed(*overrides), tmp_path / "run", Console(), overrides)
    suite = json.loads((tmp_path / "run" / "summary.json").read_text())["suite"]
    assert {own["mode"] for own in suite.values()} == {"generate"}
    assert "could not be scored" in suite["answer"]["caveat"], "a random model names nothing"
    assert suite["answer"]["metrics"]["unscorable"]["before"] > 0.9
    assert suite["answer"]["metrics"]["sycophancy"]["before"] is None
    (row, *_) = rows(tmp_path / "run" / "evals" / "answer.jsonl")
    assert row["mode"] == "generate"
    assert set(row["replies"]) >= {"neutral", "assert_wrong"}
    assert "answer, replies</td>" in (tmp_path / "run" / "report.html").read_text()


def test_without_training_there_is_the_base_alone(
    trained: Path, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    overrides = (*OVERRIDES, "trainer=none")
    run(composed(*overrides), tmp_path / "run", Console(), overrides)
    found = rows(tmp_path / "run" / "evals" / "answer.jsonl")
    base = [row for row in rows(trained / "evals" / "answer.jsonl") if row["arm"] == "base"]
    assert found == base, "from the cache, and the same"
    suite = json.loads((tmp_path / "run" / "summary.json").read_text())["suite"]
    assert suite["answer"]["metrics"]["sycophancy"]["diff"] is None
    assert "<th>difference</th>" not in (tmp_path / "run" / "report.html").read_text()
    assert "<th>difference</th>" in (trained / "report.html").read_text()


def test_a_reward_that_holds_nothing_has_no_valence(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    own = [
        o
        for o in OVERRIDES
        if not o.startswith(("signals=", "reward=", "eval.suite", "eval.items"))
    ]
    overrides = (*own, "reward=external_praise", "eval.suite=[]", "signals.affect.require=weak")
    folder = tmp_path / "run"
    run(composed(*overrides), folder, Console(), overrides)
    found = json.loads((folder / "summary.json").read_text())["eval"]
    assert found["valence"]["before"] is found["valence"]["diff"] is None
    assert found["own/praise"]["before"] is not None
    assert all("reward/valence" not in row for row in rows(folder / "metrics.jsonl"))
    page = (folder / "report.html").read_text()
    assert (
        "The reward holds nothing at a set point. Its own terms on held-out episodes: praise"
        in page
    )


def test_a_bad_file_of_items_is_named_before_anything_is_computed(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "Who?"}\n')
    overrides = (*OVERRIDES, f"eval.files.answer={own}")
    with pytest.raises(HomeostatError, match=r"own\.jsonl, line 1: right is missing"):
        run(composed(*overrides), tmp_path / "run", Console(), overrides)
    assert not (tmp_path / "run" / "evals").exists()
