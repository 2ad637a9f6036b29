"""Advantages against slow loops and by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from math import prod

import numpy as np
import pytest

from homeostat.trainers.advantages import (
    explained_variance,
    gae,
    group_relative,
    leave_one_out,
    turn_advantages,
    whiten,
)


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


# --- groups -------------------------------------------------------------------------------------


def test_leave_one_out_by_hand() -> None:
    # The others' means are 4, 3, 2 in the first group and 0, 0, 6 in the second.
    found = leave_one_out(np.array([1.0, 3.0, 5.0, 6.0, 6.0, -6.0]), 3)
    np.testing.assert_allclose(found, [-3, 0, 3, 6, 6, -12])


def test_group_relative_by_hand() -> None:
    # Mean 3 and deviation sqrt(8 / 3); then a group of equals, which says nothing.
    found = group_relative(np.array([1.0, 3.0, 5.0, 7.0, 7.0, 7.0]), 3)
    np.testing.assert_allclose(found, [-2 / (8 / 3) ** 0.5, 0, 2 / (8 / 3) ** 0.5, 0, 0, 0])


@pytest.mark.parametrize("compare", [group_relative, leave_one_out])
def test_what_a_whole_group_shares_gives_no_advantage(
    compare: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    returns = np.random.default_rng(0).normal(size=12)
    shifted = returns + np.repeat([5.0, -3.0, 100.0], 4)
    np.testing.assert_allclose(compare(shifted, 4), compare(returns, 4), atol=1e-6)
    assert (compare(returns, 4)[returns == returns.max()] > 0).all()


# A toy: before each turn the policy goes on with probability p or stops for good. The exact
# expected gradient of an estimator comes from listing every group that can happen.


def outcomes(p: list[float]) -> list[tuple[float, list[float]]]:
    """Probability of each number of turns played, and the gradient of its log-prob by decision.

    In log-odds: going on gives 1 - p, stopping gives -p, a decision never reached gives 0.
    """
    found = []
    for played in range(len(p) + 1):
        stopped = played < len(p)
        probability = prod(p[:played]) * (1 - p[played] if stopped else 1)
        slope = [1 - x for x in p[:played]] + ([-p[played]] if stopped else [])
        found.append((probability, slope + [0.0] * (len(p) - len(slope))))
    return found


def true_gradient(p: list[float], paid: list[float]) -> np.ndarray:
    """Of the expected return, decision by decision."""
    return np.sum(
        [
            chance * sum(paid[:played]) * np.array(slope)
            for played, (chance, slope) in enumerate(outcomes(p))
        ],
        axis=0,
    )


def whole_episode(
    compare: Callable[[np.ndarray, int], np.ndarray],
) -> Callable[[list[int], list[float]], np.ndarray]:
    """Advantage [episode, decision] as the trainers give it: one number for all decisions."""

    def advantages(lengths: list[int], paid: list[float]) -> np.ndarray:
        found = compare(np.array([sum(paid[:n], 0.0) for n in lengths]), len(lengths))
        return np.repeat(found[:, None], len(paid), axis=1)

    return advantages


def baseline_per_turn(lengths: list[int], paid: list[float]) -> np.ndarray:
    """The naive way: each turn's reward minus its mean over the episodes that played that turn."""
    rewards = np.array([[r if k < n else np.nan for k, r in enumerate(paid)] for n in lengths])
    played = ~np.isnan(rewards)
    mean = np.where(played, rewards, 0).sum(axis=0) / np.maximum(played.sum(axis=0), 1)
    centred = np.where(played, rewards - mean, 0.0)
    return np.cumsum(centred[:, ::-1], axis=1)[:, ::-1]


def expected_gradient(
    p: list[float],
    paid: list[float],
    advantages: Callable[[list[int], list[float]], np.ndarray],
    group_size: int = 3,
) -> np.ndarray:
    """Mean over all groups of the estimate that the group gives."""
    known = outcomes(p)
    total = np.zeros(len(p))
    for lengths in product(range(len(known)), repeat=group_size):
        chance = prod(known[n][0] for n in lengths)
        slopes = np.array([known[n][1] for n in lengths])
        total += chance * (advantages(list(lengths), paid) * slopes).mean(axis=0)
    return total


