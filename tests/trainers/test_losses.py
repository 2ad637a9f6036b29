"""Losses against explicit loops; signs of gradients."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.trainers.losses import (
    covariances,
    highest,
    k3_loss,
    kl_cov_loss,
    policy_loss,
    value_loss,
)

CLIP = 0.2
RATIOS = (0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0)


def tensors(ratios: tuple[float, ...], advantage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs with these ratios to the old ones, and one advantage for all."""
    old = torch.linspace(-3.0, -0.5, len(ratios))
    new = (old + torch.tensor(ratios).log()).requires_grad_()
    return new, old, torch.full_like(old, advantage)


def gradient(ratio: float, advantage: float) -> float:
    new, old, advantages = tensors((ratio,), advantage)
    loss, _ = policy_loss(new, old, advantages, CLIP)
    loss.backward()
    assert new.grad is not None
    return float(new.grad[0])


# --- policy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # clipped at 1.2
        (0.5, 2.0, -1.0),  # below the range, but not better for it: not clipped
        (0.9, -2.0, 1.8),
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (1.5, -2.0, 3.0),  # above the range, but not better for it: not clipped
    ],
)
def test_policy_loss_of_one_token_by_hand(ratio: float, advantage: float, expected: float) -> None:
    loss, _ = policy_loss(*tensors((ratio,), advantage), CLIP)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip_range", [0.1, 0.2, 0.5])
def test_policy_loss_equals_a_loop_over_tokens(clip_range: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(40, generator=generator)
    new = old + 0.5 * torch.randn(40, generator=generator)
    advantage = torch.randn(40, generator=generator)
    loss, metrics = policy_loss(new, old, advantage, clip_range)
    total = ratios = clipped = kl = 0.0
    for n, o, a in zip(new.tolist(), old.tolist(), advantage.tolist(), strict=True):
        ratio = exp(n - o)
        bounded = min(max(ratio, 1 - clip_range), 1 + clip_range)
        total -= min(ratio * a, bounded * a)
        ratios += ratio
        clipped += bounded != ratio
        kl += ratio - 1 - (n - o)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert metrics["policy/ratio"] == pytest.approx(ratios, rel=1e-5)
    assert metrics["policy/clip_fraction"] == clipped
    assert metrics["policy/approx_kl"] == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize(("advantage", "sign"), [(2.0, -1), (-2.0, 1)])
@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.1])
def test_a_better_token_is_made_more_likely(ratio: float, advantage: float, sign: int) -> None:
    found = gradient(ratio, advantage)
    assert found * sign > 0
    new, old, advantages = tensors((ratio,), advantage)
    before, _ = policy_loss(new, old, advantages, CLIP)
    after, _ = policy_loss(new + 0.01, old, advantages, CLIP)
    assert (float((after - before).detach()) < 0) == (advantage > 0)


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient() -> None:
    old = torch.tensor([-1.0, -2.0, -0.3])
    advantage = torch.tensor([1.5, -0.5, 2.0])
    new = old.clone().requires_grad_()
    loss, metrics = policy_loss(new, old, advantage, CLIP)
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == [-1.5, 0.5, -2.0]  # of -sum A logprob
    assert metrics == {"policy/ratio": 3.0, "policy/clip_fraction": 0.0, "policy/approx_kl": 0.0}


@pytest.mark.parametrize(
    ("ratio", "advantage"), [(1.21, 1.0), (3.0, 0.1), (0.79, -1.0), (0.1, -0.1)]
)
def test_no_gradient_where_clipped(ratio: float, advantage: float) -> None:
    assert gradient(ratio, advantage) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage"), [(0.5, 1.0), (1.19, 1.0), (0.81, -1.0), (1.5, -1.0)]
)
def test_the_gradient_where_not_clipped(ratio: float, advantage: float) -> None:
    assert gradient(ratio, advantage) == pytest.approx(-advantage * ratio, rel=1e-5)


