"""The loop that the trainers share: what one update does and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import kl_config
from worlds import (
    TRAINERS,
    make_trainer,
    metric,
    nothing,
    own_reward,
    share_of_low_ids,
    worth_one,
)

from homeostat.config.run import RolloutConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapter_files import load_adapter, save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.template import ChatTemplate
from homeostat.trainers.batch import Batch, Credit, reply_ends, response_turns
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.trainers.ppo import PPO, ReturnScale
from homeostat.types import Conversation, Role, TokenStream

LOW = own_reward(share_of_low_ids)
PID_CONTROLLED = kl_config(kind="pid", coef=0.1, target=0.01)


@pytest.mark.parametrize("kind", TRAINERS)
def test_first_ratio_is_one_and_kl_is_zero_before_the_first_step(
    make_policy: Callable[..., Policy], kind: str
) -> None:
    first = next(make_trainer(make_policy(), LOW, kind, epochs=1).steps())
    assert first.metrics["policy/first_ratio"] == pytest.approx(1, abs=1e-5)
    assert first.metrics["policy/kl_nats_per_token"] == pytest.approx(0, abs=1e-6)
    assert ("critic/value_mean" in first.metrics) == (kind == "ppo")
    assert all(np.isfinite(value) for value in first.metrics.values())


@pytest.mark.parametrize("critic", ["shared", "lora"])
def test_adapter_moves_and_base_does_not(make_policy: Callable[..., Policy], critic: str) -> None:
    policy = make_policy()
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    next(make_trainer(policy, LOW, critic=critic, epochs=1).steps())
    after = {n: p for n, p in policy.model.named_parameters() if ".critic." not in n}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_micro_batches_add_up_to_the_minibatch(make_policy: Callable[..., Policy]) -> None:
    norms = []
    for micro in (100_000, 1):
        trainer = make_trainer(make_policy(), LOW, micro_batch_tokens=micro, batch_size=8)
        norms.append(trainer.minibatch(trainer.collect(), range(8))["optim/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


RESUMED = {
    "ppo": ("ppo", {}),
    "ppo with a critic's adapter": ("ppo", {"critic": "lora"}),
    "grpo": ("grpo", {}),
    "rloo with k3": ("rloo", {"kl_estimator": "k3"}),
    "grpo with a target for the entropy": ("grpo", {"entropy_target": 5.5, "credit": "turn"}),
}


@pytest.mark.parametrize(("kind", "own"), RESUMED.values(), ids=RESUMED)
def test_resumed_state_continues_as_if_never_left(
    make_policy: Callable[..., Policy], tmp_path: Path, kind: str, own: dict[str, Any]
) -> None:
    """To the last bit, and from a file that brings no code along."""
    options = {"max_steps": 3, "batch_size": 8, "epochs": 1, "lr_decay": "linear"}
    options |= {"kl": PID_CONTROLLED, "rollout": RolloutConfig(turns=2, max_new_tokens=2)} | own

    def fresh() -> PolicyGradient:
        return make_trainer(make_policy(num_layers=1), LOW, kind, **options)

    uninterrupted = fresh()
    whole = list(uninterrupted.steps())
    first, second = fresh(), fresh()
    next(first.steps())
    save_adapter(first.policy, tmp_path)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    load_adapter(second.policy, tmp_path)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for found, expected in zip(second.steps(), whole[1:], strict=True):
        assert dict(found.metrics) == dict(expected.metrics)
        assert list(found.episodes) == list(expected.episodes)
    weights = (trainer.policy.adapter_parameters() for trainer in (second, uninterrupted))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_loss_that_is_not_finite_ends_with_a_sentence(
    make_policy: Callable[..., Policy],
) -> None:
    trainer = make_trainer(make_policy(), LOW, batch_size=8)
    batch = trainer.collect()
    for advantage in batch.credit.advantages:
        advantage[:] = np.nan
    with pytest.raises(HomeostatError, match=r"loss of update 1 is nan .*trainer\.lr"):
        trainer.update(batch)


def test_the_learning_rate_warms_up_and_decays(make_policy: Callable[..., Policy]) -> None:
    """For the policy and for the critic, in what is reported and in what the optimiser uses."""
    options = {"max_steps": 4, "warmup_steps": 2, "lr_decay": "linear", "batch_size": 4}
    policy = make_policy(num_layers=1)
    trainer = make_trainer(policy, LOW, lr=0.01, value_lr=0.1, epochs=1, **options)
    reported, used = [], []
    for result in trainer.steps():
        reported.append(result.metrics["optim/lr"])
        used.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert reported == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert np.array(used) == pytest.approx(np.outer([0.5, 1, 1, 0.5], [0.01, 0.1]))


def test_the_price_of_kl_follows_the_kl_of_the_batch(make_policy: Callable[..., Policy]) -> None:
    """Before the first step the KL is 0, far below its target, whatever the entropy: 20% off."""
    price = kl_config(kind="adaptive", coef=0.1, target=0.1, gain=1.0)
    trainer = make_trainer(make_policy(num_layers=1), LOW, kl=price, batch_size=4, epochs=1)
    first = next(trainer.steps())
    assert first.metrics["policy/kl_coef"] == 0.1
    assert trainer.kl.coef == pytest.approx(0.08)


@pytest.mark.parametrize(("estimator", "in_reward"), [("k1", True), ("k3", False)])
def test_only_k1_is_part_of_the_reward(
    make_policy: Callable[..., Policy],
    stir: Callable[..., None],
    estimator: str,
    in_reward: bool,
) -> None:
    policy = make_policy(num_layers=1)
    stir(policy, scale=0.15)
    options = {"kl": kl_config(coef=1.0), "kl_estimator": estimator, "batch_size": 4}
    credit = make_trainer(policy, own_reward(nothing), "rloo", **options).collect().credit
    assert any(advantage.any() for advantage in credit.advantages) == in_reward


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_group_shares_its_bot_and_not_its_replies(
    make_policy: Callable[..., Policy], kind: str
) -> None:
    trainer = make_trainer(make_policy(), LOW, kind, batch_size=8, group_size=4)
    episodes = trainer.collect().episodes
    assert [e.sample for e in episodes] == [0, 1, 2, 3] * 2
    assert [len({e.seed for e in part}) for part in (episodes[:4], episodes[4:])] == [1, 1]
    assert episodes[0].seed != episodes[4].seed
    assert len({e.conversation.turns[1].token_ids for e in episodes}) == 8


@pytest.mark.parametrize(
    ("kind", "expected"), [("rloo", [-2.0, 2.0, 4.0, -4.0]), ("grpo", [-1.0, 1.0, 1.0, -1.0])]
)
def test_every_token_of_an_episode_gets_its_groups_comparison(
    make_policy: Callable[..., Policy], kind: str, expected: list[float]
) -> None:
    trainer = make_trainer(make_policy(), LOW, kind, batch_size=4, group_size=2)
    rewards = [[0.0, 1.0], [3.0], [0.0, 0.0, 8.0], [4.0]]
    credit: Credit = trainer.credit([], [np.array(r) for r in rewards], [])
    for found, given, value in zip(credit.advantages, rewards, expected, strict=True):
        np.testing.assert_allclose(found, [value] * len(given), rtol=1e-6)


def test_with_credit_by_turns_every_token_of_a_turn_gets_its_turns_comparison(
    make_policy: Callable[..., Policy],
) -> None:
    """The first reply alone is paid: the second one's tokens have nothing to come."""
    options = {"batch_size": 4, "group_size": 2, "credit": "turn"}
    trainer = make_trainer(make_policy(num_layers=1), LOW, "rloo", **options)
    batch = trainer.collect()
    turns = [response_turns(stream) for stream in batch.streams]
    assert all(sorted(set(own)) == [1, 3] for own in turns)
    paid = [0.0, 3.0, -1.0, 4.0]
    rewards = [np.where(np.arange(len(t)) == 0, r, 0.0) for t, r in zip(turns, paid, strict=True)]
    credit = trainer.credit(batch.streams, rewards, [])
    for found, own, value in zip(credit.advantages, turns, [-3.0, 3.0, -5.0, 5.0], strict=True):
        np.testing.assert_allclose(found, np.where(own == 1, value, 0.0))


