"""The forced choice: every option on every digit, known answers, chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.evals import foundations
from homeostat.evals.foundations import (
    FOUNDATIONS,
    Vignette,
    digit_ids,
    informedness,
    measure_foundations,
    question,
    read_vignettes,
)
from homeostat.models.adapters import Policy

NAMES = list(FOUNDATIONS)


def test_the_packaged_vignettes() -> None:
    counts = Counter(vignette.foundation for vignette in read_vignettes())
    assert set(counts) == set(NAMES)
    assert counts.pop("social") >= 15
    assert min(counts.values()) >= 10
    assert len(read_vignettes(2)) == 14


def test_every_option_stands_on_every_digit_once() -> None:
    places = {name: set() for name in NAMES}
    for rotation in range(7):
        for line in question("x", rotation).splitlines():
            for name, text in FOUNDATIONS.items():
                if line.endswith(f"# {text}"):
                    places[name].add(line.strip()[1])
    assert all(found == set("0123456") for found in places.values())


def scripted(policy: Policy, monkeypatch: pytest.MonkeyPatch, choose: Callable[[str], int]) -> None:
    """Let ``choose`` say, from the user's text, which digit gets most of the probability."""
    ids = digit_ids(policy)

    def predicting(_policy: Policy, talks: list[Any]) -> list[Tensor]:
        rows = []
        for talk in talks:
            row = torch.full((2, policy.hidden_size), -30.0)
            row[-1, choose(talk.turns[-2].text)] = 5.0
            rows.append(row)
        return rows

    def unembed(hidden: Tensor) -> Tensor:
        logits = torch.full((*hidden.shape[:-1], 300), -30.0)
        for digit, token in enumerate(ids):
            logits[..., token] = hidden[..., digit]
        return logits

    monkeypatch.setattr(foundations, "predicting", predicting)
    monkeypatch.setattr(policy, "unembed", unembed)


def digit_of(text: str, name: str) -> int:
    line = next(x for x in text.splitlines() if x.endswith(f"# {FOUNDATIONS[name]}"))
    return int(line.strip()[1])


def test_a_model_that_knows_is_right_everywhere(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, vignettes = make_policy(), read_vignettes(2)
    right = {vignette.text: vignette.foundation for vignette in vignettes}
    scripted(policy, monkeypatch, lambda t: digit_of(t, right[t.split("\n\n")[0]]))
    rows = measure_foundations(policy, vignettes)
    assert all(row["chosen"] == row["foundation"] for row in rows)
    assert informedness(rows) == 1
    assert all(row["pmass"] == pytest.approx(1) for row in rows)
    assert all(sum(row["clr"].values()) == pytest.approx(0, abs=1e-4) for row in rows)


def test_a_model_that_likes_one_digit_likes_no_option(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    scripted(policy, monkeypatch, lambda _: 3)
    for row in measure_foundations(policy, read_vignettes(1)):
        assert list(row["p"].values()) == pytest.approx([1 / 7] * 7)


def test_the_real_reading_path_equals_one_pass_per_rotation(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    vignette = Vignette("care-x", "care", "You see a man kick a dog.")
    row = measure_foundations(policy, [vignette])[0]
    digits, lp = digit_ids(policy), np.zeros((7, 7))
    for rotation in range(7):
        messages = [{"role": "user", "content": question(vignette.text, rotation)}]
        text = policy.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = policy.tokenizer(text + foundations.OPENING, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            last = policy.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        for option in range(7):
            lp[rotation, option] = last[digits[(option + rotation) % 7]]
    score = lp.mean(axis=0)
    share = np.exp(score) / np.exp(score).sum()
    assert list(row["p"].values()) == pytest.approx(share.tolist(), abs=1e-5)
    assert row["pmass"] == pytest.approx(np.exp(lp).sum(axis=1).mean(), rel=1e-4)


def test_informedness_of_a_constant_answer_is_chance() -> None:
    rows = [{"foundation": name, "chosen": "care"} for name in NAMES]
    assert informedness(rows) == pytest.approx(0)
    assert informedness([]) is None
