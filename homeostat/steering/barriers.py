"""Barriers: how far a student may drift from its reference while it learns; pure functions.

    d_t = KL between student and reference at token t, over the whole vocabulary      nats
    D   = mean, root mean square, 95th percentile, maximum or CVaR of d over the tokens
    barrier = coef relu(D - tau)

A loop of a few tokens in an otherwise sound text hardly moves the mean, but moves the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.config.checks import require_one_of
from homeostat.config.steering import AGGREGATES, DIVERGENCES, BarrierConfig
from homeostat.models.logprobs import Unembed, in_chunks, token_logprobs

LoraPair = tuple[Tensor, Tensor, float]  # A [rank, in], B [out, rank], scale

# Nats squared. At a fresh adapter every d is 0, where the slope of a square root is infinite.
RMSE_EPSILON = 1e-8
PERCENTILE = 0.95
WORST = 20  # CVaR is the mean of the worst 1 / WORST of the tokens


def completion_statistics(
    hidden: Float[Tensor, "R D"],
    targets: Int[Tensor, " R"],
    unembed: Unembed,
    ref_hidden: Float[Tensor, "R D"] | None = None,
    kind: str = "none",
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"] | None]:
    """-log p of each token and its divergence from the reference, both in nats.

    Logits exist a chunk of positions at a time; with gradients and several chunks, each is computed
    again in the backward pass. The student's softmax serves both numbers.

    Args:
        hidden: Final hidden states that predict the tokens, from `predicting_hidden`.
        targets: The tokens.
        unembed: Hidden states to float32 logits.
        ref_hidden: The same hidden states of the reference; not needed for ``none``.
        kind: ``kl_rev`` is KL(student || reference), ``kl_fwd`` KL(reference || student), ``none``
            gives None instead of divergences.

    Raises:
        ValueError: The kind is unknown, or has no reference to measure from.
    """
    require_one_of("kind", kind, DIVERGENCES)
    if kind != "none" and ref_hidden is None:
        raise ValueError(f"kind={kind} needs ref_hidden; use none where there is no reference.")
    if kind == "none":
        return -token_logprobs(hidden, targets, unembed), None
    nll, divergence = in_chunks(
        partial(_nll_and_divergence, kind), unembed, hidden, targets, ref_hidden
    )
    return nll, divergence


def _nll_and_divergence(
    kind: str, unembed: Unembed, hidden: Tensor, targets: Tensor, ref_hidden: Tensor
) -> tuple[Tensor, Tensor]:
    log_p = unembed(hidden).log_softmax(dim=-1)
    nll = -log_p.gather(-1, targets[:, None])[:, 0]
    log_q = unembed(ref_hidden).log_softmax(dim=-1)
    first, second = (log_p, log_q) if kind == "kl_rev" else (log_q, log_p)
    # The difference first: near the reference two large sums would cancel badly.
    return nll, torch.einsum("rv,rv->r", first.exp(), first - second)


def aggregate_divergence(divergence: Float[Tensor, " R"], kind: str) -> Float[Tensor, ""]:
    """One number for the divergences of some tokens, nats.

    Args:
        divergence: Of at least one token.
        kind: ``mean``; ``rmse``, sqrt(mean(d^2) + 1e-8); ``p95``, the 95th percentile, linear
            between two tokens; ``max``; ``cvar``, the mean of the worst 5%, rounded up.

    Raises:
        ValueError: The kind is unknown.
    """
    require_one_of("kind", kind, AGGREGATES)
    if kind == "rmse":
        return (divergence.square().mean() + RMSE_EPSILON).sqrt()
    if kind == "p95":
        return torch.quantile(divergence, PERCENTILE)
    if kind == "max":
        return divergence.max()
    if kind == "cvar":
        return divergence.topk(-(-len(divergence) // WORST)).values.mean()
    return divergence.mean()


def aggregates(divergence: Float[Tensor, " R"]) -> dict[str, float]:
    """Every aggregate by name, nats."""
    values = torch.stack([aggregate_divergence(divergence.detach(), kind) for kind in AGGREGATES])
    return dict(zip(AGGREGATES, values.tolist(), strict=True))


def barrier_loss(value: Float[Tensor, ""], tau: float) -> Float[Tensor, ""]:
    """By how much the aggregated divergence is above ``tau``, nats; 0, and no slope, below it."""
    return torch.relu(value - tau)


def gradient_norm(term: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> float:
    """L2 norm of a term's gradient; its graph is used up."""
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, parameters, materialize_grads=True)
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def coefficient(config: BarrierConfig, round: int) -> float:
    """What the barrier weighs at the start of a round.

        coef (1 + round)^coef_power

    Args:
        config: Of the barrier.
        round: From 0.
    """
    return float(config.coef * (1 + round) ** config.coef_power)