# --- replies that were cut off ------------------------------------------------------------------


ENDS = {  # ids that end a reply: then about half of those of at most one token have ended
    "some": tuple(range(128)),
    "all": tuple(range(257)),
    "none": (300,),
}
ONE_TOKEN = RolloutConfig(turns=2, max_new_tokens=1)


def cut_off(
    make_policy: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
    kind: str = "rloo",
    **options: Any,
) -> PolicyGradient:
    """A trainer whose replies of one token have ended if ``ENDS`` says so."""
    trainer = make_trainer(
        make_policy(num_layers=1), LOW, kind, rollout=ONE_TOKEN, **{"batch_size": 8} | options
    )
    monkeypatch.setattr(Policy, "eos_ids", ENDS[ends])
    return trainer


def gradient(trainer: PolicyGradient, batch: Batch) -> np.ndarray:
    """Of one step on a whole batch, times its tokens."""
    trainer.config = replace(trainer.config, max_grad_norm=1e9)
    trainer.minibatch(batch, range(len(batch.streams)))
    grads = [p.grad for p in trainer.policy.adapter_parameters() if p.grad is not None]
    tokens = sum(len(own) for own in batch.logprobs)
    return torch.cat([g.flatten() for g in grads]).numpy() * tokens


def test_a_reply_that_was_cut_off_is_known_by_its_last_token() -> None:
    stream = TokenStream(
        [7, 1, 2, 9, 8, 3, 4], [0, 1, 1, 1, -1, 3, 3], [False, *[True] * 3, False, True, True]
    )
    assert reply_ends(stream, [9]) == {1: True, 3: False}
    assert reply_ends(stream, [4, 1]) == {1: False, 3: True}


