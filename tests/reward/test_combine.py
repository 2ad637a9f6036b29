"""Terms of a reward, added up or brought to the same spread: by hand, and each trap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from homeostat.reward.combine import added_up, decoupled, turn_terms, variance_shares
from homeostat.reward.compose import Rewards
from homeostat.types import Valence


def of(*episodes: Sequence[float]) -> list[np.ndarray]:
    return [np.array(turns, dtype=float) for turns in episodes]


def rewards(terms: Sequence[Sequence[float]], own: Sequence[float]) -> Rewards:
    terms_NS = np.array(terms, dtype=float)
    level = Valence(("a", "b"), terms_NS.sum(axis=1), terms_NS)
    return Rewards(level.total_N + np.array(own), level, {"c": np.array(own, dtype=float)})


def test_terms_of_a_level_and_of_its_gain() -> None:
    one = rewards([[-1, -2], [-4, -1]], own=[0.5, 0.0])
    level, gain = (turn_terms([one], mode) for mode in ("level", "reduction"))
    assert {name: values[0].tolist() for name, values in level.items()} == {
        "a": [-1, -4],
        "b": [-2, -1],
        "c": [0.5, 0.0],
    }
    assert gain["a"][0].tolist() == [-1, -3]
    assert gain["b"][0].tolist() == [-2, 1]
    assert gain["c"][0].tolist() == [0.5, 0.0], "a term of the user's own is no level"


def test_a_term_is_centred_and_divided_by_the_deviation_of_its_sums() -> None:
    """Two groups of two episodes, two turns each; sums 4 and 8, deviation 2; then 1 and 1."""
    terms = {"a": of([1, 3], [5, 3], [0, 1], [0, 1])}
    found = decoupled(terms, {"a": 0.5}, 2)["a"]
    assert [turns.tolist() for turns in found] == [
        [0.5 * (1 - 3) / 2, 0.0],
        [0.5 * (5 - 3) / 2, 0.0],
        [0.0, 0.0],  # no variance: left out rather than blown up
        [0.0, 0.0],
    ]


def test_a_large_term_does_not_drown_a_small_one() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=8), rng.normal(scale=100, size=8)
    terms = {"small": of(*small[:, None]), "large": of(*large[:, None])}
    shares = [
        variance_shares(combined, None)
        for combined in (terms, decoupled(terms, {"small": 1.0, "large": 1.0}, None))
    ]
    assert shares[0]["small"] < 0.05
    assert shares[1]["small"] == pytest.approx(0.5, abs=1e-9)
    assert sum(shares[0].values()) == pytest.approx(1)


def test_a_saturated_term_lets_no_noise_through() -> None:
    """Rounding in a term that is where it should be is not made a reward of."""
    terms = {"a": of([1e-9], [0.0], [0.0], [-1e-9]), "b": of([1], [2], [3], [4])}
    found = decoupled(terms, {"a": 1.0, "b": 1.0}, None)
    assert all(turns.tolist() == [0.0] for turns in found["a"])
    assert variance_shares(found, None) == {"a": 0.0, "b": pytest.approx(1.0)}


def test_a_negative_weight_keeps_the_direction_of_its_term() -> None:
    """Terms are weighted already; the weight only says how much they count."""
    found = decoupled({"a": of([-2.0], [-6.0])}, {"a": -2.0}, None)["a"]
    assert [turns.tolist() for turns in found] == [[2.0], [-2.0]]


def test_episodes_of_different_lengths_are_compared_turn_by_turn() -> None:
    found = decoupled({"a": of([1.0, 4.0], [3.0])}, {"a": 1.0}, None)["a"]
    deviation = np.std([5.0, 3.0])
    assert found[0] == pytest.approx([(1 - 2) / deviation, 0.0])
    assert found[1] == pytest.approx([(3 - 2) / deviation])


def test_what_is_added_up_is_every_turn_of_every_episode() -> None:
    found = added_up({"a": of([1, 2], [3]), "b": of([10, 20], [30])})
    assert [turns.tolist() for turns in found] == [[11, 22], [33]]


def test_shares_are_those_within_groups() -> None:
    """Between groups term b varies a lot; within them only a does."""
    terms = {"a": of([0], [1], [0], [1]), "b": of([0], [0], [99], [99])}
    assert variance_shares(terms, 2) == {"a": pytest.approx(1.0), "b": pytest.approx(0.0)}
    assert np.isnan(list(variance_shares({"a": of([1], [1])}, None).values())).all()