class FixedControl:
    """A barrier whose weight stays what it is throughout a round."""

    def __init__(self, config: BarrierConfig, tau: float, round: int) -> None:
        self.config = config
        self.tau = tau
        self.coef = coefficient(config, round)

    def loss(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What the barrier adds to the loss at an aggregated divergence."""
        return self.coef * barrier_loss(value, self.tau)

    def update(self, value: float) -> None:
        """Take in what one step showed.

        Args:
            value: The aggregated divergence of its minibatch, nats.
        """

    def state_dict(self) -> dict[str, Any]:
        """Every number that `update` has moved."""
        return {"coef": self.coef, "tau": self.tau}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.coef, self.tau = float(state["coef"]), float(state["tau"])


class DualControl(FixedControl):
    """A barrier whose weight rises while D is above tau and falls while it is below.

        coef <- max(0, coef + dual_lr (D - tau))

    What the weight has moved is the sum of D's errors so far, so that D averages tau for as long as
    the weight stays bounded and above 0: tau is a set point.

    Source: dual ascent, Boyd et al. 2011, "Distributed optimization and statistical learning via
    the alternating direction method of multipliers", section 2.1, with an inequality as constraint.
    **Differs:** the loss has relu(D - tau) rather than D - tau, so that a student that is nearer
    than tau is never pushed away; one gradient step is made instead of a minimisation.
    """

    def update(self, value: float) -> None:
        """Move the weight by the error of D, but never below 0."""
        self.coef = max(0.0, self.coef + self.config.dual_lr * (value - self.tau))


class RateControl(FixedControl):
    """A barrier whose tau moves until it fires in ``firing_rate`` of the steps.

        log tau <- log tau + rate_lr ([D > tau] - firing_rate)

    Over n steps the share is off by log(last tau / first tau) / (rate_lr n), whatever D does, so
    that barriers of different aggregates, each with a tau of its own, are compared at equal firing.
    Tau is handed on from round to round.

    Source: quantile tracking by stochastic approximation, Robbins & Monro 1951. **Differs:** on the
    logarithm, so that aggregates of different scale are followed alike.
    """

    def update(self, value: float) -> None:
        """Raise tau where it fired, lower it where it did not."""
        error = float(value > self.tau) - self.config.firing_rate
        self.tau *= math.exp(self.config.rate_lr * error)


def make_control(config: BarrierConfig, tau: float, round: int) -> FixedControl:
    """The control that the config names, as it is at the start of a round."""
    kinds = {"fixed": FixedControl, "dual": DualControl, "rate": RateControl}
    return kinds[config.control](config, tau, round)


def quantile_tau(pilot_values: Sequence[float], firing_rate: float) -> float:
    """The tau above which a share of a pilot's values lies.

    It depends on the order of the values alone, so that barriers of different scale, each with the
    tau of its own values, fire equally often on the same pilot.

    Args:
        pilot_values: One aggregate of every step of the pilot, nats.
        firing_rate: The share, 0..1; exact to one step.

    Raises:
        ValueError: The pilot is empty.
    """
    if not len(pilot_values):
        raise ValueError("a pilot without steps gives no tau; give it at least one completion.")
    return float(np.quantile(pilot_values, 1 - firing_rate))


def spectral_norm(
    down: Float[Tensor, "K I"], up: Float[Tensor, "O K"], scale: float
) -> Float[Tensor, ""]:
    """Largest singular value of scale B A, without forming B A.

    B = Q_B R_B and A^T = Q_A R_A, so B A has the singular values of the small R_B R_A^T. Its first
    pair of vectors u, v is held fixed and u^T B A v returned: equal to the norm, and with the
    norm's gradient. That of a QR decomposition does not exist for the B = 0 of a fresh adapter; of
    the many slopes a norm has there, this one is 0.

    Args:
        down: A; K the rank, I the width that is read.
        up: B; O the width that is written.
        scale: What the adapter's output is multiplied by, > 0.
    """
    with torch.no_grad():
        left, core_up = torch.linalg.qr(up.float())
        right, core_down = torch.linalg.qr(down.float().T)
        u, s, vh = torch.linalg.svd(core_up @ core_down.T)
        first = (left @ u[:, 0]) * (s[0] > 0)
        second = right @ vh[0]
    norm: Float[Tensor, ""] = scale * (first.to(up) @ up) @ (down @ second.to(down))
    return norm


def spectral_penalty(adapters: Sequence[LoraPair]) -> Float[Tensor, ""]:
    """Mean of the `spectral_norm` of every adapted layer.

    Args:
        adapters: A, B and scale of each; at least one.
    """
    return torch.stack([spectral_norm(*adapter) for adapter in adapters]).mean()
