"""Advantages against slow loops and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from homeostat.trainers.advantages import gae, whiten


def slow_advantages(
    rewards: list[float], values: list[float], gamma: float, gae_lambda: float
) -> list[float]:
    """Equation 16 as it is written: a discounted sum of all later temporal differences."""
    count = len(rewards)
    found = []
    for t in range(count):
        total = 0.0
        for later in range(t, count):
            next_value = values[later + 1] if later + 1 < count else 0.0
            delta = rewards[later] + gamma * next_value - values[later]
            total += (gamma * gae_lambda) ** (later - t) * delta
        found.append(total)
    return found


@pytest.mark.parametrize("gamma", [1.0, 0.97, 0.5, 0.0])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.95, 0.3, 0.0])
def test_gae_equals_the_slow_double_loop(gamma: float, gae_lambda: float) -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 23))
    advantages, returns = gae(rewards, values, gamma, gae_lambda)
    expected = slow_advantages(rewards.tolist(), values.tolist(), gamma, gae_lambda)
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_allclose(returns, [a + v for a, v in zip(expected, values, strict=True)])


def test_gae_by_hand() -> None:
    advantages, returns = gae(np.array([1.0, 2.0]), np.array([0.5, 4.0]), 0.5, 0.5)
    # A_1 = 2 - 4 = -2;  A_0 = 1 + 0.5 * 4 - 0.5 + 0.25 * (-2) = 2
    assert advantages.tolist() == [2.0, -2.0]
    assert returns.tolist() == [2.5, 2.0]


def test_without_discount_the_advantage_is_the_return_minus_the_value() -> None:
    rewards, values = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.3, 0.1, -0.7, 2.0])
    advantages, returns = gae(rewards, values, 1.0, 1.0)
    np.testing.assert_allclose(returns, [2.5, 1.5, 3.5, 3.0])
    np.testing.assert_allclose(advantages, [2.2, 1.4, 4.2, 1.0])


@pytest.mark.parametrize("reward", [2.0, -2.0])
def test_a_reward_of_the_second_turn_reaches_the_tokens_of_the_first(reward: float) -> None:
    """Six tokens, two turns of three; only the last token is rewarded."""
    rewards = np.array([0.0, 0.0, 0.0, 0.0, 0.0, reward])
    advantages, _ = gae(rewards, np.zeros(6), 1.0, 0.9)
    np.testing.assert_allclose(advantages, [reward * 0.9**k for k in (5, 4, 3, 2, 1, 0)])


def test_a_reward_does_not_reach_later_tokens() -> None:
    advantages, _ = gae(np.array([0.0, 5.0, 0.0, 0.0]), np.zeros(4), 1.0, 1.0)
    assert advantages.tolist() == [5.0, 5.0, 0.0, 0.0]


def test_a_perfect_critic_leaves_no_advantage() -> None:
    rewards = np.array([1.0, 2.0, 3.0])
    advantages, returns = gae(rewards, np.array([6.0, 5.0, 3.0]), 1.0, 0.7)
    assert advantages.tolist() == [0.0, 0.0, 0.0]
    assert returns.tolist() == [6.0, 5.0, 3.0]


def test_gae_leaves_its_arguments_alone() -> None:
    rewards, values = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    gae(rewards, values, 0.9, 0.9)
    assert rewards.tolist() == [1.0, 2.0]
    assert values.tolist() == [3.0, 4.0]


def test_whiten_by_hand() -> None:
    # Mean 4, standard deviation sqrt((9 + 0 + 9) / 3) = sqrt(6)
    np.testing.assert_allclose(whiten(np.array([1.0, 4.0, 7.0])), np.array([-3, 0, 3]) / 6**0.5)


def test_whitened_values_have_mean_zero_deviation_one_and_the_same_order() -> None:
    values = np.random.default_rng(0).normal(7, 3, size=50)
    found = whiten(values)
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert (found**2).mean() == pytest.approx(1, rel=1e-6)
    assert np.argsort(found).tolist() == np.argsort(values).tolist()


def test_whiten_of_equal_values_is_zero() -> None:
    assert whiten(np.array([3.0, 3.0, 3.0])).tolist() == [0.0, 0.0, 0.0]