def test_no_gradient_flows_into_the_old_log_probs_of_a_batch() -> None:
    new, old, advantages = tensors(RATIOS, 1.0)
    loss, _ = policy_loss(new, old, advantages, CLIP)
    loss.backward()
    assert old.grad is None
    assert advantages.grad is None


def test_losses_of_parts_add_up_to_the_loss_of_the_whole() -> None:
    new, old, advantages = (x.detach() for x in tensors(RATIOS, 0.7))
    whole, metrics = policy_loss(new, old, advantages, CLIP)
    parts = [
        policy_loss(new[part], old[part], advantages[part], CLIP)
        for part in (slice(0, 2), slice(2, 7))
    ]
    assert float(whole) == pytest.approx(sum(float(loss) for loss, _ in parts), rel=1e-6)
    for key, value in metrics.items():
        assert value == pytest.approx(sum(found[key] for _, found in parts), rel=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 2.0])
def test_approximate_kl_is_positive_on_both_sides(ratio: float) -> None:
    _, metrics = policy_loss(*tensors((ratio,), 1.0), CLIP)
    assert metrics["policy/approx_kl"] == pytest.approx(ratio - 1 - log(ratio), rel=1e-4)
    assert metrics["policy/approx_kl"] > 0


# --- value --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, -0.9),  # within the range: the plain squared error
        (0.9, 1.0, 0.0, 0.5 * 0.9**2, 0.9),
        (1.8, 1.0, 2.0, 0.5 * 0.8**2, 0.0),  # clipped to 1.2, which is further off: no gradient
        (0.2, 1.0, 0.0, 0.5 * 0.8**2, 0.0),  # clipped to 0.8
        (1.8, 1.0, 1.0, 0.5 * 0.8**2, 0.8),  # out of range and too far: it is pulled back
        (0.2, 1.0, 2.0, 0.5 * 1.8**2, -1.8),
        (2.0, 2.0, 2.0, 0.0, 0.0),
    ],
)
def test_value_loss_by_hand(
    value: float, old: float, target: float, loss: float, slope: float
) -> None:
    new = torch.tensor([value], requires_grad=True)
    found, metrics = value_loss(new, torch.tensor([old]), torch.tensor([target]), CLIP)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)
    assert metrics == {"critic/mean_squared_error": pytest.approx((value - target) ** 2, rel=1e-5)}
    found.backward()
    assert new.grad is not None
    assert float(new.grad[0]) == pytest.approx(slope, rel=1e-5)


def test_value_loss_equals_a_loop_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    value, old, target = torch.randn(3, 40, generator=generator)
    loss, metrics = value_loss(value, old, target, CLIP)
    total = squared = 0.0
    for v, o, r in zip(value.tolist(), old.tolist(), target.tolist(), strict=True):
        near = min(max(v, o - CLIP), o + CLIP)
        total += 0.5 * max((v - r) ** 2, (near - r) ** 2)
        squared += (v - r) ** 2
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert metrics["critic/mean_squared_error"] == pytest.approx(squared, rel=1e-5)


# --- KL -----------------------------------------------------------------------------------------


def test_k3_by_hand() -> None:
    # r = 1/2 and r = 2.
    loss, metrics = k3_loss(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log())
    expected = (0.5 - 1 + log(2)) + (2 - 1 - log(2))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert metrics == {"policy/k3_nats_per_token": pytest.approx(expected, rel=1e-5)}


