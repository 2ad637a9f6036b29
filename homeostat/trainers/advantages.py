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


def group_relative(returns: Float[np.ndarray, " B"], group_size: int) -> Float[np.ndarray, " B"]:
    """Returns of whole episodes, shifted and scaled to mean 0 and deviation 1 within each group.

        A_i = (R_i - mean(R)) / std(R)        0 where all episodes of a group are worth the same

    Args:
        returns: Return of each episode; those of one group stand side by side.
        group_size: Episodes per group.

    Source: Shao et al. 2024, arXiv 2402.03300, section 4.1.2 (outcome supervision).
    """
    groups = returns.reshape(-1, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    scaled: Float[np.ndarray, " B"] = centred / (groups.std(axis=1, keepdims=True) + 1e-8)
    return scaled.reshape(-1)


def leave_one_out(returns: Float[np.ndarray, " B"], group_size: int) -> Float[np.ndarray, " B"]:
    """Return of each whole episode minus the mean return of the others in its group.

        A_i = R_i - 1/(G - 1) sum_{j != i} R_j

    The baseline does not know the episode's own actions, so it leaves the gradient unbiased.

    Args:
        returns: Return of each episode; those of one group stand side by side.
        group_size: Episodes per group, at least 2.

    Source: Kool et al. 2019 and Ahmadian et al. 2024, arXiv 2402.14740.
    """
    groups = returns.reshape(-1, group_size)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (group_size - 1)
    advantages: Float[np.ndarray, " B"] = (groups - others).reshape(-1)
    return advantages
