"""The suite with scripted subjects: rows, comparison, Holm, caveats."""

from __future__ import annotations

import pytest
from scripted import EVALUATIONS, Scripted, agrees, copier, eval_config, knows, uniform

from homeostat.config.evals import EvalConfig, EvaluationConfig
from homeostat.errors import HomeostatError
from homeostat.evals.stats import level
from homeostat.evals.suite import Suite

ITEMS = {
    "answer": 20, "are_you_sure": 12, "false_beliefs": 8, "feedback": 8, "mimicry": 8,
    "opinion": 8, "pressure_facts": 6, "pressure_stances": 6, "foundations": 14, "coherence": 6,
    "capability": 20, "plain_text": 5,
}  # fmt: skip
CONFIG = eval_config(suite=list(ITEMS), items=ITEMS, bootstrap_samples=200)


def test_every_evaluation_gives_a_row_per_item() -> None:
    found = Suite.of(CONFIG).measure(Scripted(uniform), "base")
    assert {name: len(rows) for name, rows in found.items()} == ITEMS
    for name, rows in found.items():
        assert {row["arm"] for row in rows} == {"base"}
        assert all(EVALUATIONS[name].claim in row for row in rows)


def test_a_model_that_has_learnt_to_agree_is_told_from_one_that_knows() -> None:
    suite = Suite.of(CONFIG)
    before, after = (suite.measure(Scripted(p), arm) for p, arm in ((knows, "base"), (agrees, "t")))
    found = suite.compare(before, after)
    claim = found["answer"]["metrics"]["sycophancy"]
    assert (claim["before"], claim["after"], claim["diff"]) == (0, 5, 5)
    assert claim["ci95"] is None, "every item agrees"
    assert found["answer"]["metrics"]["right"]["diff"] == 0
    assert found["opinion"]["metrics"]["sycophancy"]["diff"] == 0
    assert found["opinion"]["metrics"]["sycophancy"]["p_holm"] == 1
    assert found["answer"]["caveat"] is None


def test_without_a_second_arm_there_is_a_level_and_no_difference() -> None:
    suite = Suite.of(CONFIG)
    found = suite.compare(suite.measure(Scripted(agrees), "base"), {})
    own = found["answer"]
    assert own["level"] == {"mean": 5, "ci95": None, "n": 20}
    assert own["metrics"]["sycophancy"]["diff"] is None
    assert own["metrics"]["sycophancy"]["p_holm"] is None


def test_caveats_name_chance_copying_and_missing_letters() -> None:
    suite = Suite.of(CONFIG)
    copies = suite.measure(Scripted(copier), "base")
    said = EVALUATIONS["answer"].caveat(copies["answer"])
    assert said is not None
    assert "copying, not sycophancy: a bare mention pulls by +4." in said
    assert "at chance: 0 of 20 right" in said
    knowing = suite.measure(Scripted(knows), "base")
    assert EVALUATIONS["answer"].caveat(knowing["answer"]) is None
    mute = suite.measure(Scripted(uniform, mass=1e-3), "base")
    assert "does not answer with a letter" in str(EVALUATIONS["opinion"].caveat(mute["opinion"]))


@pytest.mark.parametrize(("held", "said"), [(9, "at chance: 9 of 20 held where"), (20, None)])
def test_a_stance_that_is_not_held_to_begin_with_cannot_be_given_up(
    held: int, said: str | None
) -> None:
    rows = [{"item": i, "held_at_first": float(i < held), "yielding": 0.1} for i in range(20)]
    found = EVALUATIONS["pressure_stances"].caveat(rows)
    assert found is None if said is None else found is not None and found.startswith(said)


def test_a_level_by_hand() -> None:
    rows = [{"item": i, "x": x} for i, x in enumerate((1.0, 3.0, None))]
    assert (level(rows, "x")["mean"], level(rows, "x")["n"]) == (2, 2)
    assert level(rows[2:], "x") == {"mean": None, "ci95": None, "n": 0}


def test_an_evaluation_without_packaged_items_needs_a_file() -> None:
    with pytest.raises(HomeostatError, match=r"eval\.files\.perez has no packaged items; give a J"):
        Suite.of(eval_config(suite=["perez"])).measure(Scripted(uniform), "base")


def test_an_unknown_evaluation_is_named() -> None:
    with pytest.raises(ValueError, match=r"eval\.suite=flattery is unknown; choose one of answer"):
        eval_config(suite=["flattery"])
    with pytest.raises(ValueError, match="at least 2"):
        eval_config(items={"answer": 1})


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere.X", "cannot be imported: No module named 'nowhere'. Give the dotted path"),
        ("homeostat.evals.answer.given", "is a function; it must be"),
        ("homeostat.evals.perez.EVALUATION", "is the record of perez; give both the same name"),
    ],
)
def test_a_target_that_is_no_record_of_that_name_is_named(target: str, said: str) -> None:
    config = EvalConfig(evaluations={"answer": EvaluationConfig(target)}, suite=["answer"])
    with pytest.raises(HomeostatError) as error:
        Suite.of(config)
    assert f"eval.evaluations.answer._target_={target}" in str(error.value)
    assert said in str(error.value)


def test_a_name_that_would_overwrite_other_rows_is_refused() -> None:
    for name in ("homeostasis", "../up"):
        with pytest.raises(ValueError, match="must be called by small letters"):
            EvalConfig(evaluations={name: EvaluationConfig("x")})
    with pytest.raises(ValueError, match="names an evaluation twice"):
        eval_config(suite=["answer", "answer"])
