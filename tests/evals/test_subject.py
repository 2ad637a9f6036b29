"""A policy as a subject against a slow loop over single passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from homeostat.evals.subject import PolicySubject
from homeostat.models.adapters import Policy
from homeostat.steering.vectors import plain
from homeostat.types import Conversation, Turn

TALKS = [
    plain("What is the capital of France?"),
    Conversation((Turn("user", "Two?"), Turn("assistant", "Yes."), Turn("user", "Sure?"))),
    plain("Hm."),
]
ANSWERS = [["Paris", "Lyon, of course"], ["A", "B", "Neither"], ["x"]]


def slow_score(policy: Policy, talk: Conversation, answer: str, opening: str) -> tuple[float, int]:
    prompt = [
        *policy.encode(talk).ids,
        *policy.tokenizer(opening, add_special_tokens=False).input_ids,
    ]
    own = policy.tokenizer(answer, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *own]])).logits[0].log_softmax(-1)
    places = range(len(prompt), len(prompt) + len(own))
    return sum(float(logits[i - 1, own[i - len(prompt)]]) for i in places), len(own)


@pytest.mark.parametrize("opening", ["", "I believe ("])
def test_scores_are_those_of_single_passes(
    opening: str, make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    found = PolicySubject(policy).score(TALKS, ANSWERS, opening)
    for talk, answers, scores in zip(TALKS, ANSWERS, found, strict=True):
        for answer, score in zip(answers, scores, strict=True):
            total, tokens = slow_score(policy, talk, answer, opening)
            assert score.total == pytest.approx(total, abs=1e-3)
            assert score.tokens == tokens
            assert score.mean == pytest.approx(total / tokens, abs=1e-3)


def test_the_base_is_asked_within_reference(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    before = PolicySubject(policy).score(TALKS, ANSWERS)
    stir(policy)
    changed = PolicySubject(policy).score(TALKS, ANSWERS)
    assert abs(changed[0][0].total - before[0][0].total) > 1e-3
    with policy.reference():
        again = PolicySubject(policy).score(TALKS, ANSWERS)
    assert again[0][0].total == pytest.approx(before[0][0].total, abs=1e-5)


def test_dialogues_are_those_of_single_passes(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    dialogues = PolicySubject(policy).open(2)
    talks = [Conversation(()), Conversation(())]
    for messages in (["Who are you?", "Hm."], ["Really?", "I doubt that very much."]):
        replies = dialogues.say(messages, 5)
        for row, (message, reply) in enumerate(zip(messages, replies, strict=True)):
            talk = Conversation((*talks[row].turns, Turn("user", message)))
            ids = list(policy.encode(talk).ids)
            start = len(ids)
            while len(ids) < start + 5 and ids[-1] not in policy.eos_ids[: len(ids) > start]:
                with torch.no_grad():
                    ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert policy.tokenizer.decode(ids[start:], skip_special_tokens=True).strip() == reply
            turn = Turn("assistant", reply, token_ids=tuple(ids[start:]))
            talks[row] = Conversation((*talk.turns, turn))
        questions = [["A or B?", "B or A, then?"], ["Left?", "Right or left?"]]
        found = dialogues.ask_aside(questions, ("A", "Bee"), "It is (")
        for talk, own, scores in zip(talks, questions, found, strict=True):
            for text, by_answer in zip(own, scores, strict=True):
                asked = Conversation((*talk.turns, Turn("user", text)))
                for answer, score in zip(("A", "Bee"), by_answer, strict=True):
                    total, tokens = slow_score(policy, asked, answer, "It is (")
                    assert score.total == pytest.approx(total, abs=1e-3)
                    assert score.tokens == tokens
