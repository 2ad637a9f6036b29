"""How the terms of a reward become one number: added up, or each brought to the same spread first.

Added up, the term that varies most decides what is learned, whatever its weight says. Decoupled,
each term is divided by its own deviation among the episodes that are compared with each other.

Source: GDPO (Liu et al. 2026) and MO-GRPO (Ichihara et al. 2025, arXiv 2509.22047). **Differs:**
episodes have several turns, so what is normalised is a term's sum over an episode. The price of KL
is no term: it stays in the tokens' rewards, and one unit of reward is then one standard deviation
of a term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from homeostat.reward.compose import Rewards, drive_reduction

T = TypeVar("T")
Terms = dict[str, list[Float[np.ndarray, " _"]]]  # per term and episode its values by turn
LEAST_DEVIATION = 1e-6  # a term that varies less than this in a group says nothing there


def turn_terms(rewards: Sequence[Rewards], mode: str) -> Terms:
    """Every summand of the reward, weighted, per episode and turn.

    Args:
        rewards: One per episode.
        mode: ``level`` or ``reduction``, as the reward pays its homeostatic part.
    """
    terms: Terms = {}
    for column, name in enumerate(rewards[0].valence.names):
        levels = [reward.valence.terms_NS[:, column] for reward in rewards]
        terms[name] = levels if mode == "level" else [drive_reduction(level) for level in levels]
    for name in rewards[0].own_terms:
        terms[name] = [reward.own_terms[name] for reward in rewards]
    return terms


def decoupled(terms: Terms, weights: Mapping[str, float], group_size: int | None) -> Terms:
    """Each term centred, and with a deviation of its weight.

        w_k (x_kn - mean_kn) / std_k

    ``std_k`` is that of the term's sums over whole episodes within a group; ``mean_kn`` the group's
    mean of that term at that turn. A term without variance in a group is left out there rather than
    blown up.

    Args:
        terms: Groups stand side by side.
        weights: Of each term.
        group_size: Episodes that are compared with each other; None: the whole batch.
    """
    return {
        name: [
            turns
            for group in _groups(values, group_size)
            for turns in _to_unit(group, abs(weights[name]))
        ]
        for name, values in terms.items()
    }


def _to_unit(
    group: Sequence[Float[np.ndarray, " _"]], weight: float
) -> list[Float[np.ndarray, " _"]]:
    deviation = float(np.std([turns.sum() for turns in group]))
    if deviation < LEAST_DEVIATION:
        return [np.zeros(len(turns)) for turns in group]
    longest = max(len(turns) for turns in group)
    mean_N = [np.mean([turns[n] for turns in group if len(turns) > n]) for n in range(longest)]
    return [weight * (turns - mean_N[: len(turns)]) / deviation for turns in group]


def added_up(terms: Terms) -> list[Float[np.ndarray, " _"]]:
    """The reward of every turn of every episode."""
    return [np.sum(of_episode, axis=0) for of_episode in zip(*terms.values(), strict=True)]


def variance_shares(terms: Terms, group_size: int | None) -> dict[str, float]:
    """What share of the variance of whole episodes' rewards each term has; they sum to 1.

        share_k = cov(R_k, R) / var(R), within groups

    NaN where nothing varies.
    """
    sums = {
        name: _centred([turns.sum() for turns in values], group_size)
        for name, values in terms.items()
    }
    whole = np.sum(list(sums.values()), axis=0)
    scale = float((whole**2).sum())
    if scale < LEAST_DEVIATION**2:
        return dict.fromkeys(terms, float("nan"))
    return {name: float((part * whole).sum() / scale) for name, part in sums.items()}


def _centred(values: Sequence[float], group_size: int | None) -> Float[np.ndarray, " B"]:
    return np.concatenate([np.array(g) - np.mean(g) for g in _groups(values, group_size)])


def _groups(values: Sequence[T], size: int | None) -> list[Sequence[T]]:
    size = size or len(values)
    return [values[start : start + size] for start in range(0, len(values), size)]
