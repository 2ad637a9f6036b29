"""Healing on the tiny model: gradients against slow loops, what it moves, and what it must not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from configs import barrier_config, heal_config
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from homeostat.config.steering import AGGREGATES, BarrierConfig, HealConfig
from homeostat.errors import HomeostatError
from homeostat.models import logprobs
from homeostat.models.adapters import Policy
from homeostat.steering.barriers import quantile_tau
from homeostat.steering.completions import Completion
from homeostat.steering.heal import Heal, HealRound, lora_pairs
from homeostat.steering.heal_result import HealResult
from homeostat.steering.optimizer import rate_at
from homeostat.types import Conversation, Turn

SAID = (
    "calm and kind",
    "kind and calm words",
    "be kind",
    "calm words and kind words",
    "and so be calm",
    "kind",
    "words of calm",
    "so kind and so calm",
)
SMALL = heal_config(epochs=1, minibatch=4, validation=0.0, max_grad_norm=1e9)
PLAIN = barrier_config(divergence="none")
IDS = torch.tensor([[5, 80, 33, 12, 200], [9, 9, 41, 7, 101]])

MakePolicy = Callable[..., Policy]
Stir = Callable[..., None]


@pytest.fixture
def make_policy(make_policy: MakePolicy) -> MakePolicy:
    """Two blocks are enough: nothing here depends on the depth."""
    return partial(make_policy, num_layers=2)


def completions(policy: Policy, texts: Sequence[str] = SAID) -> list[Completion]:
    """Replies of different length to prompts of different length."""
    found = []
    for number, text in enumerate(texts):
        asked = Conversation((Turn("user", "well? " * (1 + number % 3)),))
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(Completion(tuple(policy.encode(asked).ids), tuple(ids)))
    return found


def healing(
    policy: Policy,
    config: HealConfig = SMALL,
    barrier: BarrierConfig = PLAIN,
    *,
    lr: float = 0.01,
    seed: int = 0,
    round: int = 0,
    tau: float | None = 0.5,
    reference: int = 0,
) -> Heal:
    of_round = HealRound(round, seed, lr, tau, reference)
    return Heal(config, barrier, policy=policy, round=of_round)


def weights(policy: Policy) -> list[Tensor]:
    return [p.detach().clone() for p in policy.adapter_parameters()]


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@torch.no_grad()
def logits(policy: Policy) -> Tensor:
    found: Tensor = policy.model(IDS).logits
    return found


@contextmanager
def recorded() -> Iterator[list[list[Tensor]]]:
    """The gradients that each optimiser step within the context follows."""
    seen: list[list[Tensor]] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


def plain_log_probs(policy: Policy, completion: Completion) -> Tensor:
    """Log-probabilities over the vocabulary before each token, from the plain model alone."""
    ids = torch.tensor([[*completion.prompt, *completion.ids]])
    found: Tensor = policy.model(ids).logits[0].float().log_softmax(-1)
    return found[len(completion.prompt) - 1 : -1]


def slow_parts(
    policy: Policy, given: Sequence[Completion], kind: str = "kl_rev"
) -> tuple[Tensor, Tensor]:
    """Mean NLL and mean divergence from the base over all tokens, one completion at a time."""
    nll, divergence, tokens = torch.zeros(()), torch.zeros(()), 0
    for completion in given:
        log_p = plain_log_probs(policy, completion)
        with torch.no_grad(), policy.reference():
            log_q = plain_log_probs(policy, completion)
        for position, token in enumerate(completion.ids):
            p, q = log_p[position], log_q[position]
            nll = nll - p[token]
            first, second = (p, q) if kind == "kl_rev" else (q, p)
            divergence = divergence + (first.exp() * (first - second)).sum()
            tokens += 1
    return nll / tokens, divergence / tokens


def assert_close(own: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    largest = max(float(e.abs().max()) for e in expected)
    assert largest > 1e-3
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * largest)


# --- the gradient -------------------------------------------------------------------------------


def test_gradient_of_the_nll_equals_a_slow_loop_over_completions(
    make_policy: MakePolicy, stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    given = completions(policy)
    nll, _ = slow_parts(policy, given)
    expected = torch.autograd.grad(nll, policy.adapter_parameters())
    with recorded() as seen:
        result = healing(policy, replace(SMALL, minibatch=8)).run(given)
    assert len(seen) == 1
    assert result.steps[0]["nll"] == pytest.approx(float(nll.detach()), rel=1e-5)
    assert_close(seen[0], expected)


@pytest.mark.parametrize("kind", ["kl_rev", "kl_fwd"])
@pytest.mark.parametrize("micro_batch_tokens", [10_000, 1], ids=["kept", "recomputed"])
def test_gradient_with_a_barrier_equals_a_slow_loop_over_completions(
    kind: str, micro_batch_tokens: int, make_policy: MakePolicy, stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    given = completions(policy)
    nll, divergence = slow_parts(policy, given, kind)
    loss = nll + 3.0 * torch.relu(divergence - 0.01)
    expected = torch.autograd.grad(loss, policy.adapter_parameters())
    config = replace(SMALL, minibatch=8, micro_batch_tokens=micro_batch_tokens)
    barrier = barrier_config(divergence=kind, aggregate="mean", coef=3.0)
    with recorded() as seen:
        result = healing(policy, config, barrier, tau=0.01).run(given)
    assert result.steps[0]["divergence"] == pytest.approx(float(divergence.detach()), rel=1e-4)
    assert result.steps[0]["fired"]
    assert_close(seen[0], expected)


def test_a_barrier_that_is_not_reached_adds_nothing(make_policy: MakePolicy, stir: Stir) -> None:
    found = []
    for barrier in (PLAIN, barrier_config(aggregate="max", coef=1e6)):
        policy = make_policy()
        stir(policy)
        with recorded() as seen:
            healing(policy, SMALL, barrier, tau=1e9).run(completions(policy))
        found.append(seen[0])
    assert equal(*found)


def test_chunks_of_logits_change_no_gradient(
    make_policy: MakePolicy, stir: Stir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for limit in (2**24, 7 * 258):
        monkeypatch.setattr(logprobs, "CHUNK_LOGITS", limit)
        policy = make_policy()
        stir(policy)
        with recorded() as seen:
            healing(policy, SMALL, barrier_config(), tau=0.0).run(completions(policy))
        found.append(seen[0])
    assert_close(*found)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_padding_and_shared_prompts_change_nothing(
    aggregate: str, make_policy: MakePolicy, stir: Stir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row alone per reference pass, and no prompt read once for all, against all at once."""
    found = []
    for tokens, shared in ((4096, True), (1, False)):
        policy = make_policy()
        stir(policy)
        monkeypatch.setattr("homeostat.steering.heal.READ_TOKENS", tokens)
        if not shared:
            monkeypatch.setattr("homeostat.models.forward.can_share", lambda _: False)
        barrier = barrier_config(aggregate=aggregate, coef=2.0)
        with recorded() as seen:
            result = healing(policy, SMALL, barrier, tau=0.0).run(completions(policy))
        found.append((seen[0], result.steps[0]["divergence"]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    assert_close(found[0][0], found[1][0])


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_first_step_from_a_fresh_adapter_is_finite_and_follows_the_nll(
    aggregate: str, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    given = completions(policy)
    nll, _ = slow_parts(policy, given)
    expected = torch.autograd.grad(nll, policy.adapter_parameters())
    barrier = barrier_config(aggregate=aggregate, coef=10.0)
    with recorded() as seen:
        result = healing(policy, replace(SMALL, minibatch=8), barrier, tau=0.0).run(given)
    assert result.steps[0]["divergence"] == pytest.approx(0.0, abs=2e-4)
    assert_close(seen[0], expected)


def test_gradients_are_clipped_and_weights_decay(make_policy: MakePolicy, stir: Stir) -> None:
    norms = []
    for decay in (0.0, 5.0):
        policy = make_policy()
        stir(policy)
        config = replace(SMALL, max_grad_norm=0.1, weight_decay=decay)
        with recorded() as seen:
            result = healing(policy, config).run(completions(policy))
        assert result.steps[0]["grad_norm"] > 0.1
        assert float(torch.stack([g.norm() for g in seen[0]]).norm()) == pytest.approx(
            0.1, rel=0.01
        )
        norms.append(float(torch.stack([w.norm() for w in weights(policy)]).norm()))
    assert norms[1] < norms[0]


def test_spectral_penalty_is_part_of_the_loss_and_of_the_gradient(
    make_policy: MakePolicy, stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    given = completions(policy)
    nll, _ = slow_parts(policy, given)
    norms = [
        scale * torch.linalg.matrix_norm(up @ down, 2) for down, up, scale in lora_pairs(policy)
    ]
    assert len(norms) == 14  # 7 linear layers in each of 2 blocks
    loss = nll + 0.5 * torch.stack(norms).mean()
    expected = torch.autograd.grad(loss, policy.adapter_parameters())
    with recorded() as seen:
        config = replace(SMALL, minibatch=8, spectral_coef=0.5)
        result = healing(policy, config).run(given)
    assert result.steps[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_close(seen[0], expected)


def test_scale_of_the_spectral_norm_is_the_adapters(make_policy: MakePolicy) -> None:
    assert {scale for _, _, scale in lora_pairs(make_policy(rank=4))} == {2.0}  # alpha 8


def test_measured_gradient_norms_are_those_of_the_two_parts(
    make_policy: MakePolicy, stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    given = completions(policy)
    nll, divergence = slow_parts(policy, given)
    own, other = (
        float(
            torch.stack(
                [
                    g.norm()
                    for g in torch.autograd.grad(t, policy.adapter_parameters(), retain_graph=True)
                ]
            ).norm()
        )
        for t in (nll, 3.0 * divergence)
    )
    barrier = barrier_config(aggregate="mean", coef=3.0)
    (row,) = healing(policy, replace(SMALL, minibatch=8), barrier, tau=0.01).run(given).steps
    assert row["nll_grad_norm"] == pytest.approx(own, rel=1e-3)
    assert row["barrier_grad_norm"] == pytest.approx(other, rel=1e-3)
    assert row["gradient_ratio"] == pytest.approx(other / own, rel=1e-3)


# --- what it learns -----------------------------------------------------------------------------


def test_healing_makes_kept_completions_likely_and_leaves_the_base_as_it_was(
    make_policy: MakePolicy,
) -> None:
    policy = make_policy()
    given = completions(policy)
    with policy.reference():
        base = logits(policy)
    heal = healing(policy, replace(SMALL, epochs=8))
    before = heal.mean_nll(given)
    result = heal.run(given)
    assert before == pytest.approx(float(slow_parts(make_policy(), given)[0].detach()), rel=1e-5)
    assert heal.mean_nll(given) < 0.6 * before
    assert result.metrics["heal/nll"] < 0.7 * before
    with policy.reference():
        assert torch.equal(logits(policy), base)
    assert (logits(policy) - base).abs().max() > 0.1
    assert all(p.grad is None for p in policy.model.parameters())


def settled(result: HealResult) -> float:
    """Mean D of the last 20 steps, nats."""
    return sum(row["divergence"] for row in result.steps[-20:]) / 20


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_heavy_barrier_keeps_the_divergence_near_tau(
    aggregate: str, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    barrier = barrier_config(aggregate=aggregate, coef=1000.0)
    config = replace(SMALL, epochs=40, minibatch=8, max_grad_norm=1.0)
    result = healing(policy, config, barrier, lr=0.004, tau=0.3).run(completions(policy))
    assert settled(result) == pytest.approx(0.3, rel=0.2)


@pytest.mark.slow
def test_without_weight_the_barrier_is_passed_by_far(make_policy: MakePolicy) -> None:
    policy = make_policy()
    config = replace(SMALL, epochs=40, minibatch=8, max_grad_norm=1.0)
    barrier = barrier_config(coef=0.0)
    result = healing(policy, config, barrier, lr=0.004, tau=0.3).run(completions(policy))
    assert min(result.steps[-1]["aggregates"].values()) > 1.0
    assert result.metrics["heal/fired"] > 0.8
    assert result.notice is None


@pytest.mark.slow
@pytest.mark.parametrize("coef", [0.0, 20.0])
def test_dual_control_brings_the_divergence_to_tau_from_either_side(
    coef: float, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    barrier = barrier_config(aggregate="mean", control="dual", coef=coef, dual_lr=0.5)
    config = replace(SMALL, epochs=60, minibatch=8, max_grad_norm=1.0)
    result = healing(policy, config, barrier, lr=0.003, tau=0.5).run(completions(policy))
    assert settled(result) == pytest.approx(0.5, rel=0.1)
    assert result.metrics["heal/coef"] != coef


def test_weight_of_the_barrier_follows_the_round(make_policy: MakePolicy) -> None:
    policy = make_policy()
    barrier = barrier_config(coef=0.5, coef_power=2.0)
    result = healing(policy, SMALL, barrier, round=2).run(completions(policy))
    assert result.metrics["heal/coef"] == pytest.approx(4.5)
    assert {row["coef"] for row in result.steps} == {4.5}


# --- reference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [0, 1])
def test_divergence_is_measured_from_the_reference(
    reference: int, make_policy: MakePolicy, stir: Stir
) -> None:
    """A fresh second round is what the first one left, which is far from the base."""
    policy = make_policy()
    stir(policy)
    policy.add_round(seed=5)
    given = completions(policy)
    _, from_base = slow_parts(policy, given)
    config, barrier = replace(SMALL, minibatch=8), barrier_config(aggregate="mean")
    (row,) = healing(policy, config, barrier, round=1, reference=reference).run(given).steps
    expected = 0.0 if reference else float(from_base.detach())
    assert float(from_base.detach()) > 0.05
    assert row["divergence"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_tau_that_is_to_follow_has_a_logarithm(make_policy: MakePolicy) -> None:
    """A pilot of one step sees no divergence at all: the adapter is fresh."""
    policy = make_policy()
    barrier = barrier_config(aggregate="mean", tau="quantile", control="rate")
    config = replace(SMALL, minibatch=8)
    assert healing(policy, config, barrier, tau=None).read_tau(completions(policy)) == 1e-3
    fixed = replace(barrier, control="fixed")
    assert healing(policy, config, fixed, tau=None).read_tau(completions(policy)) == 0


# --- weights ------------------------------------------------------------------------------------


def test_weights_by_a_slow_loop(make_policy: MakePolicy) -> None:
    """The gradient is that of the mean over all tokens of weight times -log p, signs included."""
    policy = make_policy()
    given = completions(policy)[:3]
    drawn = torch.Generator().manual_seed(0)
    weighted = [
        replace(one, weights=tuple(torch.randn(len(one.ids), generator=drawn).tolist()))
        for one in given
    ]
    total, count = torch.zeros(()), 0
    for one in weighted:
        log_probs = plain_log_probs(policy, one)
        for place, (token, weight) in enumerate(zip(one.ids, one.weights or (), strict=True)):
            total = total - weight * log_probs[place, token]
            count += 1
    expected = torch.autograd.grad(total / count, policy.adapter_parameters())
    with recorded() as seen:
        (row,) = healing(policy, replace(SMALL, minibatch=8)).run(weighted).steps
    assert row["nll"] == pytest.approx(float(total.detach()) / count, rel=1e-4)
    for own, slow in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(own, slow, rtol=1e-3, atol=1e-6)


def test_a_weight_of_one_each_is_none(make_policy: MakePolicy) -> None:
    found = []
    for weigh in (False, True):
        policy = make_policy()
        given = completions(policy)
        if weigh:
            given = [replace(one, weights=(1.0,) * len(one.ids)) for one in given]
        healing(policy).run(given)
        found.append(weights(policy))
    assert equal(*found)


# --- learning rate ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        # Half a cosine over the four steps that are left: 0, 45, 90 and 135 degrees.
        ("cosine", 1 / 3, [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
        ("cosine", 0.0, [1, 0.933013, 0.75, 0.5, 0.25, 0.066987]),
    ],
)
def test_the_rate_over_a_round_by_hand(
    schedule: str, warmup: float, expected: list[float], make_policy: MakePolicy
) -> None:
    config = replace(SMALL, schedule=schedule, warmup=warmup, epochs=3)
    assert [rate_at(config, 6, step) for step in range(6)] == pytest.approx(expected, abs=1e-6)
    policy = make_policy()
    steps = healing(policy, config, lr=0.01).run(completions(policy)).steps  # two in an epoch
    assert [row["lr"] for row in steps] == pytest.approx([0.01 * e for e in expected], abs=1e-8)


def test_the_optimiser_steps_at_the_rate_that_is_logged(make_policy: MakePolicy) -> None:
    seen: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    policy, config = make_policy(), replace(SMALL, epochs=3, schedule="cosine", warmup=0.3)
    try:
        result = healing(policy, config, lr=0.01).run(completions(policy))
    finally:
        handle.remove()
    assert seen == [row["lr"] for row in result.steps]
    assert len(set(seen)) > 2
    assert result.metrics["optim/lr"] == max(seen) == pytest.approx(0.01)


def test_a_later_round_leaves_earlier_ones_as_they_were(
    make_policy: MakePolicy, stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    first = policy.adapter_parameters()
    before = weights(policy)
    policy.add_round(seed=5)
    healing(policy, SMALL, barrier_config(), round=1, reference=1).run(completions(policy))
    assert equal([p.detach() for p in first], before)
    assert any(bool(up.any()) for _, up, _ in lora_pairs(policy))


def test_the_reference_is_read_once_and_not_in_every_epoch(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    entered = []
    reference = policy.reference

    def counted() -> Any:
        entered.append(1)
        return reference()

    monkeypatch.setattr(policy, "reference", counted)
    healing(policy, replace(SMALL, epochs=5), barrier_config()).run(completions(policy))
    assert len(entered) == 1
    healing(policy, replace(SMALL, epochs=5), PLAIN).run(completions(policy))
    assert len(entered) == 1


# --- pilot --------------------------------------------------------------------------------------


def test_pilot_leaves_adapter_and_random_numbers_as_they_were(
    make_policy: MakePolicy, stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    before, random = weights(policy), torch.get_rng_state()
    found = healing(policy, SMALL, barrier_config(), tau=None).pilot(completions(policy))
    assert equal(weights(policy), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in policy.adapter_parameters())
    assert tuple(found) == AGGREGATES
    assert {len(values) for values in found.values()} == {2}


def test_pilot_is_the_first_epoch_without_a_barrier(make_policy: MakePolicy) -> None:
    config = replace(SMALL, minibatch=2)
    barrier = barrier_config(aggregate="max", coef=100.0)
    policy = make_policy()
    found = healing(policy, config, barrier, tau=None).pilot(completions(policy))
    result = healing(policy, config, replace(barrier, coef=0.0)).run(completions(policy))
    assert found["max"][-1] > 0.1
    for kind, values in found.items():
        assert values == [row["aggregates"][kind] for row in result.steps]


def test_adapter_is_as_it_was_after_a_pilot_that_fails(make_policy: MakePolicy) -> None:
    policy = make_policy()
    before = weights(policy)
    with pytest.raises(HomeostatError, match=r"lower trainer\.lr"):
        healing(policy, replace(SMALL, minibatch=1), barrier_config(), lr=1e30).pilot(
            completions(policy)
        )
    assert equal(weights(policy), before)


def test_tau_is_read_off_the_barriers_own_aggregate(make_policy: MakePolicy) -> None:
    policy = make_policy()
    given = completions(policy)
    config = replace(SMALL, minibatch=1)
    found = []
    for aggregate in AGGREGATES:
        barrier = barrier_config(aggregate=aggregate, tau="quantile", firing_rate=0.25)
        heal = healing(policy, config, barrier, tau=None)
        with pytest.raises(ValueError, match="tau=None is no threshold"):
            heal.run(given)
        pilot = heal.pilot(given)[aggregate]
        assert heal.read_tau(given) == heal.tau == quantile_tau(pilot, 0.25)
        assert sum(value > (heal.tau or 0.0) for value in pilot) == 2
        found.append(heal.tau)
    assert len(set(found)) >= 4  # one token in twenty of so few is the largest


def test_without_a_divergence_tau_is_infinite(make_policy: MakePolicy) -> None:
    policy = make_policy()
    heal = healing(policy, SMALL, replace(PLAIN, tau="quantile"), tau=None)
    assert heal.read_tau(completions(policy)) == float("inf")


# --- held out -----------------------------------------------------------------------------------


def test_held_out_completions_are_measured_and_never_trained_on(make_policy: MakePolicy) -> None:
    """Replacing any of them changes no weight; replacing any other does."""
    config = replace(SMALL, epochs=2, validation=0.25)

    def healed(replaced: int | None) -> tuple[list[Tensor], HealResult]:
        policy = make_policy()
        given = completions(policy)
        if replaced is not None:
            given[replaced] = Completion(given[replaced].prompt, (1, 2, 3))
        result = healing(policy, config, seed=3).run(given)
        return weights(policy), result

    expected, result = healed(None)
    assert len(result.validation_nll) == 3
    same = [number for number in range(8) if equal(healed(number)[0], expected)]
    assert len(same) == 2
    for number in same:
        assert healed(number)[1].validation_nll[0] != result.validation_nll[0]
    policy = make_policy()
    given = [completions(policy)[number] for number in same]
    assert result.validation_nll[0] == pytest.approx(
        float(slow_parts(policy, given)[0].detach()), rel=1e-5
    )
    assert result.metrics["heal/validation_nll_before"] == result.validation_nll[0]
    assert result.metrics["heal/validation_nll"] == result.validation_nll[2]


def test_nothing_is_held_out_where_too_little_is_there(make_policy: MakePolicy) -> None:
    policy = make_policy()
    result = healing(policy, replace(SMALL, validation=0.1)).run(completions(policy)[:4])
    assert result.validation_nll == []
    assert result.metrics["heal/validation_nll"] != result.metrics["heal/validation_nll"]  # NaN


# --- order, log, errors -------------------------------------------------------------------------


def test_order_follows_from_seed_round_and_epoch(make_policy: MakePolicy) -> None:
    def nlls(seed: int, round: int) -> list[float]:
        policy = make_policy()
        config = replace(SMALL, epochs=2, minibatch=1)
        result = healing(policy, config, lr=1e-12, seed=seed, round=round).run(completions(policy))
        return [row["nll"] for row in result.steps]

    found = nlls(0, 0)
    assert nlls(0, 0) == found
    assert sorted(nlls(1, 0)) == pytest.approx(sorted(found), rel=1e-4)
    assert nlls(1, 0) != pytest.approx(found, rel=1e-4)
    assert nlls(0, 1) != pytest.approx(found, rel=1e-4)
    assert sorted(found[:8]) == pytest.approx(sorted(found[8:]), rel=1e-4)
    assert found[:8] != pytest.approx(found[8:], rel=1e-4)


def test_the_same_run_gives_the_same_adapter_to_the_bit(make_policy: MakePolicy) -> None:
    found = []
    for _ in range(2):
        policy = make_policy()
        healing(policy, SMALL, barrier_config(), tau=0.1).run(completions(policy))
        found.append(weights(policy))
    assert equal(*found)


@pytest.mark.parametrize("minibatch", [1, 3, 8, 100])
def test_every_completion_is_in_one_minibatch_of_an_epoch(
    minibatch: int, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    heal = healing(policy, replace(SMALL, epochs=2, minibatch=minibatch))
    told: list[tuple[int, int, int]] = []
    heal.progress = lambda done, total, tokens=0: told.append((done, total, tokens))
    given = completions(policy)
    result = heal.run(given)
    steps = {1: 16, 3: 6, 8: 2, 100: 2}[minibatch]
    assert result.metrics["heal/steps"] == len(result.steps) == steps
    assert [done for done, _, _ in told] == list(range(1, steps + 1))
    assert {total for _, total, _ in told} == {steps}
    assert sum(tokens for _, _, tokens in told) == 2 * sum(len(c.prompt + c.ids) for c in given)


@pytest.mark.parametrize(("limit", "recomputed"), [(10_000, False), (1, True)])
def test_large_minibatches_are_recomputed_and_not_split(
    limit: int, recomputed: bool, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    seen = []
    recomputing = policy.recomputing

    def noted(wanted: bool) -> Any:
        seen.append(wanted)
        return recomputing(wanted)

    monkeypatch.setattr(policy, "recomputing", noted)
    config = replace(SMALL, micro_batch_tokens=limit)
    result = healing(policy, config, barrier_config()).run(completions(policy))
    assert seen == [recomputed] * len(result.steps) == [recomputed] * 2


def test_metrics_and_rows_describe_the_steps(make_policy: MakePolicy) -> None:
    policy = make_policy()
    barrier = barrier_config(aggregate="p95", coef=0.1)
    config = replace(SMALL, epochs=3, minibatch=2, validation=0.25)
    result = healing(policy, config, barrier, tau=0.2).run(completions(policy))
    rows, metrics = result.steps, result.metrics
    assert json.loads(json.dumps(rows)) == rows
    assert [row["epoch"] for row in rows] == [0] * 3 + [1] * 3 + [2] * 3
    assert all(row["divergence"] == row["aggregates"]["p95"] for row in rows)
    assert [row["fired"] for row in rows] == [row["divergence"] > 0.2 for row in rows]
    assert metrics["heal/fired"] == pytest.approx(sum(row["fired"] for row in rows) / 9)
    assert 0 < metrics["heal/fired"] < 1
    measured = [row["gradient_ratio"] is not None for row in rows]
    assert measured == [False, False, True] * 3
    ratios = [row["gradient_ratio"] for row in rows[2::3]]
    assert metrics["heal/gradient_ratio"] == pytest.approx(sum(ratios) / 3)
    for key in ("nll", "divergence"):
        assert metrics[f"heal/{key}"] == pytest.approx(sum(row[key] for row in rows[6:]) / 3)
    norms = [
        scale * torch.linalg.matrix_norm(up @ down, 2) for down, up, scale in lora_pairs(policy)
    ]
    expected = float(torch.stack(norms).mean().detach())
    assert metrics["heal/spectral_norm"] == pytest.approx(expected, rel=1e-4)
    assert metrics["heal/tau"] == 0.2
    assert metrics["optim/lr"] == 0.01


def test_without_a_divergence_what_is_not_measured_is_nan(make_policy: MakePolicy) -> None:
    policy = make_policy()
    result = healing(policy, SMALL, PLAIN, tau=None).run(completions(policy))
    missing = {key for key, value in result.metrics.items() if value != value}
    barrier = {"divergence", "fired", "tau", "coef", "gradient_ratio"}
    held_out = {"validation_nll", "validation_nll_before"}
    assert missing == {f"heal/{name}" for name in barrier | held_out}
    assert {row["divergence"] for row in result.steps} == {None}
    assert result.notice is None


@pytest.mark.parametrize(
    ("tau", "fix"),
    [(50.0, "lower trainer.barrier.tau"), ("quantile", "raise trainer.barrier.firing_rate")],
)
def test_a_barrier_that_never_fires_is_called_by_its_name(
    tau: Any, fix: str, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    result = healing(policy, SMALL, barrier_config(tau=tau), tau=50.0).run(completions(policy))
    assert result.metrics["heal/fired"] == 0
    assert result.notice is not None
    assert result.notice.startswith("the barrier never fired: D stayed below tau=50 ")
    assert result.notice.endswith(f"so this equals divergence=none; {fix}.")


def test_loss_that_is_not_finite_is_refused_with_advice(make_policy: MakePolicy) -> None:
    policy = make_policy()
    config = replace(SMALL, minibatch=1)
    with pytest.raises(HomeostatError, match=r"healing round 3 .* lower trainer\.lr=1e\+30"):
        healing(policy, config, lr=1e30, round=2).run(completions(policy))


@pytest.mark.parametrize("completion", [Completion((), (1, 2)), Completion((1, 2), ())])
def test_completion_without_tokens_is_refused(
    completion: Completion, make_policy: MakePolicy
) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="both must have at least one"):
        healing(policy).run([*completions(policy), completion])


@pytest.mark.parametrize(("count", "share"), [(0, 0.0), (2, 0.9)])
def test_too_few_completions_are_refused(count: int, share: float, make_policy: MakePolicy) -> None:
    policy = make_policy()
    heal = healing(policy, replace(SMALL, validation=share))
    with pytest.raises(HomeostatError, match="leave none to train on"):
        heal.run(completions(policy)[:count])


def test_prompt_and_completion_are_joined_as_they_are() -> None:
    stream = Completion((5, 6, 7), (8, 9)).as_stream()
    assert stream.ids == [5, 6, 7, 8, 9]
    assert stream.response == [False, False, False, True, True]
    assert stream.turn == [-1, -1, -1, 0, 0]
