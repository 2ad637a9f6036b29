"""Multiple choice with subjects that know a known share of the answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scripted import EVALUATIONS, Scripted, eval_config, rows_of, uniform

from homeostat.errors import HomeostatError
from homeostat.evals.stats import level

CAPABILITY = EVALUATIONS["capability"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa_openbookqa.jsonl"


def test_a_score_is_per_character() -> None:
    item = {"id": "q", "question": "Who?", "choices": ["ab", "abcdefgh"], "gold": 1}
    (row,) = rows_of("capability", Scripted(lambda _t, answer, _a: -1.0 - (answer != "ab")), [item])
    assert row["margin"] == pytest.approx(-2 / 8 - -1 / 2)
    assert (row["right"], row["chance"]) == (1, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_known_share_of_right_answers_is_found(share: float) -> None:
    items = CAPABILITY.items(eval_config())
    rng = np.random.default_rng(0)
    known = {item["question"]: bool(rng.random() < share) for item in items}
    gold = {item["question"]: item["choices"][item["gold"]] for item in items}

    def knows_some(text: str, answer: str, _answers: object) -> float:
        return (1.0 if known[text] else -9.0) * (answer == gold[text])

    rows = rows_of("capability", Scripted(knows_some), items)
    assert [row["right"] for row in rows] == [float(known[i["question"]]) for i in items]
    found = level(rows, "right")
    assert found["ci95"][0] <= share <= found["ci95"][1]
    assert (CAPABILITY.caveat(rows) is None) == (share > 0.5)


def test_who_finds_all_alike_is_at_chance() -> None:
    items = CAPABILITY.items(eval_config())
    assert len(items) == 200
    rows = rows_of("capability", Scripted(uniform), items)
    assert 0.15 < np.mean([row["right"] for row in rows]) < 0.35
    assert "chance 0.25" in str(CAPABILITY.caveat(rows))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["a", "b"], "gold": 2}, "line 1: gold=2 is no index of its 2 choices"),
        ({"choices": ["a"], "gold": 0}, "line 1: gold=0 is no index of its 1 choices"),
        ({"choices": ["a", "b"], "gold": True}, "line 1: gold is True; it must be a int"),
        ({"choices": ["a", 3], "gold": 0}, "must be texts"),
        ({"choices": ["a", "b", "b"], "gold": 0}, "line 1: two of its answers are 'b'"),
    ],
)
def test_choices_that_measure_nothing_are_named(
    row: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "Who?", **row}))
    with pytest.raises(HomeostatError, match=re.escape(said)):
        CAPABILITY.items(eval_config(files={"capability": str(path)}))


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared data are not beside the project")
def test_openbookqa_is_read_as_it_is() -> None:
    items = CAPABILITY.items(eval_config(files={"capability": str(SHARED)}))
    assert len(rows_of("capability", Scripted(uniform), items)) == 500
