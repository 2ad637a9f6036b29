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


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_a_constant_target_becomes_common_or_rare(
    make_policy: Callable[..., Policy], kind: str, weight: float
) -> None:
    trainer = make_trainer(make_policy(), own_reward(share_of_low_ids, weight), kind)
    shares = weight * np.array(metric(list(trainer.steps())))
    assert shares[0] == pytest.approx(0.21, abs=0.06)
    assert shares[-2:].mean() > 0.38 if weight > 0 else shares[-2:].mean() < 0.2


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_target_that_depends_on_the_context(
    make_policy: Callable[..., Policy], kind: str
) -> None:
    """Without a look at the opening no policy can earn more than a half."""
    trainer = make_trainer(
        make_policy(),
        own_reward(share_the_opening_asks_for),
        kind,
        bots=TwoParrots(),
        rollout=RolloutConfig(turns=1, max_new_tokens=3),
        lr=5e-2,
    )
    shares = metric(list(trainer.steps()))
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    assert np.mean(shares[-2:]) > 0.65


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
    """The reward lies on the last turn alone; myopic credit never reaches the first."""
    reward = own_reward(first_reply_decides)
    trainer = make_trainer(make_policy(), reward, kind, lr=5e-2, **options)
    earned = np.mean(metric(list(trainer.steps()))[-3:])
    assert earned > 0.2 if learns else earned < 0.17


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("sharpness", [1.0, 2.5], ids=["from above", "from below"])
def test_an_entropy_set_point_is_approached(
    make_policy: Callable[..., Policy], kind: str, sharpness: float
) -> None:
    policy = make_policy()
    policy.base.model.model.norm.weight.data.mul_(sharpness)
    trainer = make_trainer(
        policy,
        own_reward(surprise_of_four_nats),
        kind,
        rollout=RolloutConfig(turns=1, max_new_tokens=4),
    )
    distance = np.abs(np.array(metric(list(trainer.steps()), "policy/entropy_nats_per_token")) - 4)
    assert distance[-2:].mean() < 0.6 * distance[0]