def expected_k3(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean over the policy's own samples of each token's k3, with the samples held fixed."""
    log_p = logits.log_softmax(-1)
    each = [k3_loss(log_p[i : i + 1], reference.log()[i : i + 1])[0] for i in range(len(logits))]
    return (log_p.exp().detach() * torch.stack(each)).sum()


def test_k3_averages_to_the_kl_and_its_gradient_is_that_of_the_reverse_kl() -> None:
    logits = torch.tensor([0.9, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    found = expected_k3(logits, reference)
    p = logits.softmax(-1)
    assert float(found.detach()) == pytest.approx(float((p * (p / reference).log()).sum()))
    (slope,) = torch.autograd.grad(found, logits)
    (expected,) = torch.autograd.grad((reference * (reference / p).log()).sum(), logits)
    torch.testing.assert_close(slope, expected)


def test_k1_pulls_as_a_reward_and_k3_does_not() -> None:
    """Why each stands where it stands: exact policy gradients of E[estimate], estimate held fixed.

    Near the reference, k3 as a reward hardly pulls at all.
    """
    reference = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    logits = (reference.log() + torch.tensor([0.05, -0.02, 0.0])).requires_grad_()
    log_p = logits.log_softmax(-1)
    p, log_r = log_p.exp().detach(), (reference.log() - log_p).detach()
    (kl,) = torch.autograd.grad((log_p.exp() * (log_p - reference.log())).sum(), logits)
    pulls = []
    for estimate in (-log_r, log_r.exp() - 1 - log_r):
        log_p = logits.log_softmax(-1)
        pulls.append(torch.autograd.grad((p * estimate * log_p).sum(), logits)[0])
    torch.testing.assert_close(pulls[0], kl)
    assert float(pulls[1].norm()) < 0.05 * float(kl.norm())


@pytest.mark.parametrize(("ratio", "sign"), [(2.0, 1), (0.5, -1)])
def test_k3_pulls_towards_the_reference(ratio: float, sign: int) -> None:
    """A token that became likelier than under the reference is made less likely again."""
    logprob = torch.tensor([log(0.2 * ratio)], requires_grad=True)
    loss, _ = k3_loss(logprob, torch.tensor([log(0.2)]))
    loss.backward()
    assert logprob.grad is not None
    assert float(logprob.grad[0]) * sign > 0


# --- KL-Cov -------------------------------------------------------------------------------------


def test_covariances_by_hand() -> None:
    # Means -2 and 1: likely and good, unlikely and bad, unlikely and good.
    found = covariances(np.array([-1.0, -2.0, -3.0]), np.array([3.0, -2.0, 2.0]))
    assert found.tolist() == [1.0 * 2.0, 0.0 * -3.0, -1.0 * 1.0]


def test_covariances_average_to_the_covariance() -> None:
    logprob, advantage = np.random.default_rng(0).normal(size=(2, 50))
    expected = np.cov(logprob, advantage, bias=True)[0, 1]
    assert covariances(logprob, advantage).mean() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, [True, False, False, True, False]),
        (0.01, [False, False, False, True, False]),  # at least one
        (1.0, [True, False, False, True, True]),  # none at or below 0
    ],
)
def test_the_highest_share_by_hand(share: float, expected: list[bool]) -> None:
    assert highest(np.array([2.0, -1.0, 0.0, 3.0, 1.0]), share).tolist() == expected


def test_where_nothing_covaries_no_token_is_held_back() -> None:
    assert not highest(covariances(np.array([-1.0, -2.0]), np.array([0.5, 0.5])), 1.0).any()


def test_kl_cov_by_hand() -> None:
    """Tokens that became twice, half and four times as likely; the last is not chosen."""
    new = torch.tensor([0.5, 0.25, 0.8]).log().requires_grad_()
    old, chosen = torch.tensor([0.25, 0.5, 0.2]).log(), torch.tensor([1.0, 1.0, 0.0])
    loss, metrics = kl_cov_loss(new, old, chosen)
    expected = (2 - 1 - log(2)) + (0.5 - 1 + log(2))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert metrics == {"policy/kl_cov_nats_per_token": pytest.approx(expected, rel=1e-5)}
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([1.0, -0.5, 0.0], rel=1e-5)  # rho - 1: back to old


def test_kl_cov_averages_to_the_kl_from_the_sampling_policy() -> None:
    old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(-1)
    each = [kl_cov_loss(log_p[i : i + 1], old.log()[i : i + 1], torch.ones(1)) for i in range(3)]
    found = (old * torch.stack([loss for loss, _ in each])).sum()
    expected = (old * (old.log() - log_p)).sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()))
    slopes = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes)
