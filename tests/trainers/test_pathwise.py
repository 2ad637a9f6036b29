"""Terms followed by their own derivative: against slow loops and by hand, signs included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from configs import kl_config
from torch import Tensor
from worlds import NO_KL, TRAINERS, held_at, make_trainer, own_reward, share_of_low_ids

from homeostat.config.run import RolloutConfig
from homeostat.config.signals import PATHWISE_SIGNALS
from homeostat.models.adapters import Policy
from homeostat.reward.valence import SetPoint
from homeostat.signals.intrinsic import OF_STATES, ReplyStates
from homeostat.trainers.batch import Batch
from homeostat.trainers.pathwise import gradient_share, pathwise_loss
from homeostat.trainers.policy_gradient import PolicyGradient

ROLLOUT = RolloutConfig(turns=2, max_new_tokens=3)
HELD = {
    "entropy": SetPoint(weight=0.5, setpoint=3.0, tolerance=0.7),
    "activation_norm": SetPoint(weight=2.0, setpoint=40.0, tolerance=9.0, transform="none"),
    "self_certainty": SetPoint(weight=0.3, setpoint=2.0, tolerance=0.5, transform="log"),
}
FEW: dict[str, Any] = {"batch_size": 4, "minibatches": 1, "epochs": 1, "max_grad_norm": 1e9}
FEW |= {"rollout": ROLLOUT, "micro_batch_tokens": 10_000}


@pytest.fixture
def policy(make_policy: Callable[..., Policy], stir: Callable[[Policy], None]) -> Policy:
    made = make_policy(num_layers=2)
    made.base.model.model.norm.weight.data.mul_(2.5)  # entropies between 0 and log V
    stir(made)
    return made


def gradient_of_update(trainer: PolicyGradient, batch: Batch) -> list[Tensor]:
    """Of one minibatch of the whole batch, with a step that goes nowhere."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.minibatch(batch, range(len(batch.episodes)))
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for p in trainer.policy.adapter_parameters()
    ]


