"""A policy as a subject against a slow loop over single passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from homeostat.evals.branches import shared_stems
from homeostat.evals.subject import PolicySubject
from homeostat.models.adapters import Policy
from homeostat.rollout.generate import Sampler
from homeostat.rollout.replies import Sampling, base_nll, sampled
from homeostat.steering.vectors import as_message
from homeostat.types import Conversation, Turn

TALKS = [
    as_message("What is the capital of France?"),
    Conversation((Turn("user", "Two?"), Turn("assistant", "Yes."), Turn("user", "Sure?"))),
    as_message("Hm."),
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


def test_what_some_prompts_share_is_read_once(
    make_policy: Callable[..., Policy],
    stir: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy()
    stir(policy)
    texts = ("Was it mended by the smith?", "Were the boats late?", "Hm.")
    talks = [
        as_message(f"{text * 3} {way}") for text in texts for way in ("Say so.", "Or not", "Why?")
    ]
    talks = [talks[i] for i in np.random.default_rng(0).permutation(len(talks))]
    read = []
    forward = Sampler._forward

    def counting(self: Sampler, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(tokens.numel())
        return forward(self, tokens, *rest)

    monkeypatch.setattr(Sampler, "_forward", counting)
    found = PolicySubject(policy).score(talks, [["A", "B"]] * len(talks), "I say (")
    shared = sum(read)
    monkeypatch.setattr("homeostat.evals.branches.can_share", lambda _: False)
    monkeypatch.setattr("homeostat.rollout.generate.can_share", lambda _: False)
    read.clear()
    again = PolicySubject(policy).score(talks, [["A", "B"]] * len(talks), "I say (")
    assert shared < sum(read) / 2
    for own, other in zip(found, again, strict=True):
        assert [s.total for s in own] == pytest.approx([s.total for s in other], abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "stems", "of"),
    [
        pytest.param(
            [[0, 1, 1, 1, 1, 5], [0, 1, 1, 1, 1, 6], [0, 2, 2, 2, 2, 5], [0, 2, 2, 2, 2, 6, 7]],
            [[0, 1, 1, 1, 1], [0, 2, 2, 2, 2]],
            [0, 0, 1, 1],
            id="two groups",
        ),
        pytest.param([[0, 1, 2], [0, 3, 4]], [], [], id="nothing but what all share"),
        pytest.param(
            [[0, 1, 1, 1], [0, 1, 1, 1], [0, 2, 2, 2]],
            [[0, 1, 1], [0, 2, 2]],
            [0, 0, 1],
            id="equal prompts keep their last id",
        ),
        pytest.param([[0, 1]], [], [], id="one prompt"),
    ],
)
def test_stems(prompts: list[list[int]], stems: list[list[int]], of: list[int]) -> None:
    assert shared_stems(prompts) == (stems, of)


def test_split_dialogues_go_on_as_the_whole_would(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    dialogues = PolicySubject(policy).open(2)
    first = dialogues.say(["Who are you?", "Hm."], 4)
    parted = dialogues.split([1, 0, 1])
    replies = parted.say(["Really?", "I doubt it.", "Go on, please."], 4)
    for row, second in ((0, "I doubt it."), (1, "Really?"), (1, "Go on, please.")):
        alone = PolicySubject(policy).open(1)
        assert alone.say([["Who are you?", "Hm."][row]], 4) == [first[row]]
        place = ["Really?", "I doubt it.", "Go on, please."].index(second)
        assert alone.say([second], 4) == [replies[place]]
    assert len(dialogues.say(["Yes?", "No?"], 4)) == 2, "the whole can go on, too"


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


def test_a_subject_that_is_told_something_reads_it_in_front(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    turn = Turn("system", "Be calm.")
    told = [Conversation((turn, *talk.turns)) for talk in TALKS]
    subject, plain = PolicySubject(policy, system="Be calm."), PolicySubject(policy)
    scores = subject.score(TALKS, ANSWERS)
    for talk, answers, own in zip(told, ANSWERS, scores, strict=True):
        for answer, score in zip(answers, own, strict=True):
            assert score.total == pytest.approx(slow_score(policy, talk, answer, "")[0], abs=1e-3)
    assert abs(scores[0][0].total - plain.score(TALKS, ANSWERS)[0][0].total) > 1e-3
    sampling = Sampling(5, 0.7, (1,))
    said, by_hand = subject.sample(TALKS, sampling), sampled(policy, told, sampling)
    assert [reply.text for reply in said] == [talk.turns[-1].text for talk, _ in by_hand]
    alone = [
        Conversation((*t.turns, h.turns[-1])) for t, (h, _) in zip(TALKS, by_hand, strict=True)
    ]
    for reply, nats in zip(said, base_nll(policy, alone), strict=True):
        np.testing.assert_allclose(reply.base_nll_R, nats, atol=1e-4)
    dialogues = subject.open(1)
    dialogues.say(["Hm."], 3)
    assert dialogues.talks[0].turns[:2] == (turn, Turn("user", "Hm."))
    greedy = sampled(policy, [Conversation((turn, Turn("user", "Hm.")))], Sampling(3, 1e-4, (0,)))
    assert dialogues.talks[0].turns[2] == greedy[0][0].turns[-1]


def test_the_base_of_a_subject_that_is_told_something_is_not_told(
    make_policy: Callable[..., Policy],
) -> None:
    policy, kept = make_policy(), []
    subject = PolicySubject(
        policy, kept=lambda recipe, compute: (kept.append(recipe), compute())[1], system="Be calm."
    )
    with subject.reference():
        within = subject.score(TALKS, ANSWERS)
    with policy.reference():
        assert within == PolicySubject(policy).score(TALKS, ANSWERS)
    outside = subject.score(TALKS, ANSWERS)
    assert outside != within
    assert [recipe[:2] for recipe in kept] == [[False, None], [True, "Be calm."]]


@pytest.mark.parametrize("at_once", [3, 32])
def test_dialogues_are_those_of_single_passes(
    make_policy: Callable[..., Policy],
    stir: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
) -> None:
    monkeypatch.setattr("homeostat.evals.subject.ROWS", at_once)
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
