"""Advantages and returns: pure functions of rewards and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int


def gae(
    rewards: Float[np.ndarray, " R"],
    values: Float[np.ndarray, " R"],
    gamma: float,
    gae_lambda: float,
    turns: Int[np.ndarray, " R"] | None = None,
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Generalised advantage estimates and returns over the response tokens of one whole episode.

    The tokens of all assistant turns are taken as one sequence, so that credit crosses turns; the
    user's tokens between them are skipped, as they are no actions.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lambda A_{t+1}

    with V = A = 0 after the last token, where the episode ends. Given the turns, gamma and lambda
    count once per turn: from a token to the next of its turn both are 1. Per token, a reward at the
    end of a long turn hardly reaches its beginning, and where rewards are negative ending early
    looks like a gain.

    Args:
        rewards: Reward of each response token.
        values: The critic's estimate before each response token.
        gamma: Discount per token, or per turn, 0..1.
        gae_lambda: Bias (0) against variance (1).
        turns: Turn of each token; None: gamma and lambda count per token.

    Returns:
        Advantages, and returns A + V that the critic is fitted to.

    Source: Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16. **Differs:** by turns.
    """
    advantages = np.zeros_like(rewards)
    following, next_value = 0.0, 0.0
    for t in reversed(range(len(rewards))):
        within = turns is not None and t + 1 < len(rewards) and turns[t] == turns[t + 1]
        discount, decay = (1.0, 1.0) if within else (gamma, gae_lambda)
        delta = rewards[t] + discount * next_value - values[t]
        following = delta + discount * decay * following
        advantages[t] = following
        next_value = values[t]
    return advantages, advantages + values


def explained_variance(values: Float[np.ndarray, " R"], returns: Float[np.ndarray, " R"]) -> float:
    """1 - var(returns - values) / var(returns); NaN where returns do not vary."""
    spread = float(returns.var())
    return 1 - float((returns - values).var()) / spread if spread > 0 else float("nan")


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


def turn_advantages(
    rewards: Sequence[Float[np.ndarray, " _"]],
    turns: Sequence[Int[np.ndarray, " _"]],
    gamma: float,
    compare: Callable[[Float[np.ndarray, " B"]], Float[np.ndarray, " B"]],
) -> list[Float[np.ndarray, " _"]]:
    """Advantage of each token by what is still to come from its turn on, compared turn by turn.

        G_n = r_n + gamma G_{n+1},    r_n the sum of the n-th turn's token rewards
        A_n = compare(G_n)            each episode's beside the others' at the same turn

    What earlier turns have earned is no longer noise to later ones; at the first turn, with gamma
    1, nothing differs from comparing whole episodes. Compared by `leave_one_out`, the gradient is
    unbiased: the baseline is made of the other episodes alone, whatever turn they got to. An
    episode that is over has nothing to come and counts as 0 in the others' baseline; leaving it out
    would be unbiased as well. What is biased is to centre each turn's reward first and sum then:
    the baseline depends on how many turns the episode itself goes on, and going on is worth
    nothing. With gamma below 1 the gradient is that of nearer rewards, on purpose.

    Compared by `group_relative`, each turn has a unit of its own, so that later turns, with less to
    come, count as much as earlier ones.

    Args:
        rewards: Reward of each token, an array per episode.
        turns: Turn of each token; turns of all episodes are counted from their first.
        gamma: Discount per turn, 0..1.
        compare: Advantages of the episodes, given one number of each.

    Source: Sutton et al. 1999 (policy gradient theorem) for the rewards to go; Kool et al. 2019 for
    the baseline. **Differs:** an action is a turn, and the group stands for the state: at later
    turns its episodes have said different things.
    """
    places = [np.unique(own, return_inverse=True)[1] for own in turns]
    count = 1 + max(int(place.max()) for place in places)
    to_go_BN = np.zeros((len(rewards), count))
    for row_N, place, own in zip(to_go_BN, places, rewards, strict=True):
        np.add.at(row_N, place, own)
    for turn in reversed(range(count - 1)):
        to_go_BN[:, turn] += gamma * to_go_BN[:, turn + 1]
    advantage_BN = np.stack([compare(to_go_B) for to_go_B in to_go_BN.T], axis=1)
    return [own_N[place] for own_N, place in zip(advantage_BN, places, strict=True)]