# What each further turn pays: worth it, not worth it, and worth it only in the end.
STOP_OR_GO = [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [-0.5, -0.5, 3.0]]


@pytest.mark.parametrize("paid", STOP_OR_GO)
def test_leave_one_out_is_unbiased_where_the_policy_decides_when_to_stop(paid: list[float]) -> None:
    p = [0.5, 0.7, 0.4]
    found = expected_gradient(p, paid, whole_episode(leave_one_out))
    np.testing.assert_allclose(found, true_gradient(p, paid), atol=1e-12)


@pytest.mark.parametrize("paid", STOP_OR_GO)
def test_group_relative_points_where_the_gradient_points(paid: list[float]) -> None:
    """Its unit varies from group to group, so that only the direction can be compared.

    A group with one rare large return is divided by a large deviation. So the last reward is
    pursued less than it is worth (cosine 0.83), though no decision is pushed the wrong way.
    """
    p = [0.5, 0.7, 0.4]
    found = expected_gradient(p, paid, whole_episode(group_relative))
    expected = true_gradient(p, paid)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > (0.9 if len(set(paid)) == 1 else 0.8)
    assert (found * expected > 0).all()


@pytest.mark.parametrize("paid", STOP_OR_GO)
def test_a_baseline_per_turn_hides_what_going_on_is_worth(paid: list[float]) -> None:
    """It charges each further turn what such a turn pays, so that going on is worth nothing."""
    p = [0.5, 0.7, 0.4]
    np.testing.assert_allclose(expected_gradient(p, paid, baseline_per_turn), 0, atol=1e-12)
    assert np.abs(true_gradient(p, paid)).max() > 0.1


@pytest.mark.parametrize(("paid", "best"), [(1.0, 1.0), (-1.0, 0.0)])
def test_only_whole_episodes_learn_when_to_stop(paid: float, best: float) -> None:
    ways = {
        "leave one out": whole_episode(leave_one_out),
        "group": whole_episode(group_relative),
        "per turn": baseline_per_turn,
    }
    goes_on = {}
    for name, advantages in ways.items():
        log_odds = np.zeros(2)
        for _ in range(60):
            p = 1 / (1 + np.exp(-log_odds))
            log_odds += expected_gradient(p.tolist(), [paid, paid], advantages)
        goes_on[name] = 1 / (1 + np.exp(-log_odds[0]))
    assert goes_on["leave one out"] == pytest.approx(best, abs=0.1)
    assert goes_on["group"] == pytest.approx(best, abs=0.1)
    assert goes_on["per turn"] == pytest.approx(0.5)


# --- credit by turns ----------------------------------------------------------------------------


def test_within_a_turn_credit_is_not_discounted() -> None:
    """Two turns of two and three tokens, by hand: gamma and lambda count once, between them."""
    rewards, values = np.array([0.0, 1.0, 0.0, 0.0, 2.0]), np.array([0.5, 0.4, 0.3, 0.2, 0.1])
    advantages, returns = gae(rewards, values, 0.9, 0.5, np.array([1, 1, 3, 3, 3]))
    last = [2.0 - 0.3, 2.0 - 0.2, 2.0 - 0.1]
    crossing = 1.0 + 0.9 * 0.3 - 0.4 + 0.9 * 0.5 * last[0]
    first = 0.0 + 0.4 - 0.5 + crossing
    assert advantages == pytest.approx([first, crossing, *last])
    assert returns == pytest.approx(advantages + values)


def end_gradient(turns: bool, episodes: int = 4000) -> tuple[float, float]:
    """Gradient of the logit of ending where every reply is worth -1, and its standard error.

    Two replies that end after each token with probability 0.3, at most eight tokens; V is 0.
    """
    rng, chance, samples = np.random.default_rng(0), 0.3, []
    for _ in range(episodes):
        scores, rewards, turn = [], [], []
        for number in (1, 3):
            for token in range(8):
                ends = token < 7 and rng.random() < chance
                if token < 7:  # at the last one there is no choice
                    scores.append(1 - chance if ends else -chance)
                else:
                    scores.append(0.0)
                rewards.append(0.0)
                turn.append(number)
                if ends:
                    break
            rewards[-1] = -1.0
        own = np.array(rewards)
        advantages, _ = gae(own, np.zeros_like(own), 1.0, 0.95, np.array(turn) if turns else None)
        samples.append(float(np.dot(advantages, scores)))
    return float(np.mean(samples)), float(np.std(samples) / len(samples) ** 0.5)


