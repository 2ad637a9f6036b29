"""Each trainer learns what it is paid for, where the best policy is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worlds import (
    TRAINERS,
    TwoParrots,
    first_reply_decides,
    make_trainer,
    metric,
    own_reward,
    share_of_low_ids,
    share_the_opening_asks_for,
    surprise_of_four_nats,
)

from homeostat.config import RolloutConfig
from homeostat.models.adapters import Policy

ONE_TOKEN = RolloutConfig(turns=1, max_new_tokens=1)
SHORT: dict[str, Any] = {
    "batch_size": 64,
    "epochs": 2,
    "minibatches": 2,
    "max_steps": 10,
    "lr_decay": "linear",
    "micro_batch_tokens": 10_000,
}


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_a_constant_target_becomes_common_or_rare(
    make_policy: Callable[..., Policy], kind: str, weight: float
) -> None:
    reward = own_reward(share_of_low_ids, weight)
    policy = make_policy(num_layers=2)
    trainer = make_trainer(policy, reward, kind, rollout=ONE_TOKEN, **SHORT)
    shares = weight * np.array(metric(list(trainer.steps())))
    assert shares[0] == pytest.approx(0.21, abs=0.1)
    assert shares[-3:].mean() > 0.4 if weight > 0 else shares[-3:].mean() < 0.15


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_target_that_depends_on_the_context(
    make_policy: Callable[..., Policy], kind: str
) -> None:
    """Without a look at the opening no policy can earn more than a half."""
    trainer = make_trainer(
        make_policy(num_layers=2),
        own_reward(share_the_opening_asks_for),
        kind,
        bots=TwoParrots(),
        rollout=ONE_TOKEN,
        lr=3e-2,
        **SHORT,
    )
    shares = metric(list(trainer.steps()))
    assert shares[0] == pytest.approx(0.5, abs=0.15)
    assert np.mean(shares[-3:]) > 0.65


CREDIT = [
    ("ppo", {"gae_lambda": 1.0}, True),
    ("ppo", {"gae_lambda": 0.0, "gamma": 0.0}, False),
    ("grpo", {}, True),
    ("rloo", {}, True),
]


@pytest.mark.parametrize(("kind", "options", "learns"), CREDIT)
def test_credit_crosses_turns(
    make_policy: Callable[..., Policy], kind: str, options: dict[str, Any], learns: bool
) -> None:
    """The reward lies on the last turn alone; myopic credit never reaches the first.

    The reward of a turn is the share of the first reply, halved as a mean over two turns.
    """
    trainer = make_trainer(
        make_policy(num_layers=2),
        own_reward(first_reply_decides),
        kind,
        rollout=RolloutConfig(turns=2, max_new_tokens=1),
        lr=4e-2,
        **SHORT,
        **options,
    )
    earned = np.mean(metric(list(trainer.steps()))[-3:])
    assert earned > 0.2 if learns else earned < 0.17


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("sharpness", [1.0, 2.5], ids=["from above", "from below"])
def test_an_entropy_set_point_is_approached(
    make_policy: Callable[..., Policy], kind: str, sharpness: float
) -> None:
    policy = make_policy(num_layers=2)
    policy.base.model.model.norm.weight.data.mul_(sharpness)
    reward = own_reward(surprise_of_four_nats)
    trainer = make_trainer(policy, reward, kind, rollout=ONE_TOKEN, lr=6e-2, **SHORT)
    entropy = np.array(metric(list(trainer.steps()), "policy/entropy_nats_per_token"))
    assert (entropy[0] > 4.5) == (sharpness == 1)
    assert np.abs(entropy[-3:].mean() - 4) < 0.6 * np.abs(entropy[0] - 4)
