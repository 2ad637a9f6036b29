"""The forced choice: every option on every digit, known answers, chance, files of tinymfv."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import EVALUATIONS, Scripted, eval_config, uniform

from homeostat.errors import HomeostatError
from homeostat.evals.foundations import (
    DIGITS,
    FOUNDATIONS,
    NAMES,
    OPENING,
    READOUTS,
    Vignette,
    choose_foundations,
    chosen_rows,
    informedness,
    informedness_interval,
    profile,
    question,
    read_vignettes,
)
from homeostat.evals.subject import PolicySubject, Score
from homeostat.models.adapters import Policy

TINYMFV = Path(__file__).parents[3] / "shared" / "data" / "tinymfv_classic_other_violate.jsonl"
Prefers = Callable[[str, str, Sequence[str]], float]


def digit_of(text: str, name: str) -> str:
    line = next(x for x in text.splitlines() if x.endswith(f"# {FOUNDATIONS[name]}"))
    return line.strip()[1]


def choosing(right: Callable[[str], str]) -> Prefers:
    """Ten nats for the digit of the option that ``right`` gives for the question."""
    return lambda text, answer, _: 10.0 * (answer == digit_of(text, right(text)))


def knowing(vignettes: Sequence[Vignette]) -> Prefers:
    return choosing(lambda text: next(v.foundation for v in vignettes if v.text in text))


def test_the_packaged_vignettes() -> None:
    counts = Counter(vignette.foundation for vignette in read_vignettes())
    assert set(counts) == set(NAMES)
    assert counts.pop("social") >= 15
    assert min(counts.values()) >= 10
    assert len(read_vignettes(per_foundation=2)) == 14


def test_every_option_stands_on_every_digit_once_in_the_rotations() -> None:
    places: dict[str, set[str]] = {name: set() for name in NAMES}
    for order in READOUTS["rotations"]:
        for name in NAMES:
            places[name].add(digit_of(question("x", order), name))
    assert all(found == set(DIGITS) for found in places.values())


def test_in_two_orders_authority_keeps_its_digit() -> None:
    found = {digit_of(question("x", order), "authority") for order in READOUTS["two_orders"]}
    assert found == {"3"}


@pytest.mark.parametrize("readout", list(READOUTS))
def test_a_model_that_knows_is_right_everywhere(readout: str) -> None:
    vignettes = read_vignettes(per_foundation=2)
    rows = choose_foundations(Scripted(knowing(vignettes)), vignettes, readout)
    assert all(row["chosen"] == row["foundation"] and row["top1"] == 1 for row in rows)
    assert informedness(rows) == 1
    assert informedness_interval(rows) == (1, 1)
    assert all(row["pmass"] == pytest.approx(1) for row in rows)
    # Ten nats on one option: its centred log-ratio is 10 - 10/7, the others' -10/7.
    assert rows[0]["clr_care"] == pytest.approx(60 / 7)
    assert rows[0]["clr_authority"] == pytest.approx(-10 / 7)
    assert EVALUATIONS["foundations"].caveat(rows) is None


def test_a_model_that_likes_one_digit_likes_no_option_in_rotations_and_authority_in_two() -> None:
    vignettes = read_vignettes(per_foundation=2)
    likes = Scripted(lambda _text, answer, _all: 3.0 * (answer == "3"))
    for row in choose_foundations(likes, vignettes):
        assert list(row["p"].values()) == pytest.approx([1 / 7] * 7)
    rows = choose_foundations(likes, vignettes, "two_orders")
    assert {row["chosen"] for row in rows} == {"authority"}
    assert informedness(rows) == pytest.approx(0)
    assert "not interpretable: at chance, informedness +0.00" in str(
        EVALUATIONS["foundations"].caveat(rows)
    )


def test_a_uniform_model_and_one_that_does_not_answer() -> None:
    vignettes = read_vignettes(per_foundation=2)
    found = profile(choose_foundations(Scripted(uniform), vignettes))
    assert found["nats"]["authority"] == pytest.approx(np.log(1 / 7))
    assert (found["n"], found["unscorable"]) == (14, 0)
    rows = choose_foundations(Scripted(uniform, mass=1e-3), vignettes)
    assert all(row["pmass"] == pytest.approx(1e-3) for row in rows)
    assert all(row["clr_care"] == pytest.approx(0) for row in rows)


def test_right_with_probability_p_is_covered_by_the_interval() -> None:
    vignettes, p = read_vignettes(per_foundation=12), 0.6
    rng = np.random.default_rng(0)
    luck = {v.text: rng.random() < p for v in vignettes}
    wrong = {v.text: NAMES[int(rng.integers(7))] for v in vignettes}

    def right(text: str) -> str:
        own = next(v for v in vignettes if v.text in text)
        return own.foundation if luck[own.text] else wrong[own.text]

    rows = choose_foundations(Scripted(choosing(right)), vignettes)
    interval = informedness_interval(rows)
    assert interval is not None
    assert interval[0] < p < interval[1]  # right p of the time, else anything: informedness is p


def test_what_is_not_finite_is_missing_and_counted() -> None:
    vignettes = read_vignettes(per_foundation=1)

    class Broken(Scripted):
        def score(self, talks, answers, opening=""):  # type: ignore[no-untyped-def]
            found = super().score(talks, answers, opening)
            if opening:
                found[2][4] = Score(float("nan"), 1)
            return found

    rows = choose_foundations(Broken(uniform), vignettes)
    assert rows[2]["p"] is rows[2]["clr_care"] is rows[2]["chosen"] is rows[2]["pmass"] is None
    found = profile(rows)
    assert (found["n"], found["unscorable"]) == (6, pytest.approx(1 / 7))


def test_digits_of_several_tokens_are_refused() -> None:
    class Split(Scripted):
        def score(self, talks, answers, opening=""):  # type: ignore[no-untyped-def]
            found = super().score(talks, answers, opening)
            return [[Score(score.total, 2) for score in own] for own in found]

    with pytest.raises(HomeostatError, match="no single token for each of the digits"):
        choose_foundations(Split(uniform), read_vignettes(per_foundation=1))


def test_the_real_reading_path_equals_one_pass_per_rotation(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    vignettes = [Vignette("a", "care", "You see a man kick a dog."), Vignette("b", "social", "Hm.")]
    row = choose_foundations(PolicySubject(policy), vignettes)[0]
    digits = [policy.tokenizer(d, add_special_tokens=False)["input_ids"][0] for d in DIGITS]
    lp, prefill = np.zeros((7, 7)), 0.0
    for number in range(7):
        order = [(digit - number) % 7 for digit in range(7)]
        messages = [{"role": "user", "content": question(vignettes[0].text, order)}]
        text = policy.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        prompt = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        opened = policy.tokenizer(OPENING, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + opened])).logits[0].log_softmax(-1)
        for digit, option in enumerate(order):
            lp[number, option] = logits[-1, digits[digit]]
        if number == 0:
            read = [-float(logits[len(prompt) - 1 + k, i]) for k, i in enumerate(opened)]
            prefill = float(np.mean(read))
    score = lp.mean(axis=0)
    share = np.exp(score) / np.exp(score).sum()
    assert list(row["p"].values()) == pytest.approx(share.tolist(), abs=1e-5)
    assert row["pmass"] == pytest.approx(np.exp(lp).sum(axis=1).mean(), rel=1e-4)
    assert row["nll_prefill"] == pytest.approx(prefill, abs=1e-3)


def test_an_interval_that_reaches_0_but_for_rounding_is_chance() -> None:
    chosen = {"fairness": ("fairness", "fairness"), "loyalty": ("sanctity", "loyalty")}
    chosen |= {"liberty": ("care", "loyalty")}
    rows = [
        {"foundation": name, "chosen": own}
        for name in NAMES
        for own in chosen.get(name, ("fairness", "fairness"))
    ]
    found = informedness_interval(rows)
    assert found is not None
    assert found[0] == 0


def test_informedness_of_a_constant_answer_is_chance() -> None:
    rows = [{"foundation": name, "chosen": "care"} for name in NAMES]
    assert informedness(rows) == pytest.approx(0)
    assert informedness([]) is None


def test_a_file_of_tinymfv_is_read_as_it_is() -> None:
    if not TINYMFV.is_file():
        pytest.skip("needs tinymfv_classic_other_violate.jsonl in ../shared/data")
    found = read_vignettes(str(TINYMFV))
    assert len(found) == 132
    assert Counter(v.foundation for v in found)["social"] == 16
    assert all(sum(v.human.values()) == pytest.approx(1) for v in found if v.human)
    first = next(v for v in found if v.id == "8ed46857a2a75d34")
    assert first.human is not None
    assert first.human["care"] == pytest.approx(83 / 99)  # its percentages sum to 99
    (row,) = choose_foundations(Scripted(uniform), [first])
    assert row["human_nll"] == pytest.approx(np.log(7))


def test_others_acts_beside_ones_own() -> None:
    packaged = read_vignettes(per_foundation=2)
    assert all(
        v.own and v.own.split()[0] in ("You", "In") and "You see" not in v.own for v in packaged
    )
    own = {v.own: v for v in packaged}

    def harsh_on_others(text: str) -> str:
        """Sees the foundation where another acts, and nothing wrong where it does so itself."""
        mine = any(act in text for act in own if act)
        return "social" if mine else next(v.foundation for v in packaged if v.text in text)

    items = EVALUATIONS["foundations"].items(eval_config())
    items = [item for item in items if item["id"] in {v.id for v in packaged}]
    settings = eval_config(foundations_self=True)
    subject = Scripted(choosing(harsh_on_others))
    rows = chosen_rows(subject, items, settings)
    (care,) = (row for row in rows if row["item"] == "care-01")
    assert care["p"]["care"] == pytest.approx(1, abs=1e-3)
    assert care["p_self"]["social"] == pytest.approx(1, abs=1e-3)
    gaps = profile(rows)["other_less_self"]
    assert gaps["care"]["diff"] == pytest.approx(2 / 14, abs=1e-3)
    assert gaps["social"]["diff"] == pytest.approx(-12 / 14, abs=1e-3)
    assert gaps["care"]["n"] == 14
    assert "other_less_self" not in profile(chosen_rows(subject, items, eval_config()))
    bare = [{key: item[key] for key in ("id", "text", "foundation")} for item in items]
    with pytest.raises(HomeostatError, match=r"no vignette of .* has them"):
        chosen_rows(subject, bare, settings)


def test_a_row_that_lacks_something_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        json.dumps({"text": "You see.", "foundation": "care"}) + "\n" + json.dumps({"text": "x"})
    )
    with pytest.raises(HomeostatError, match=r"line 2: foundation is missing"):
        read_vignettes(str(path))
    path.write_text(json.dumps({"text": "You see.", "foundation": "greed"}))
    with pytest.raises(HomeostatError, match=r"foundation 'greed' is unknown; allowed are care"):
        read_vignettes(str(path))