def test_where_every_reply_is_worth_the_same_nothing_is_learned_about_ending_it() -> None:
    """Per token it is: an early end lies nearer to its own reward. Per turn it is not."""
    by_turn, error = end_gradient(turns=True)
    assert abs(by_turn) < 2 * error
    by_token, error = end_gradient(turns=False)
    assert by_token < -4 * error


def test_explained_variance_by_hand() -> None:
    returns = np.array([1.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.array([2.0, 2.0]), returns) == 0.0
    assert explained_variance(np.array([3.0, 1.0]), returns) == -3.0
    assert np.isnan(explained_variance(returns, np.array([1.0, 1.0])))


# --- turns of a group ---------------------------------------------------------------------------


def slow_turn_advantages(
    rewards: list[list[float]], turns: list[list[int]], gamma: float, group_size: int
) -> list[list[float]]:
    """Token by token, straight from the words: what is to come, less what is to come for others."""

    def to_come(episode: int, number: int) -> float:
        order = sorted(set(turns[episode]))
        return sum(
            gamma ** (order.index(t) - number) * r
            for t, r in zip(turns[episode], rewards[episode], strict=True)
            if order.index(t) >= number
        )

    found = []
    for i, own in enumerate(turns):
        first = i - i % group_size
        others = [j for j in range(first, first + group_size) if j != i]
        numbers = [sorted(set(own)).index(t) for t in own]
        found.append(
            [to_come(i, n) - sum(to_come(j, n) for j in others) / len(others) for n in numbers]
        )
    return found


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_turn_advantages_equal_the_slow_loop(gamma: float) -> None:
    """Groups of three whose episodes have one to four turns of one to five tokens."""
    rng = np.random.default_rng(0)
    turns = [np.repeat([1, 3, 5, 7][:n], rng.integers(1, 6, n)) for n in (4, 1, 3, 2, 2, 4)]
    rewards = [rng.normal(size=len(own)) for own in turns]
    found = turn_advantages(rewards, turns, gamma, partial(leave_one_out, group_size=3))
    expected = slow_turn_advantages(
        [own.tolist() for own in rewards], [own.tolist() for own in turns], gamma, 3
    )
    for own, slow in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, slow, atol=1e-12)


def test_turn_advantages_by_hand() -> None:
    """Two episodes of two turns; gamma is one half. Their first tokens cost 0.5 and nothing."""
    rewards = [np.array([-0.5, 1.5, 4.0]), np.array([0.0, 0.0, 2.0])]
    turns = [np.array([1, 1, 3]), np.array([1, 3, 3])]
    # To come: 1 + 0.5 * 4 = 3, then 4; beside 0 + 0.5 * 2 = 1, then 2.
    left_out = turn_advantages(rewards, turns, 0.5, partial(leave_one_out, group_size=2))
    assert [own.tolist() for own in left_out] == [[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]]
    scaled = turn_advantages(rewards, turns, 0.5, partial(group_relative, group_size=2))
    np.testing.assert_allclose(scaled, [[1, 1, 1], [-1, -1, -1]], atol=1e-6)


def test_what_came_before_a_turn_is_no_credit_of_it() -> None:
    """The first episode began better and ended worse than the other."""
    rewards, turns = [np.array([5.0, -1.0]), np.array([0.0, 1.0])], [np.array([1, 3])] * 2
    found = turn_advantages(rewards, turns, 1.0, partial(leave_one_out, group_size=2))
    assert [own.tolist() for own in found] == [[3.0, -2.0], [-3.0, 2.0]]


