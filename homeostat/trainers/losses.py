"""Losses: pure functions of tensors that return (loss, metrics), both summed over tokens.

The names of the metrics are those of the means that the trainer makes of them.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from homeostat.types import Metrics

# Of a chunk of logits in the backward pass: log-probabilities, probabilities, and a gradient for
# each use of them.
CHUNK_COPIES = 5


def policy_loss(
    logprob: Float[Tensor, " R"],
    old_logprob: Float[Tensor, " R"],
    advantage: Float[Tensor, " R"],
    clip_range: float,
    clip_range_high: float | None = None,
) -> tuple[Float[Tensor, ""], Metrics]:
    """The clipped surrogate, negated and summed over tokens.

        - sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t),  rho_t = exp(logprob - old)

    with eps_high = eps unless given; a higher one lets improbable tokens rise further.

    Summed rather than averaged, so that gradients of micro-batches add up to the minibatch's.

    Returns:
        The loss, and sums over the tokens: ratio, whether it is out of range, and approx_kl (nats,
        the non-negative estimate rho - 1 - log rho of KL(old || new)).

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7; apart for up and down: Yu et al.
    2025 (DAPO, arXiv 2503.14476), section 3.1.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    log_ratio = logprob - old_logprob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage).sum()
    with torch.no_grad():
        metrics = {
            "policy/ratio": float(ratio.sum()),
            "policy/clip_fraction": float(
                ((ratio < 1 - clip_range) | (ratio > 1 + high)).float().sum()
            ),
            "policy/approx_kl": float((ratio - 1 - log_ratio).sum()),
        }
    return loss, metrics


def value_loss(
    value: Float[Tensor, " R"],
    old_value: Float[Tensor, " R"],
    returns: Float[Tensor, " R"],
    clip_range: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Half the larger of the squared errors of the new and of the clipped value, summed.

    Returns:
        The loss, and the summed squared error of the unclipped value, which the caller averages.

    Source: Schulman et al. 2016's clipped form as in OpenAI baselines' ppo2; it keeps one update
    from moving the critic further than ``clip_range`` away from where advantages were computed.
    """
    near = old_value + (value - old_value).clamp(-clip_range, clip_range)
    error, near_error = (value - returns) ** 2, (near - returns) ** 2
    loss = 0.5 * torch.maximum(error, near_error).sum()
    return loss, {"critic/mean_squared_error": float(error.detach().sum())}


def k3_loss(
    logprob: Float[Tensor, " R"], ref_logprob: Float[Tensor, " R"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """The estimate k3 of KL(policy || reference), summed over tokens.

        sum_t (r_t - 1 - log r_t),  r_t = reference / policy,  each summand >= 0

    Its expected gradient on the policy's own samples is that of KL(reference || policy), which
    agrees with that of KL(policy || reference) near the reference. As a reward k3 would pull
    nowhere: there the two gradients are subtracted from each other. k1 = - log r is the other way
    round: its expected gradient as a loss is 0, and as a reward it is exact.

    Returns:
        The loss, and the same sum as a metric.

    Source: Shao et al. 2024, arXiv 2402.03300, equation 4, after Schulman 2020, "Approximating KL
    divergence" (joschu.net/blog/kl-approx.html).
    """
    log_r = ref_logprob - logprob
    loss = (torch.expm1(log_r) - log_r).sum()
    return loss, {"policy/k3_nats_per_token": float(loss.detach())}


def covariances(
    logprob: Float[np.ndarray, " R"], advantage: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """Each token's summand of the covariance of log-probability and advantage over all tokens.

        (logprob_t - mean logprob) (A_t - mean A)

    A step along the advantages lowers the entropy about in proportion to their mean: where likely
    tokens are the better ones, the policy narrows.

    Source: Cui et al. 2025, arXiv 2505.22617, section 4.2.
    """
    summands: Float[np.ndarray, " R"] = (logprob - logprob.mean()) * (advantage - advantage.mean())
    return summands


def highest(values: Float[np.ndarray, " R"], share: float) -> Bool[np.ndarray, " R"]:
    """Which values are the highest ``share`` of all, at least one, and above 0.

    Source: the tokens of KL-Cov, Cui et al. 2025, arXiv 2505.22617, section 4.2. **Differs:** none
    at or below 0, which do not lower the entropy.
    """
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]] = True
    return chosen & (values > 0)


def kl_cov_loss(
    logprob: Float[Tensor, " R"], old_logprob: Float[Tensor, " R"], chosen: Float[Tensor, " R"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """What the chosen tokens have left the policy by that sampled them, summed.

        sum_t chosen_t (rho_t - 1 - log rho_t),  rho_t = exp(logprob - old)

    Each summand is >= 0 and the one-sample estimate of KL(old || policy); its gradient, (rho - 1)
    times that of the log-probability, pulls back and is 0 where nothing has moved yet.

    Args:
        logprob: Of each token, with gradients.
        old_logprob: When it was sampled.
        chosen: 1 where a token pays, 0 elsewhere.

    Returns:
        The loss, and the same sum as a metric.

    Source: KL-Cov, Cui et al. 2025, arXiv 2505.22617, section 4.2. **Differs:** it comes on top of
    the clipped surrogate, and tokens are chosen once per update, by the log-probabilities that they
    were sampled with, over all tokens of the batch.
    """
    log_ratio = logprob - old_logprob
    loss = (chosen * (torch.expm1(log_ratio) - log_ratio)).sum()
    return loss, {"policy/kl_cov_nats_per_token": float(loss.detach())}