def slow_valence(policy: Policy, batch: Batch, layers: tuple[int, ...]) -> Tensor:
    """Reply by reply, from the model's own logits and hidden states; formulas written out."""
    total = torch.zeros(())
    for stream in batch.streams:
        out = policy.model(input_ids=torch.tensor([stream.ids]), output_hidden_states=True)
        for turn in sorted({t for t, own in zip(stream.turn, stream.response, strict=True) if own}):
            places = [i for i, own in enumerate(stream.response) if own and stream.turn[i] == turn]
            entropies, certainties, norms = [], [], []
            for place in places:
                p = out.logits[0, place - 1].softmax(-1)
                entropies.append(-(p * p.log()).sum())
                certainties.append((1 / len(p) * (1 / len(p) / p).log()).sum())
                states = [out.hidden_states[layer + 1][0, place] for layer in layers]
                norms.append(sum(state.square().sum().sqrt() for state in states) / len(states))
            entropy, certainty, norm = (
                sum(values) / len(values) for values in (entropies, certainties, norms)
            )
            total = total - 0.5 * abs(entropy - 3.0) / 0.7
            total = total - 2.0 * abs(norm - 40.0) / 9.0
            total = total - 0.3 * abs(certainty.log() - np.log(2.0)) / 0.5
    return total


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("micro", [10_000, 1], ids=["together", "apart"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_gradient_is_that_of_a_slow_loop(
    policy: Policy, kind: str, micro: int, checkpointing: bool
) -> None:
    options = FEW | {"micro_batch_tokens": micro, "gradient_checkpointing": checkpointing}
    trainer = make_trainer(policy, held_at(HELD), kind, kl=NO_KL, **options)
    trainer.reader.norm_layers = (0,)  # hidden_states has the last block's after the final norm
    trainer.reader.base_norms = np.ones(1)
    batch = trainer.collect()
    assert not np.concatenate(batch.credit.advantages).any()  # none for the score function
    value = slow_valence(policy, batch, trainer.reader.norm_layers)
    paid = sum(float(reward.total_N.sum()) for reward in batch.rewards)
    assert float(value.detach()) == pytest.approx(paid, rel=1e-4)  # as a reward it is what it was
    tokens = sum(map(len, batch.logprobs))
    expected = torch.autograd.grad(-value / tokens, policy.adapter_parameters())
    for found, slope in zip(gradient_of_update(trainer, batch), expected, strict=True):
        torch.testing.assert_close(found, slope, rtol=2e-3, atol=2e-6)
    assert any(slope.abs().max() > 1e-3 for slope in expected)


def measured_valence(trainer: PolicyGradient, batch: Batch) -> float:
    """What the product itself would pay for the same replies under the policy as it is."""
    readings = trainer.reader.measure(batch.episodes)
    talks = [episode.conversation for episode in batch.episodes]
    return sum(float(r.total_N.sum()) for r in trainer.reward.score(talks, readings))


def test_the_gradient_is_that_of_what_is_measured(policy: Policy) -> None:
    """By finite differences along the gradient, through the tracing pass."""
    trainer = make_trainer(policy, held_at(HELD), "rloo", kl=NO_KL, **FEW)
    batch = trainer.collect()
    gradient = gradient_of_update(trainer, batch)
    length = float(torch.stack([g.norm() for g in gradient]).norm())
    values, step = [], 2e-3
    for sign in (1, -2):
        for parameter, slope in zip(policy.adapter_parameters(), gradient, strict=True):
            parameter.data.add_(slope, alpha=sign * step / length)
        values.append(measured_valence(trainer, batch))
    tokens = sum(map(len, batch.logprobs))
    rise = (values[0] - values[1]) / (2 * step) / tokens
    assert rise == pytest.approx(-length, rel=0.02)  # against the gradient of the loss it rises


def test_kl_is_followed_over_the_whole_vocabulary(policy: Policy) -> None:
    trainer = make_trainer(policy, FREE, "rloo", kl=kl_config(coef=0.7), **FEW)
    batch = trainer.collect()
    assert not np.concatenate(batch.credit.advantages).any()  # k1 has left the reward
    price = torch.zeros(())
    for stream in batch.streams:
        ids = torch.tensor([stream.ids])
        with torch.no_grad(), policy.reference():
            log_q = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        log_p = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        for place, own in enumerate(stream.response):
            if own:
                p = log_p[place - 1].exp()
                price = price + 0.7 * (p * (log_p[place - 1] - log_q[place - 1])).sum()
    expected = torch.autograd.grad(
        price / sum(map(len, batch.logprobs)), policy.adapter_parameters()
    )
    for found, slope in zip(gradient_of_update(trainer, batch), expected, strict=True):
        torch.testing.assert_close(found, slope, rtol=2e-3, atol=2e-6)


# Held where it costs nothing, so that nothing but the price of KL has a gradient.
FREE = held_at({"entropy": SetPoint(weight=1.0, setpoint=0.0, tolerance=1.0, dead_zone=99.0)})


def test_without_a_price_the_reference_is_not_read(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(policy, held_at(HELD), "rloo", kl=NO_KL, **FEW)
    batch = trainer.collect()
    monkeypatch.setattr(policy, "reference", None)
    assert any(slope.any() for slope in gradient_of_update(trainer, batch))


def test_k3_stays_the_loss_that_it_is(policy: Policy) -> None:
    options = FEW | {"kl": kl_config(coef=0.7), "kl_estimator": "k3"}
    gradients = []
    for reward in (FREE, own_reward(share_of_low_ids)):
        trainer = make_trainer(policy, reward, "rloo", **options)
        batch = trainer.collect()
        for advantage in batch.credit.advantages:
            advantage[:] = 0.0
        gradients.append(gradient_of_update(trainer, batch))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


# --- signs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHWISE_SIGNALS)
@pytest.mark.parametrize("above", [True, False], ids=["from above", "from below"])
def test_a_step_leads_towards_the_set_point(policy: Policy, name: str, above: bool) -> None:
    probe = make_trainer(policy, held_at(HELD), "rloo", kl=NO_KL, **FEW)
    batch = probe.collect()
    signal = np.concatenate([r.signals.column(name) for r in batch.readings])
    off = 0.5 * signal.min() if above else 2 * signal.max()
    reward = held_at({name: SetPoint(weight=1.0, setpoint=off, tolerance=1.0)})
    trainer = make_trainer(policy, reward, "rloo", kl=NO_KL, lr=1e-3, **FEW)
    trainer.minibatch(batch, range(4))
    readings = trainer.reader.measure(batch.episodes)
    moved = np.concatenate([r.signals.column(name) for r in readings]).mean() - signal.mean()
    assert moved < 0 if above else moved > 0


def reply(entropy: float) -> ReplyStates:
    tokens = torch.tensor([entropy - 1.0, entropy + 1.0], requires_grad=True)
    return ReplyStates(tokens, tokens, tokens[:, None], torch.ones(1))


@pytest.mark.parametrize(
    ("options", "entropy", "loss", "slope"),
    [
        ({}, 4.0, 2 * (4.0 - 3.0) / 0.5, 2 / 0.5 / 2),
        ({}, 2.0, 2 * (3.0 - 2.0) / 0.5, -2 / 0.5 / 2),
        ({"dead_zone": 0.25}, 4.0, 2 * 0.75 / 0.5, 2 / 0.5 / 2),
        ({"dead_zone": 1.5}, 4.0, 0.0, 0.0),
        ({"side": "above"}, 2.0, 0.0, 0.0),
        ({"side": "below"}, 2.0, 2 * 1.0 / 0.5, -2 / 0.5 / 2),
        ({"transform": "log"}, 6.0, 2 * np.log(2.0) / 0.5, 2 / 0.5 / 6.0 / 2),
    ],
)
def test_the_loss_of_one_reply_by_hand(
    options: dict[str, Any], entropy: float, loss: float, slope: float
) -> None:
    """Two tokens share a slope of weight / tolerance."""
    one, point = reply(entropy), SetPoint(2.0, 3.0, 0.5, **options)
    found = pathwise_loss([one], {"entropy": point})
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert one.entropy_R.grad.tolist() == pytest.approx([slope, slope])
    array = np.array([entropy])
    assert -float(point.valence(array)[0]) == pytest.approx(loss)  # the numbers' own definition


def test_the_signals_that_are_followed_are_those_that_the_config_names() -> None:
    assert set(OF_STATES) == set(PATHWISE_SIGNALS)


def test_share_of_a_gradient_by_hand() -> None:
    part = [torch.tensor([3.0, 0.0]), None]
    whole = [torch.tensor([3.0, 4.0]), torch.tensor([0.0])]
    assert gradient_share(part, whole) == pytest.approx(3 / (3 + 4))
    assert gradient_share([None], [torch.tensor([2.0])]) == 0.0
    assert np.isnan(gradient_share([None], [None]))


# --- what is left to the score function ---------------------------------------------------------


def test_other_terms_stay_with_the_score_function(policy: Policy) -> None:
    """A term of one's own is paid in full; the set point is no part of what is compared."""
    terms = {"own": {"_target_": "worlds.share_of_low_ids", "weight": 1.0}}
    trainer = make_trainer(policy, held_at(HELD, terms=terms), "rloo", kl=NO_KL, **FEW)
    batch = trainer.collect()
    returns = np.array([reward.own_terms["own"].sum() for reward in batch.rewards])
    expected = returns - (returns.sum() - returns) / 3  # one group of four
    found = [float(advantage[0]) for advantage in batch.credit.advantages]
    assert found == pytest.approx(expected.tolist())
    assert list(batch.shares) == ["reward/share/own"]


@pytest.mark.parametrize("kind", TRAINERS)
def test_an_update_says_what_was_pathwise(policy: Policy, kind: str) -> None:
    terms = {"own": {"_target_": "worlds.share_of_low_ids", "weight": 1.0}}
    options = FEW | {"minibatches": 2, "epochs": 2}
    trainer = make_trainer(policy, held_at(HELD, terms=terms), kind, **options)
    found = next(trainer.steps()).metrics
    assert found["policy/first_ratio"] == pytest.approx(1, abs=1e-5)
    assert 0 < found["optim/pathwise_gradient_share"] < 1
    assert found["optim/pathwise_loss"] > 0
    assert found["reward/valence"] < 0  # as without
    assert "reward/term/entropy" in found


def test_nothing_is_followed_unless_asked_for(policy: Policy) -> None:
    trainer = make_trainer(policy, held_at(HELD, pathwise=False), "rloo", **FEW)
    found = next(trainer.steps()).metrics
    assert not [name for name in found if "pathwise" in name]
    assert trainer.kl_estimator == "k1"


def test_the_policy_waits_while_the_critic_warms_up(policy: Policy) -> None:
    options = FEW | {"critic": "lora", "critic_warmup": 1, "max_steps": 2}
    trainer = make_trainer(policy, held_at(HELD), "ppo", kl=NO_KL, **options)
    gradient = gradient_of_update(trainer, trainer.collect())
    assert not any(slope.any() for slope in gradient)
