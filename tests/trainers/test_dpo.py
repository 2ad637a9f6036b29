"""DPO: learns where the best policy is known, and leaves the model as it found it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from configs import dpo_config, intrinsic_config, signals_config
from worlds import (
    Parrots,
    TwoParrots,
    chance_of_low_ids,
    chance_of_what_the_opening_asks_for,
    own_reward,
    share_of_low_ids,
    share_the_opening_asks_for,
)

from homeostat.config.register import build
from homeostat.config.run import RolloutConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.reward.compose import Reward
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.trainers.dpo import DPO
from homeostat.types import Conversation, StepResult, Trace

ONE_TOKEN = RolloutConfig(turns=1, max_new_tokens=1)
LONG: dict[str, Any] = {"batch_size": 128, "epochs": 4, "held_out": 0.0}


def surprise_of_four_nats(
    conversation: Conversation,
    signals: dict[str, Any],  # noqa: ARG001
    trace: Trace,
) -> list[float]:
    """Best where a sampled token has four nats: there the entropy is four nats too."""
    surprises = [-trace.logprob_R[trace.turn_R == i] for i in conversation.assistant_turns]
    return [-float(np.abs(own - 4).mean()) for own in surprises]


def make_dpo(
    policy: Policy,
    reward: Reward,
    bots: Any = None,
    rollout: RolloutConfig = ONE_TOKEN,
    **options: Any,
) -> DPO:
    reader = SignalReader(policy, signals_config(intrinsic=intrinsic_config()), None)
    reader.base_norms = np.ones(len(reader.norm_layers))
    settings: dict[str, Any] = {"lr": 2e-2, "batch_size": 64, "group_size": 8, "max_steps": 3}
    settings |= {"epochs": 2, "minibatch_pairs": 8, "micro_batch_pairs": 8, "min_margin": 0.1}
    trainer = build(
        dpo_config(**{**settings, **options}),
        DPO,
        world=World(policy, bots or Parrots(), reader, reward, rollout),
        seed=0,
        watch=Stopwatch(),
    )
    return trainer


def metric(results: list[StepResult], key: str) -> np.ndarray:
    return np.array([result.metrics[key] for result in results])


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_a_constant_target_becomes_common_or_rare(
    make_policy: Callable[..., Policy], weight: float
) -> None:
    policy = make_policy(num_layers=1)
    before = chance_of_low_ids(policy)
    results = list(make_dpo(policy, own_reward(share_of_low_ids, weight), **LONG).steps())
    after = chance_of_low_ids(policy)
    assert after > before + 0.15 if weight > 0 else after < 0.6 * before
    assert metric(results, "dpo/accuracy_trained").min() > 0.6


def test_a_target_that_depends_on_the_context(make_policy: Callable[..., Policy]) -> None:
    """Without a look at the opening no policy can earn more than a half."""
    policy = make_policy(num_layers=1)
    assert chance_of_what_the_opening_asks_for(policy) == pytest.approx(0.5, abs=0.08)
    reward = own_reward(share_the_opening_asks_for)
    list(make_dpo(policy, reward, TwoParrots(), max_steps=4, **LONG).steps())
    assert chance_of_what_the_opening_asks_for(policy) > 0.6


@pytest.mark.parametrize("sharpness", [1.0, 2.5], ids=["from above", "from below"])
def test_an_entropy_set_point_is_approached(
    make_policy: Callable[..., Policy], sharpness: float
) -> None:
    policy = make_policy(num_layers=2)
    policy.base.model.model.norm.weight.data.mul_(sharpness)
    trainer = make_dpo(policy, own_reward(surprise_of_four_nats), max_steps=4, **LONG)
    entropy = metric(list(trainer.steps()), "policy/entropy_nats_per_token")
    assert (entropy[0] > 4.5) == (sharpness == 1)
    assert abs(entropy[-2:].mean() - 4) < 0.8 * abs(entropy[0] - 4)


def test_a_round_says_what_became_of_its_pairs(make_policy: Callable[..., Policy]) -> None:
    rollout = RolloutConfig(turns=2, max_new_tokens=4)
    trainer = make_dpo(
        make_policy(num_layers=2), own_reward(share_of_low_ids), rollout=rollout, batch_size=32
    )
    result = next(trainer.steps())
    found, records = result.metrics, result.episodes
    assert len(records) == 32 * 2, "one record per candidate and turn"
    assert found["rollout/response_tokens"] == sum(
        len(trainer.policy.tokenizer.encode(r["turns"][-2]["text"])) > -1 and 4 for r in records
    )
    verdicts = [record["chosen"] for record in records]
    pairs = found["dpo/pairs_trained"] + found["dpo/pairs_held_out"]
    assert verdicts.count(True) == verdicts.count(False) == pairs > 0
    assert found["dpo/pairs_held_out"] > 0
    assert found["policy/kl_nats_per_token"] == 0, "the first round's replies are the base's"
    assert found["dpo/accuracy_held_out_before"] == 0, "nothing is preferred before training"
    assert found["dpo/margin_trained"] > 0
    assert found["dpo/chosen_shift_trained"] > found["dpo/rejected_shift_trained"]
    assert found["dpo/reward_gap"] >= 0.1


def test_the_first_loss_is_log_two_and_the_reference_is_the_base(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    """At a learning rate of nearly 0 nothing moves: loss = -log sigmoid(beta margin)."""
    policy = make_policy(num_layers=2)
    trainer = make_dpo(policy, own_reward(share_of_low_ids), lr=1e-12, held_out=0.0)
    assert next(trainer.steps()).metrics["optim/loss"] == pytest.approx(math.log(2), abs=1e-5)
    stir(policy)
    found = next(trainer.steps()).metrics
    assert found["policy/kl_nats_per_token"] > 0
    # One optimiser step or several, the policy stands still, so the mean loss is that of the pairs.
    assert found["optim/loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_held_out_pairs_are_not_trained_on(make_policy: Callable[..., Policy]) -> None:
    """With three quarters of the conversations left out, training sees only the rest."""
    policy = make_policy(num_layers=2)
    trainer = make_dpo(policy, own_reward(share_of_low_ids), held_out=0.75)
    seen: list[int] = []
    fit = trainer._fit
    trainer._fit = lambda pairs: seen.append(len(pairs)) or fit(pairs)  # type: ignore[method-assign]
    found = next(trainer.steps()).metrics
    assert seen == [found["dpo/pairs_trained"]]
    assert 0 < found["dpo/pairs_trained"] < found["dpo/pairs_held_out"]


def test_the_likelihood_term_keeps_chosen_replies_likely(
    make_policy: Callable[..., Policy],
) -> None:
    shifts = []
    for nll_coef in (0.0, 5.0):
        trainer = make_dpo(
            make_policy(num_layers=2), own_reward(share_of_low_ids), nll_coef=nll_coef, epochs=4
        )
        shifts.append(next(trainer.steps()).metrics["dpo/chosen_shift_trained"])
    assert shifts[1] > shifts[0]


def test_without_pairs_a_round_changes_nothing_and_says_so(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy(num_layers=2)
    before = [p.detach().clone() for p in policy.adapter_parameters()]
    found = next(make_dpo(policy, own_reward(share_of_low_ids), min_margin=9.0).steps()).metrics
    assert found["dpo/pairs_trained"] == 0
    assert math.isnan(found["optim/loss"])
    assert math.isnan(found["dpo/accuracy_held_out"])
    assert all(map(torch.equal, before, policy.adapter_parameters()))


def test_the_model_is_left_as_it_was(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(num_layers=2)
    causal = policy.model.get_base_model()
    ids = torch.tensor([[1, 2, 3]])
    before = causal.forward
    with policy.reference():
        base = causal(ids).logits
    next(make_dpo(policy, own_reward(share_of_low_ids)).steps())
    assert causal.forward == before
    assert not policy.model.training
    assert list(policy.model.peft_config) == ["default"]
    assert all(parameter.requires_grad for parameter in policy.adapter_parameters())
    assert sum(p.requires_grad for p in policy.model.parameters()) == len(
        policy.adapter_parameters()
    )
    with policy.reference():
        assert torch.equal(causal(ids).logits, base), "adapter off is the base to the bit"
    assert not torch.equal(causal(ids).logits, base)


def test_a_resumed_trainer_goes_on_identically(make_policy: Callable[..., Policy]) -> None:
    def fresh() -> DPO:
        return make_dpo(make_policy(num_layers=2), own_reward(share_of_low_ids), max_steps=3)

    whole = fresh()
    expected = list(whole.steps())
    first = fresh()
    next(first.steps())
    second = fresh()
    second.load_state_dict(first.state_dict())
    for own, saved in zip(
        second.policy.adapter_parameters(), first.policy.adapter_parameters(), strict=True
    ):
        own.data.copy_(saved)
    for found, wanted in zip(second.steps(), expected[1:], strict=True):
        assert found.step == wanted.step
        assert str(found.metrics) == str(wanted.metrics)
        assert found.episodes == wanted.episodes
    adapters = (whole.policy.adapter_parameters(), second.policy.adapter_parameters())
    assert all(map(torch.equal, *adapters))


def test_learning_that_fails_stops_with_advice(make_policy: Callable[..., Policy]) -> None:
    trainer = make_dpo(make_policy(num_layers=2), own_reward(share_of_low_ids), lr=1e30, epochs=4)
    with pytest.raises(HomeostatError, match=r"round 1 .*lower trainer\.lr=1e\+30"):
        next(trainer.steps())


def test_rounds_are_numbered(make_policy: Callable[..., Policy]) -> None:
    results = list(make_dpo(make_policy(num_layers=2), own_reward(share_of_low_ids)).steps())
    assert all(b.step - a.step == 1 for a, b in pairwise(results))
    assert {record["step"] for record in results[1].episodes} == {2}
