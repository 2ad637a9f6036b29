"""Inspect's own reader opens what is written, and finds the run's own figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homeostat.config.run import RunConfig
from homeostat.errors import HomeostatError
from homeostat.evals.capability import EVALUATION
from homeostat.report.inspect_logs import write_logs

RIGHT = {"before": 0.5, "after": 1.0, "diff": 0.5, "ci95": None, "n": 2}
VALENCE = {"before": -2.0, "after": None, "diff": None, "ci95": None, "n": 1}


def rows(path: Path, *found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def evaluated(composed: Callable[..., RunConfig], tmp_path: Path) -> tuple[Path, RunConfig]:
    """A run folder that has asked two questions and played one episode."""
    config = composed("eval.suite=[capability]", "eval.items={capability: 2}")
    first, second = (item["id"] for item in EVALUATION.items(config.eval))
    rows(
        tmp_path / "evals" / "capability.jsonl",
        {"arm": "base", "item": first, "right": 1.0, "margin": 0.5},
        {"arm": "base", "item": second, "right": 0.0, "margin": None},
        {"arm": "trained", "item": first, "right": 1.0, "margin": 0.5},
        {"arm": "prompted", "item": first, "right": 0.0, "margin": -0.5},
    )
    turns = [{"role": "user", "text": "Why?"}, {"role": "assistant", "text": "Because."}]
    episode = {"arm": "base", "seed": 7, "bot": "curious", "turns": turns}
    rows(tmp_path / "evals" / "homeostasis.jsonl", episode | {"metrics": {"valence": -2.0}})
    suite = {"capability": {"metrics": {"right": RIGHT}, "prompted": {"right": RIGHT}}}
    summary = {"status": "finished", "suite": suite, "eval": {"valence": VALENCE}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path, config


def test_inspect_opens_the_logs_and_finds_the_figures(
    evaluated: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    inspect_log = pytest.importorskip("inspect_ai.log")
    out = tmp_path / "out"
    out.mkdir()
    write_logs(*evaluated, out)
    logs = {path.stem: inspect_log.read_eval_log(str(path)) for path in out.iterdir()}
    assert set(logs) == {
        *("capability_base", "capability_trained", "capability_prompted"),
        "homeostasis_base",
    }
    base = logs["capability_base"]
    assert (base.status, base.eval.task) == ("success", "homeostat/capability")
    assert base.eval.task_args["arm"] == "base"
    assert base.results.scores[0].metrics["right"].value == 0.5
    assert logs["capability_trained"].results.scores[0].metrics["right"].value == 1.0
    assert logs["capability_prompted"].results.scores[0].metrics["right"].value == 1.0
    item = EVALUATION.items(evaluated[1].eval)[0]
    sample = base.samples[0]
    assert sample.input == item["question"]
    assert sample.target == item["choices"][item["gold"]]
    assert sorted(sample.choices) == sorted(item["choices"])
    assert sample.scores["homeostat"].value == {"right": 1.0, "margin": 0.5}
    assert base.samples[1].scores["homeostat"].value == {"right": 0.0}, "missing is missing"
    talk = logs["homeostasis_base"].samples[0]
    assert [message.text for message in talk.messages] == ["Why?", "Because."]
    assert [message.text for message in talk.input] == ["Why?"]
    assert logs["homeostasis_base"].results.scores[0].metrics["valence"].value == -2.0


def test_a_run_that_evaluated_nothing_has_no_logs(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    pytest.importorskip("inspect_ai")
    (tmp_path / "summary.json").write_text('{"status": "finished", "suite": {}, "eval": {}}')
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(HomeostatError, match=r"nothing was evaluated in it; give the folder"):
        write_logs(tmp_path, composed("eval.suite=[]"), out)