def test_masked_replies_have_no_part_in_the_gradient(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of all tokens where those of the masked ones have no advantage."""
    trainer = cut_off(make_policy, monkeypatch, "some", mask_truncated=True)
    whole = trainer.collect()
    kept = [
        np.array([stream.ids[i] in ENDS["some"] for i, own in enumerate(stream.response) if own])
        for stream in whole.streams
    ]
    assert 0 < np.concatenate(kept).sum() < 16
    for advantage_R, kept_R in zip(whole.credit.advantages, kept, strict=True):
        advantage_R[~kept_R] = 0.0
    seen = []
    monkeypatch.setattr(trainer, "update", lambda batch: seen.append(batch) or {})
    found = trainer.learn(whole)
    assert found == {"rollout/truncated_share": 1 - float(np.concatenate(kept).mean())}
    masked = seen[0]
    assert sum(map(len, masked.logprobs)) == np.concatenate(kept).sum()
    other = cut_off(make_policy, monkeypatch, "some")
    np.testing.assert_allclose(
        gradient(trainer, masked), gradient(other, whole), rtol=1e-3, atol=1e-5
    )


EVERYTHING: dict[str, Any] = {
    "mask_truncated": True,
    "entropy_target": 6.0,
    "entropy_coef": 0.1,
    "kl_cov_share": 0.3,
    "kl": kl_config(coef=0.1),
    "kl_estimator": "k3",
    "max_steps": 2,
}


@pytest.mark.parametrize(
    ("kind", "own"),
    [("ppo", {}), ("ppo", {"critic": "lora"}), ("grpo", {"credit": "turn"}), ("rloo", {})],
)
def test_masking_goes_with_every_other_part_of_the_loss(
    make_policy: Callable[..., Policy],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    own: dict[str, Any],
) -> None:
    results = list(cut_off(make_policy, monkeypatch, "some", kind, **EVERYTHING, **own).steps())
    for key, at_least in {
        "rollout/truncated_share": 0.1,
        "policy/kl_cov_share": 0.01,
        "policy/entropy_coef": 0.1,
        "policy/kl_cov_nats_per_token": 1e-12,
    }.items():
        assert all(value > at_least * 0.999 for value in metric(results, key)), key
    assert all(np.isfinite(value) for r in results for value in r.metrics.values())
    # The coefficient of an update is what the entropy of the one before it has made of it.
    error = 6.0 - results[0].metrics["policy/entropy_nats_per_token"]
    assert metric(results, "policy/entropy_coef") == pytest.approx([0.1, 0.1 + 0.22 * error])


@pytest.mark.parametrize("kind", TRAINERS)
def test_where_every_reply_was_cut_off_the_update_says_so_and_learns_nothing(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    trainer = cut_off(make_policy, monkeypatch, "none", kind, **EVERYTHING)
    before = [p.detach().clone() for p in trainer.policy.adapter_parameters()]
    results = list(trainer.steps())
    pairs = zip(before, trainer.policy.adapter_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert metric(results, "rollout/truncated_share") == [1.0, 1.0]
    assert metric(results, "optim/minibatches") == [0.0, 0.0]
    assert "optim/loss" not in results[0].metrics
    assert trainer.notices == [
        f"update {n}/2: each of the 16 replies was cut off at rollout.max_new_tokens=1 and is "
        "masked, so nothing was learned; raise it, or set trainer.mask_truncated=false."
        for n in (1, 2)
    ]


@pytest.mark.parametrize("kind", TRAINERS)
def test_where_every_reply_has_ended_masking_changes_nothing(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plain, masked = (
        dict(next(cut_off(make_policy, monkeypatch, "all", kind, mask_truncated=m).steps()).metrics)
        for m in (False, True)
    )
    assert masked.pop("rollout/truncated_share") == 0
    assert masked == plain


# --- each part of the loss pulls its own way ----------------------------------------------------


PRICED = [("ppo", "k1"), ("grpo", "k1"), ("rloo", "k1"), ("rloo", "k3")]
FEW: dict[str, Any] = {
    "lr": 1e-2,
    "minibatches": 2,
    "max_steps": 3,
    "micro_batch_tokens": 10_000,
    "rollout": RolloutConfig(turns=1, max_new_tokens=2),
}


@pytest.mark.parametrize(("kind", "estimator"), PRICED)
def test_the_price_of_kl_draws_the_policy_back_to_the_base(
    make_policy: Callable[..., Policy], stir: Callable[..., None], kind: str, estimator: str
) -> None:
    policy = make_policy(num_layers=1)
    stir(policy, scale=0.15)
    options = {"kl": kl_config(coef=1.0), "kl_estimator": estimator, "batch_size": 48, **FEW}
    trainer = make_trainer(policy, own_reward(nothing), kind, **options)
    kl = metric(list(trainer.steps()), "policy/kl_nats_per_token")
    assert kl[-1] < 0.8 * kl[0]


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_entropy_bonus_raises_entropy(
    make_policy: Callable[..., Policy], stir: Callable[..., None], kind: str
) -> None:
    policy = make_policy(num_layers=1)
    stir(policy, scale=0.15)
    options = {"entropy_coef": 1.0, "batch_size": 16, "epochs": 2, **FEW}
    trainer = make_trainer(policy, own_reward(nothing), kind, **options)
    entropy = metric(list(trainer.steps()), "policy/entropy_nats_per_token")
    assert entropy[-1] > entropy[0] + 0.08


@pytest.mark.parametrize("critic", ["shared", "lora"])
def test_the_critic_learns_what_an_episode_is_worth(
    make_policy: Callable[..., Policy], critic: str
) -> None:
    """The policy stands still (a tiny rate), and two turns are worth 2, then 1."""
    options = FEW | {"lr": 1e-9, "value_lr": 2e-2, "batch_size": 16}
    options |= {"rollout": RolloutConfig(turns=2, max_new_tokens=1), "gae_lambda": 1.0}
    trainer = make_trainer(
        make_policy(num_layers=1), own_reward(worth_one), critic=critic, **options
    )
    results = list(trainer.steps())
    errors = metric(results, "critic/mean_squared_error")
    assert errors[-1] < 0.3 * errors[0]
    assert metric(results, "critic/value_mean")[-1] == pytest.approx(1.5, abs=0.5)


def test_a_critic_with_its_own_adapter_leaves_the_policy_alone(
    make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    policy = make_policy(num_layers=1)
    trainer = make_trainer(policy, LOW, critic="lora", batch_size=8, epochs=1, value_coef=1.0)
    assert isinstance(trainer, PPO)
    batch = trainer.collect()
    for advantage in batch.credit.advantages:
        advantage[:] = 0.0
    before = [p.detach().clone() for p in policy.adapter_parameters()]
    old = [p.detach().clone() for p in trainer.critic_adapter]
    trainer.update(batch)
    trainer.update(batch)
    pairs = zip(before, policy.adapter_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(old, trainer.critic_adapter, strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    save_adapter(policy, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []


def test_early_stop_and_epochs(make_policy: Callable[..., Policy]) -> None:
    for target, steps in ((None, 12), (1e-9, 2), (1e9, 12)):
        options = {"target_kl": target, "epochs": 3, "minibatches": 4, "batch_size": 8}
        trainer = make_trainer(make_policy(), LOW, **options)
        found = next(trainer.steps()).metrics
        assert found["optim/minibatches"] == steps  # the first one is taken where nothing has moved


def test_an_update_encodes_every_turn_of_its_episodes_once(
    make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four episodes of two replies hold three user turns each: nothing is rendered twice."""
    policy = make_policy(num_layers=2)
    trainer = make_trainer(policy, own_reward(share_of_low_ids), batch_size=4, max_steps=1)
    rendered: list[int] = []
    begun: list[int] = []
    pieces, encode = ChatTemplate.pieces, Policy.encode

    def count_pieces(template: ChatTemplate, roles: Sequence[Role]) -> list[str]:
        rendered.append(len(roles))
        return pieces(template, roles)

    def count_encode(
        self: Policy, conversation: Conversation, begun_: TokenStream | None = None
    ) -> TokenStream:
        begun.append(0 if begun_ is None else begun_.turns)
        return encode(self, conversation, begun_)

    monkeypatch.setattr(ChatTemplate, "pieces", count_pieces)
    monkeypatch.setattr(Policy, "encode", count_encode)
    trainer.step()
    assert len(rendered) == 4 * 3
    assert begun.count(0) == 4, "a conversation is begun once"
    assert sorted(begun) == [0] * 4 + [1] * 4 + [3] * 4


def test_the_tokens_of_an_episode_are_its_conversation_encoded(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy(num_layers=2)
    trainer = make_trainer(policy, own_reward(share_of_low_ids), batch_size=3, max_steps=1)
    for episode in trainer.collect().episodes:
        assert episode.tokens == policy.encode(episode.conversation)


# --- the critic's scale -------------------------------------------------------------------------


def test_the_scale_is_that_of_all_returns_so_far() -> None:
    scale, parts = ReturnScale(), (np.array([-9.0, -7.0]), np.array([-1.0]), np.array([2.0, 3.0]))
    assert (scale.mean, scale.deviation) == (0.0, 1.0)
    for part in parts:
        scale.take_in(part)
    everything = np.concatenate(parts)
    assert scale.mean == pytest.approx(everything.mean())
    assert scale.deviation == pytest.approx(everything.std())
    again = ReturnScale()
    again.load_state_dict(scale.state_dict())
    assert again.state_dict() == scale.state_dict()


def test_a_fresh_critic_says_the_mean_of_the_returns_after_its_first_update(
    make_policy: Callable[..., Policy],
) -> None:
    """Returns near -100 take no hundred steps, and clipping mutes none of them."""
    reward = own_reward(worth_one, weight=-100.0)
    trainer = make_trainer(make_policy(num_layers=1), reward, batch_size=8, epochs=1, **FEW)
    assert isinstance(trainer, PPO)
    batch = trainer.collect()
    trainer.update(batch)
    returns = np.concatenate(list(batch.credit.returns))
    assert trainer.scale.mean == pytest.approx(returns.mean())
    hidden = torch.randn(5, trainer.policy.hidden_size)
    assert trainer.value(hidden).detach().numpy() == pytest.approx(returns.mean(), abs=30)


def test_while_the_critic_warms_up_the_policy_stands_still(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy(num_layers=1)
    options = {"batch_size": 8, "critic_warmup": 1, "max_steps": 2, "entropy_coef": 0.1}
    trainer = make_trainer(policy, LOW, critic="lora", **options)
    moved = []
    for _ in range(2):
        before = [p.detach().clone() for p in policy.adapter_parameters()]
        trainer.step()
        trainer.done += 1
        pairs = zip(before, policy.adapter_parameters(), strict=True)
        moved.append(not all(torch.equal(a, b) for a, b in pairs))
    assert moved == [False, True]


def test_policy_and_critic_are_clipped_apart(make_policy: Callable[..., Policy]) -> None:
    trainer = make_trainer(make_policy(num_layers=1), LOW, max_grad_norm=1.0)
    assert isinstance(trainer, PPO)
    own, critic = (group["params"] for group in trainer.optimizer.param_groups)
    for parameter in own:
        parameter.grad = torch.zeros_like(parameter)
    own[0].grad.view(-1)[0] = 0.5
    for parameter in critic:
        parameter.grad = torch.full_like(parameter, 1e3)
    assert trainer.clipped() == pytest.approx(0.5)
    assert float(own[0].grad.view(-1)[0]) == 0.5, "the critic's gradient is none of its business"
    assert float(torch.stack([p.grad.norm() for p in critic]).norm()) == pytest.approx(
        1.0, rel=1e-3
    )


def test_shares_of_the_terms_are_logged(make_policy: Callable[..., Policy]) -> None:
    trainer = make_trainer(make_policy(num_layers=1), LOW, "grpo", batch_size=8, epochs=1)
    found = next(trainer.steps()).metrics
    assert found["reward/share/own"] == pytest.approx(1.0)
