"""PPO learns what it is rewarded for, from the episodes it plays itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from homeostat.config import IntrinsicConfig, PPOConfig, RewardConfig, RolloutConfig, SignalsConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.reward.compose import Reward
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.trainers.ppo import PPO
from homeostat.types import Conversation, StepResult, Trace, Turn

LOW_IDS = 64  # a quarter of the byte tokenizer's ids


class Parrot:
    """A user who says the same thing whatever happens."""

    name = "parrot"

    def opening(self) -> Turn:
        return Turn("user", "hi")

    def answer(self, reply: str) -> Turn:  # noqa: ARG002
        return Turn("user", "go on")


class Parrots:
    def spawn(self, seed: int) -> Parrot:  # noqa: ARG002
        return Parrot()


def share_of_low_ids(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,  # noqa: ARG001
) -> list[float]:
    """Share of each reply's tokens that come from the first quarter of the vocabulary."""
    replies = [conversation.turns[i].token_ids or () for i in conversation.assistant_turns]
    return [sum(token < LOW_IDS for token in reply) / len(reply) for reply in replies]


def first_reply_decides(
    conversation: Conversation, signals: dict[str, Any], trace: Trace
) -> list[float]:
    """Nothing for the first reply itself; the last one is paid by what the first one was."""
    shares = share_of_low_ids(conversation, signals, trace)
    return [0.0] * (len(shares) - 1) + [shares[0]]


def make_ppo(policy: Policy, term: Callable[..., Sequence[float]], **options: Any) -> PPO:
    reader = SignalReader(policy, SignalsConfig(intrinsic=IntrinsicConfig()), None)
    reader.base_norms = np.ones(len(reader.norm_layers))
    target = f"{term.__module__}.{term.__name__}"
    reward = Reward(RewardConfig(terms={"own": {"_target_": target}}), {})
    settings = {
        "lr": 5e-2 if term is first_reply_decides else 2e-2,
        "batch_size": 32,
        "max_steps": 8,
        "epochs": 4,
        "kl_coef": 0.0,
        "target_kl": None,
    }
    return PPO(
        PPOConfig(name="ppo", **{**settings, **options}),
        policy=policy,
        bots=Parrots(),
        reader=reader,
        reward=reward,
        rollout=RolloutConfig(turns=2, max_new_tokens=2),
        seed=0,
        watch=Stopwatch(),
    )


def rewards_of(results: Sequence[StepResult], key: str = "reward/own/own") -> list[float]:
    return [result.metrics[key] for result in results]


def test_ppo_makes_what_is_rewarded_common_and_what_is_punished_rare(
    make_policy: Callable[..., Policy],
) -> None:
    shares = {}
    for weight in (1.0, -1.0):
        trainer = make_ppo(make_policy(), share_of_low_ids)
        target = f"{share_of_low_ids.__module__}.share_of_low_ids"
        config = RewardConfig(terms={"own": {"_target_": target, "weight": weight}})
        trainer.reward = Reward(config, {})
        rewards = rewards_of(list(trainer.steps()))
        shares[weight] = weight * np.mean(rewards[-2:])
        assert weight * rewards[0] == pytest.approx(0.21, abs=0.05)
    assert shares[1.0] > 0.41
    assert shares[-1.0] < 0.2


def test_credit_crosses_turns(make_policy: Callable[..., Policy]) -> None:
    """With the reward on the last turn alone, the first reply still learns to earn it."""
    far = make_ppo(make_policy(), first_reply_decides, gae_lambda=1.0)
    near = make_ppo(make_policy(), first_reply_decides, gae_lambda=0.0, gamma=0.0)
    earned, stuck = (np.mean(rewards_of(list(ppo.steps()))[-3:]) for ppo in (far, near))
    assert earned > 0.2
    assert stuck < 0.17


def test_first_ratio_is_one_and_kl_is_zero_before_the_first_step(
    make_policy: Callable[..., Policy],
) -> None:
    first = next(make_ppo(make_policy(), share_of_low_ids).steps())
    assert first.metrics["policy/first_ratio"] == pytest.approx(1, abs=1e-5)
    assert first.metrics["policy/kl_nats_per_token"] == pytest.approx(0, abs=1e-6)


def test_adapter_moves_and_base_does_not(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    frozen = {
        name: p.detach().clone()
        for name, p in policy.model.named_parameters()
        if not p.requires_grad
    }
    before = [p.detach().clone() for p in policy.adapter_parameters()]
    next(make_ppo(policy, share_of_low_ids).steps())
    moved = [
        not torch.equal(a, b) for a, b in zip(before, policy.adapter_parameters(), strict=True)
    ]
    assert any(moved)
    for name, parameter in policy.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_micro_batches_add_up_to_the_minibatch(make_policy: Callable[..., Policy]) -> None:
    norms = []
    for micro in (100_000, 1):
        trainer = make_ppo(make_policy(), share_of_low_ids, micro_batch_tokens=micro)
        batch = trainer.collect()
        norms.append(trainer.minibatch(batch, range(32))["optim/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_resumed_state_continues_as_if_never_left(make_policy: Callable[..., Policy]) -> None:
    whole = rewards_of(list(make_ppo(make_policy(), share_of_low_ids, max_steps=3).steps()))
    policy = make_policy()
    first = make_ppo(policy, share_of_low_ids, max_steps=3)
    next(first.steps())
    second = make_ppo(policy, share_of_low_ids, max_steps=3)
    second.load_state_dict(first.state_dict())
    assert rewards_of(list(second.steps())) == pytest.approx(whole[1:], abs=1e-9)


def test_a_loss_that_is_not_finite_ends_with_a_sentence(
    make_policy: Callable[..., Policy],
) -> None:
    trainer = make_ppo(make_policy(), share_of_low_ids)
    batch = trainer.collect()
    for advantage in batch.advantages:
        advantage[:] = np.nan
    with pytest.raises(HomeostatError, match=r"loss of update 1 is nan .*trainer\.lr"):
        trainer.update(batch)