@pytest.mark.parametrize("compare", [group_relative, leave_one_out])
def test_one_turn_is_credited_as_the_whole_episode_is(
    compare: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    returns = np.random.default_rng(0).normal(size=8)
    rewards, turns = [np.array([0.0, r]) for r in returns], [np.array([1, 1])] * 8
    found = turn_advantages(rewards, turns, 1.0, partial(compare, group_size=4))
    np.testing.assert_allclose(found, np.repeat(compare(returns, 4)[:, None], 2, axis=1))


def by_turns(lengths: list[int], paid: list[float]) -> np.ndarray:
    """Advantage [episode, decision] as credit=turn gives it: one who has stopped has 0 to come."""
    reached = [range(min(n + 1, len(paid))) for n in lengths]
    found = turn_advantages(
        [
            np.array([paid[k] if k < n else 0.0 for k in r])
            for n, r in zip(lengths, reached, strict=True)
        ],
        [np.array(r) for r in reached],
        1.0,
        partial(leave_one_out, group_size=len(lengths)),
    )
    return np.array([np.pad(own, (0, len(paid) - len(own))) for own in found])


def without_the_stopped(lengths: list[int], paid: list[float]) -> np.ndarray:
    """The same, but who never came to a decision is left out of its baseline; alone it is 0."""
    found = np.zeros((len(lengths), len(paid)))
    for i, own in enumerate(lengths):
        for k in range(min(own + 1, len(paid))):
            others = [sum(paid[k:n]) for j, n in enumerate(lengths) if j != i and n >= k]
            found[i, k] = sum(paid[k:own]) - (sum(others) / len(others) if others else 0.0)
    return found


@pytest.mark.parametrize("advantages", [by_turns, without_the_stopped])
@pytest.mark.parametrize("paid", STOP_OR_GO)
def test_rewards_to_go_are_unbiased_where_the_policy_decides_when_to_stop(
    paid: list[float], advantages: Callable[[list[int], list[float]], np.ndarray]
) -> None:
    """Whether those that have stopped count as 0 or not at all; unlike the mean of each turn."""
    p = [0.5, 0.7, 0.4]
    found = expected_gradient(p, paid, advantages)
    np.testing.assert_allclose(found, true_gradient(p, paid), atol=1e-12)


GROUP, GROUPS = 4, 4000
CHANCES = np.array([0.3, 0.6])  # of the better word, in each of two turns


def two_turns(gains: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Score of each turn's word and reward of each turn, ``[episode, turn]``.

    Each turn is a choice between two words and pays -1 on average. ``gains[i, j]`` is what the
    better word in turn i adds to the reward of turn j; all else in the rewards is noise.
    """
    rng = np.random.default_rng(seed)
    better = rng.random((GROUP * GROUPS, 2)) < CHANCES
    return better - CHANCES, -1 + better @ gains + rng.normal(size=better.shape)


def estimates(scores: np.ndarray, rewards: np.ndarray, credit: str) -> np.ndarray:
    """Each group's estimate of the gradient, ``[group, turn]``; a turn is a single token."""
    compare = partial(leave_one_out, group_size=GROUP)
    if credit == "turn":
        turns = [np.array([1, 3])] * len(rewards)
        advantages = np.array(turn_advantages(list(rewards), turns, 1.0, compare))
    else:
        advantages = compare(rewards.sum(axis=1))[:, None]
    return (advantages * scores).reshape(GROUPS, GROUP, 2).mean(axis=1)


def mean_and_error(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return samples.mean(axis=0), samples.std(axis=0) / len(samples) ** 0.5


@pytest.mark.parametrize(
    "gains", [[[1.0, 0.5], [0.0, 2.0]], [[0.0, 3.0], [0.0, -1.0]]], ids=["own", "delayed"]
)
def test_credit_by_turns_estimates_the_gradient_with_less_noise(gains: list[list[float]]) -> None:
    """d E[reward] / d log-odds = p (1 - p) times all that the word adds, now and later."""
    scores, rewards = two_turns(np.array(gains), seed=0)
    expected = CHANCES * (1 - CHANCES) * np.sum(gains, axis=1)
    spread = {}
    for credit in ("turn", "episode"):
        samples = estimates(scores, rewards, credit)
        mean, error = mean_and_error(samples)
        assert (np.abs(mean - expected) < 2 * error).all()
        spread[credit] = samples.var(axis=0)
    assert spread["turn"][0] == pytest.approx(spread["episode"][0])  # all is still to come
    assert spread["turn"][1] < 0.8 * spread["episode"][1]


def test_where_all_words_are_worth_the_same_no_turn_is_credited() -> None:
    scores, rewards = two_turns(np.zeros((2, 2)), seed=0)
    mean, error = mean_and_error(estimates(scores, rewards, "turn"))
    assert (np.abs(mean) < 2 * error).all()
    assert (estimates(scores, np.full_like(rewards, -1.0), "turn") == 0).all()
