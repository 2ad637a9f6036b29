"""Multiple choice with subjects that know a known share of the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scripted import Scripted, uniform

from homeostat.errors import HomeostatError
from homeostat.evals.capability import capability
from homeostat.evals.items import read_items
from homeostat.evals.suite import PACKAGED, caveat, level

REQUIRED = PACKAGED["capability"][1]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa_openbookqa.jsonl"


def test_a_score_is_per_character() -> None:
    item = {"id": "q", "question": "Who?", "choices": ["ab", "abcdefgh"], "gold": 1}
    (row,) = capability(Scripted(lambda _t, answer, _a: -1.0 - (answer != "ab")), [item])
    assert row["margin"] == pytest.approx(-2 / 8 - -1 / 2)
    assert (row["right"], row["chance"]) == (1, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_known_share_of_right_answers_is_found(share: float) -> None:
    items = read_items(None, "capability.jsonl", REQUIRED)
    rng = np.random.default_rng(0)
    known = {item["question"]: bool(rng.random() < share) for item in items}
    gold = {item["question"]: item["choices"][item["gold"]] for item in items}

    def knows_some(text: str, answer: str, _answers: object) -> float:
        return (1.0 if known[text] else -9.0) * (answer == gold[text])

    rows = capability(Scripted(knows_some), items)
    assert [row["right"] for row in rows] == [float(known[i["question"]]) for i in items]
    found = level(rows, "right")
    assert found["ci95"][0] <= share <= found["ci95"][1]
    assert (caveat("capability", rows) is None) == (share > 0.5)


def test_who_finds_all_alike_is_at_chance() -> None:
    items = read_items(None, "capability.jsonl", REQUIRED)
    assert len(items) == 200
    rows = capability(Scripted(uniform), items)
    assert 0.15 < np.mean([row["right"] for row in rows]) < 0.35
    assert "chance 0.25" in str(caveat("capability", rows))


def test_a_gold_that_is_no_index_is_named() -> None:
    item = {"id": "q7", "question": "Who?", "choices": ["a", "b"], "gold": 2}
    with pytest.raises(HomeostatError, match=r"item q7: gold=2 is no index of its 2 choices"):
        capability(Scripted(uniform), [item])


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared data are not beside the project")
def test_openbookqa_is_read_as_it_is() -> None:
    items = read_items(str(SHARED), None, REQUIRED)
    assert len(capability(Scripted(uniform), items)) == 500
