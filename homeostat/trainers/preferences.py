"""Preference pairs from rewards: pure functions, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from homeostat.types import Metrics


@dataclass(frozen=True)
class Candidate:
    """A reply to a conversation so far, which others compete with.

    Attributes:
        prompt: Ids of the conversation so far.
        ids: Ids of the reply as sampled.
        reward: What it is ranked by.
        logprob: Of the reply when it was sampled, nats, summed over its tokens.
        ref_logprob: The same under the reference.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    reward: float
    logprob: float
    ref_logprob: float


@dataclass(frozen=True)
class Pair:
    """Two replies to the same prompt, the better one first."""

    chosen: Candidate
    rejected: Candidate


def make_pairs(
    candidates: Sequence[Candidate], min_margin: float, max_length_ratio: float | None
) -> list[Pair]:
    """Pairs of candidates for one prompt, each candidate in one pair at most.

    The pair with the widest margin is taken first, then the widest among the rest, and so on.

    Args:
        candidates: Replies to that prompt.
        min_margin: Least difference of the two rewards, > 0.
        max_length_ratio: Most that the longer may have of the shorter's tokens; None = any length.
    """

    def fits(pair: Pair) -> bool:
        short, long = sorted((len(pair.chosen.ids), len(pair.rejected.ids)))
        return (
            pair.chosen.reward - pair.rejected.reward >= min_margin
            and long <= (max_length_ratio or np.inf) * short
        )

    ranked = sorted(candidates, key=lambda candidate: -candidate.reward)
    possible = [Pair(better, worse) for better, worse in combinations(ranked, 2)]
    possible.sort(key=lambda pair: pair.rejected.reward - pair.chosen.reward)
    taken: list[Pair] = []
    used: set[int] = set()
    for pair in possible:
        both = {id(pair.chosen), id(pair.rejected)}
        if fits(pair) and not used & both:
            taken.append(pair)
            used |= both
    return taken


def preference_metrics(pairs: Sequence[Pair], logprobs: Sequence[float], beta: float) -> Metrics:
    """How a policy ranks pairs, and where its probability went since the replies were sampled.

    Args:
        pairs: What was preferred.
        logprobs: Log-probability of each chosen and each rejected reply in turn under the policy
            now, nats, summed over its tokens; two per pair.
        beta: Of DPO.

    Returns:
        ``accuracy``, the share of pairs in which DPO's implicit reward beta log(policy / reference)
        of the chosen reply is the higher one; ``margin``, the mean difference of the two;
        ``chosen_shift`` and ``rejected_shift``, how much a reply's log-probability has grown, nats
        per token; ``displaced``, the share of chosen replies that have become less likely. All are
        NaN where there is no pair.

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 5, for the implicit reward; Razin et
    al. 2024, arXiv 2410.08847, for likelihood displacement.
    """
    if not pairs:
        names = ("accuracy", "margin", "chosen_shift", "rejected_shift", "displaced")
        return dict.fromkeys(names, float("nan"))
    now = np.asarray(logprobs, dtype=np.float64).reshape(-1, 2)
    replies = [(pair.chosen, pair.rejected) for pair in pairs]
    reference = np.array([[reply.ref_logprob for reply in both] for both in replies])
    before = np.array([[reply.logprob for reply in both] for both in replies])
    lengths = np.array([[len(reply.ids) for reply in both] for both in replies])
    implicit = beta * (now - reference)
    margins = implicit[:, 0] - implicit[:, 1]
    shifts = (now - before) / lengths
    return {
        "accuracy": float((margins > 0).mean()),
        "margin": float(margins.mean()),
        "chosen_shift": float(shifts[:, 0].mean()),
        "rejected_shift": float(shifts[:, 1].mean()),
        "displaced": float((shifts[:, 0] < 0).mean()),
    }
