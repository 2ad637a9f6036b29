"""Each trainer learns what it is paid for, where the best policy is known.

What was learned is read from the policy's probabilities, not from another noisy batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worlds import (
    SET_POINT,
    TRAINERS,
    TwoParrots,
    chance_of_low_ids,
    chance_of_what_the_opening_asks_for,
    first_reply_decides,
    held_at,
    make_trainer,
    metric,
    own_reward,
    share_of_few_ids,
    share_of_low_ids,
    share_the_opening_asks_for,
    surprise_at_the_set_point,
)

from homeostat.config.run import RolloutConfig
from homeostat.models.adapters import Policy
from homeostat.reward.valence import SetPoint

pytestmark = pytest.mark.slow  # trainers that learn

ONE_TOKEN = RolloutConfig(turns=1, max_new_tokens=1)
SHORT: dict[str, Any] = {
    "lr": 3e-2,
    "batch_size": 32,
    "minibatches": 2,
    "max_steps": 6,
    "micro_batch_tokens": 10_000,
}


@pytest.fixture
def policy(make_policy: Callable[..., Policy]) -> Policy:
    return make_policy(num_layers=1)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_a_constant_target_becomes_common_or_rare(policy: Policy, kind: str, weight: float) -> None:
    before = chance_of_low_ids(policy)
    reward = own_reward(share_of_low_ids, weight)
    list(make_trainer(policy, reward, kind, rollout=ONE_TOKEN, **SHORT).steps())
    after = chance_of_low_ids(policy)
    assert after > before + 0.06 if weight > 0 else after < 0.7 * before


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_target_that_depends_on_the_context(policy: Policy, kind: str) -> None:
    """Without a look at the opening no policy can earn more than a half."""
    assert chance_of_what_the_opening_asks_for(policy) == pytest.approx(0.5, abs=0.05)
    reward = own_reward(share_the_opening_asks_for)
    list(make_trainer(policy, reward, kind, bots=TwoParrots(), rollout=ONE_TOKEN, **SHORT).steps())
    assert chance_of_what_the_opening_asks_for(policy) > 0.6


CREDIT = [
    ("ppo", {"gae_lambda": 1.0}, True),
    ("ppo", {"gae_lambda": 0.0, "gamma": 0.0}, False),
    ("grpo", {}, True),
    ("rloo", {}, True),
]


@pytest.mark.parametrize(("kind", "options", "learns"), CREDIT)
def test_credit_crosses_turns(
    policy: Policy, kind: str, options: dict[str, Any], learns: bool
) -> None:
    """The reward for the first reply lies on the last turn alone; myopic credit misses it."""
    before = chance_of_low_ids(policy)
    rollout = RolloutConfig(turns=2, max_new_tokens=1)
    reward = own_reward(first_reply_decides)
    list(make_trainer(policy, reward, kind, rollout=rollout, **SHORT, **options).steps())
    gained = chance_of_low_ids(policy) - before
    assert gained > 0.12 if learns else gained < 0.04


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("sharpness", [1.0, 4.0], ids=["from above", "from below"])
def test_an_entropy_set_point_is_approached(policy: Policy, kind: str, sharpness: float) -> None:
    policy.base.model.model.norm.weight.data.mul_(sharpness)
    options = SHORT | {"lr": 0.05, "batch_size": 48, "epochs": 2, "max_steps": 20}
    options |= {"lr_decay": "linear"} | ({} if kind == "ppo" else {"group_size": 8})
    rollout = RolloutConfig(turns=1, max_new_tokens=4)
    reward = own_reward(surprise_at_the_set_point)
    trainer = make_trainer(policy, reward, kind, rollout=rollout, **options)
    entropy = np.array(metric(list(trainer.steps()), "policy/entropy_nats_per_token"))
    assert (entropy[0] > SET_POINT + 1) == (sharpness == 1)
    assert (entropy[0] < SET_POINT - 1) == (sharpness == 4)
    assert np.abs(entropy[-2:].mean() - SET_POINT) < 0.5 * np.abs(entropy[0] - SET_POINT)


# Tokens of a reply, sharpness of the untrained policy. The first token's entropy is the same in all
# replies of a batch, so that none is better than another; that of a long one is mostly its noise.
BLIND = {"one token, from above": (1, 1.0), "one token, from below": (1, 4.0), "long": (24, 1.0)}


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(("tokens", "sharpness"), BLIND.values(), ids=BLIND)
def test_entropy_is_followed_where_the_score_function_is_blind(
    make_policy: Callable[..., Policy], kind: str, tokens: int, sharpness: float
) -> None:
    """Ten updates of eight replies: by its own derivative it comes home, without it it stays."""
    options = SHORT | {"lr": 2e-2, "batch_size": 8, "epochs": 1, "max_steps": 10}
    options |= {"lr_decay": "linear", "rollout": RolloutConfig(turns=1, max_new_tokens=tokens)}
    left = {}
    for pathwise in (False, True):
        policy = make_policy(num_layers=1)
        policy.base.model.model.norm.weight.data.mul_(sharpness)
        reward = held_at({"entropy": SetPoint(1.0, SET_POINT, tolerance=1.0)}, pathwise)
        trainer = make_trainer(policy, reward, kind, **options)
        entropy = np.array(metric(list(trainer.steps()), "policy/entropy_nats_per_token"))
        left[pathwise] = abs(entropy[-2:].mean() - SET_POINT) / abs(entropy[0] - SET_POINT)
    assert left[False] > 0.8
    assert left[True] < 0.3


# --- entropy ------------------------------------------------------------------------------------

NARROWING: dict[str, Any] = {
    "lr": 3e-2,
    "batch_size": 32,
    "epochs": 1,
    "minibatches": 2,
    "micro_batch_tokens": 10_000,
    "rollout": RolloutConfig(turns=1, max_new_tokens=2),
}


def narrowed(policy: Policy, kind: str, **options: Any) -> tuple[list[float], list[float]]:
    """Entropy and reward of every update where the best policy says few words only."""
    own = NARROWING | ({} if kind == "ppo" else {"group_size": 8}) | options
    results = list(make_trainer(policy, own_reward(share_of_few_ids), kind, **own).steps())
    return metric(results, "policy/entropy_nats_per_token"), metric(results)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_an_entropy_that_would_collapse_is_held_at_its_target(
    make_policy: Callable[..., Policy], kind: str
) -> None:
    """Five nats fall below three without control, and stay at four with it; reward still rises."""
    free, _ = narrowed(make_policy(num_layers=1), kind, max_steps=30)
    held, paid = narrowed(make_policy(num_layers=1), kind, max_steps=30, entropy_target=4.0)
    assert free[0] == held[0] > 4.9
    assert np.mean(free[-10:]) < 3
    assert np.mean(held[-10:]) == pytest.approx(4, abs=0.5)
    assert np.mean(paid[-10:]) > 5 * paid[0]


def test_kl_cov_slows_the_loss_of_entropy(make_policy: Callable[..., Policy]) -> None:
    free, _ = narrowed(make_policy(num_layers=1), "grpo", max_steps=16)
    options = {"kl_cov_share": 0.1, "kl_cov_coef": 10.0}
    slowed, paid = narrowed(make_policy(num_layers=1), "grpo", max_steps=16, **options)
    assert slowed[-1] > free[-1] + 0.8
    assert paid[-1] > 3 * paid[0]
