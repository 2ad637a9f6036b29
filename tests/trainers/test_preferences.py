"""Pairs and their metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from homeostat.trainers.preferences import Candidate, Pair, make_pairs, preference_metrics


def reply(reward: float, length: int = 4, logprob: float = 0.0, ref: float = 0.0) -> Candidate:
    return Candidate((1, 2), tuple(range(length)), reward, logprob, ref)


def rewards(pairs: list[Pair]) -> list[tuple[float, float]]:
    return [(pair.chosen.reward, pair.rejected.reward) for pair in pairs]


def test_the_widest_margins_are_paired_first_and_every_reply_is_used_once() -> None:
    pairs = make_pairs([reply(r) for r in (-2.0, 1.0, -5.0, 0.0)], 0.5, None)
    assert rewards(pairs) == [(1.0, -5.0), (0.0, -2.0)]


def test_a_pair_below_the_margin_is_dropped() -> None:
    four = [reply(r) for r in (-2.0, 1.0, -5.0, -1.6)]
    assert rewards(make_pairs(four, 0.5, None)) == [(1.0, -5.0)]
    assert rewards(make_pairs(four, 0.39, None)) == [(1.0, -5.0), (-1.6, -2.0)]
    assert make_pairs([reply(0.0), reply(0.0)], 1e-9, None) == []


def test_replies_of_unlike_length_are_not_paired() -> None:
    candidates = [reply(3.0, 9), reply(2.0, 4), reply(1.0, 6), reply(0.0, 4)]
    assert rewards(make_pairs(candidates, 0.5, None)) == [(3.0, 0.0), (2.0, 1.0)]
    assert rewards(make_pairs(candidates, 0.5, 1.5)) == [(3.0, 1.0), (2.0, 0.0)]
    assert rewards(make_pairs(candidates, 0.5, 1.0)) == [(2.0, 0.0)]


def test_metrics_by_hand() -> None:
    pairs = [
        Pair(reply(1.0, 4, logprob=-8.0, ref=-9.0), reply(0.0, 2, logprob=-4.0, ref=-4.0)),
        Pair(reply(1.0, 2, logprob=-3.0, ref=-3.0), reply(0.0, 4, logprob=-6.0, ref=-7.0)),
    ]
    found = preference_metrics(pairs, [-6.0, -5.0, -4.0, -6.0], beta=0.5)
    # Implicit rewards: 0.5 (3, -1) and 0.5 (-1, 1); shifts per token: 2/4, -1/2 and -1/2, 0.
    assert found == {
        "accuracy": 0.5,
        "margin": pytest.approx((2.0 - 1.0) / 2),
        "chosen_shift": pytest.approx(0.0),
        "rejected_shift": pytest.approx(-0.25),
        "displaced": 0.5,
    }


def test_an_untrained_policy_ranks_nothing() -> None:
    pair = Pair(reply(1.0, logprob=-2.0, ref=-2.0), reply(0.0, logprob=-3.0, ref=-3.0))
    found = preference_metrics([pair], [-2.0, -3.0], beta=0.1)
    assert found["accuracy"] == found["margin"] == found["displaced"] == 0.0


def test_without_pairs_everything_is_missing() -> None:
    assert all(math.isnan(value) for value in preference_metrics([], [], 0.1).values())
