"""Advantages and returns: pure functions of rewards and values."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def gae(
    rewards: Float[np.ndarray, " R"],
    values: Float[np.ndarray, " R"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Generalised advantage estimates and returns over the response tokens of one whole episode.

    The tokens of all assistant turns are taken as one sequence, so that credit crosses turns; the
    user's tokens between them are skipped, as they are no actions.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lambda A_{t+1}

    with V = A = 0 after the last token, where the episode ends.

    Args:
        rewards: Reward of each response token.
        values: The critic's estimate before each response token.
        gamma: Discount per token, 0..1.
        gae_lambda: Bias (0) against variance (1).

    Returns:
        Advantages, and returns A + V that the critic is fitted to.

    Source: Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16.
    """
    advantages = np.zeros_like(rewards)
    following, next_value = 0.0, 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        following = delta + gamma * gae_lambda * following
        advantages[t] = following
        next_value = values[t]
    return advantages, advantages + values


def whiten(values: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """Values shifted and scaled to mean 0 and standard deviation 1."""
    whitened: Float[np.ndarray, " R"] = (values - values.mean()) / (values.std() + 1e-8)
    return whitened
