"""Replies to single messages, and what base and policy say about them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from configs import dose_config

from homeostat.models.adapters import Policy
from homeostat.rollout.replies import (
    Sampling,
    base_nll,
    predicting,
    read_replies,
    reply_ids,
    sampled,
    with_given_reply,
    with_sampled_replies,
)
from homeostat.steering.vectors import PersonaVector, as_message
from homeostat.types import Conversation, Turn

SAMPLING = Sampling(5, 1.0, (1, 2))
TEXTS = ["Hello there, how are you?", "Tea?", "Name a river."]


def slow_nll(policy: Policy, talk: Conversation) -> list[float]:
    """-log p of the reply's tokens from one plain pass over the whole conversation."""
    stream = policy.encode(talk)
    with torch.no_grad():
        logits = policy.model(torch.tensor([stream.ids])).logits[0].log_softmax(-1)
    places = [i for i, own in enumerate(stream.response) if own]
    return [-float(logits[i - 1, stream.ids[i]]) for i in places]


def test_a_reply_depends_on_its_number_and_not_on_its_batch(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    whole = with_sampled_replies(policy, [as_message(text) for text in TEXTS], SAMPLING)
    for number, text in enumerate(TEXTS):
        alone = with_sampled_replies(policy, [as_message(text)], SAMPLING, first=number)
        assert reply_ids(alone[0]) == reply_ids(whole[number])


def test_every_row_has_its_own_dose(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    vector = PersonaVector({1: torch.linspace(-3, 3, policy.hidden_size)}, {1: 1.0}, "mean_diff")
    talks = [as_message(TEXTS[0])] * 2
    doses = [0.0, 4.0]
    both = with_sampled_replies(policy, talks, SAMPLING, vector.steering(doses, dose_config()))
    unsteered = with_sampled_replies(policy, talks, SAMPLING)
    assert reply_ids(both[0]) == reply_ids(unsteered[0])
    alone = with_sampled_replies(
        policy, talks[1:], SAMPLING, vector.steering(4.0, dose_config()), first=1
    )
    assert reply_ids(both[1]) == reply_ids(alone[0])
    assert reply_ids(both[1]) != reply_ids(unsteered[1])


@pytest.mark.parametrize("dose", [None, 4.0])
def test_states_of_a_sampled_reply_are_what_reading_it_gives(
    dose: float | None, make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    vector = PersonaVector({1: torch.linspace(-3, 3, policy.hidden_size)}, {1: 1.0}, "mean_diff")
    talks = [as_message(text) for text in TEXTS]
    steering = None if dose is None else vector.steering(dose, dose_config())
    said = sampled(policy, talks, SAMPLING, steering)
    with nullcontext() if steering is None else policy.steered(steering):
        read = predicting(policy, [talk for talk, _ in said])
    for (talk, states), again in zip(said, read, strict=True):
        assert states.shape == (len(reply_ids(talk)), policy.hidden_size)
        torch.testing.assert_close(states, again, atol=1e-4, rtol=1e-4)


def test_log_probabilities_against_a_plain_pass(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    talks = [
        with_given_reply(policy, as_message(text), answer)
        for text, answer in zip(TEXTS, ["Fine.", "Yes, please!", "The Elbe"], strict=True)
    ]
    found = read_replies(policy, talks, talks)
    for talk, own in zip(talks, found, strict=True):
        expected = slow_nll(policy, talk)
        assert (-own.logprob).tolist() == pytest.approx(expected, abs=1e-4)
        with policy.reference():
            reference = slow_nll(policy, talk)
        assert (-own.ref_logprob).tolist() == pytest.approx(reference, abs=1e-4)
        assert float(own.kl.min()) >= -1e-6


def test_the_base_reads_a_reply_without_the_persona(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    told = Conversation((Turn("system", "You are a pirate."), Turn("user", TEXTS[0])))
    talk = with_given_reply(policy, told, "Ahoy")
    bare = with_given_reply(policy, as_message(TEXTS[0]), "Ahoy")
    assert talk.unprompted.turns == bare.turns
    assert np.allclose(base_nll(policy, [talk])[0], slow_nll(policy, bare), atol=1e-4)
    assert not np.allclose(base_nll(policy, [talk])[0], slow_nll(policy, talk), atol=1e-4)
