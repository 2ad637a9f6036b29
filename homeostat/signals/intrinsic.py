"""What the model keeps about itself: pure functions of a trace and of the reply's text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from homeostat.types import Trace


def intrinsic_signals(
    trace: Trace, turn: int, text: str, base_norms: Float[np.ndarray, " L"]
) -> dict[str, float]:
    """Every intrinsic signal of one assistant turn; NaN for a turn without sampled tokens.

    Args:
        trace: Trace of the conversation.
        turn: Index of the assistant turn.
        text: Its text.
        base_norms: The base model's mean norm at each layer of ``trace.norm_RL``.
    """
    own = trace.turn_R == turn
    if not own.any():
        return {"repetition": repetition(text)}
    return {
        "entropy": float(trace.entropy_R[own].mean()),
        "self_perplexity": float(np.exp(-trace.logprob_R[own].mean())),
        "base_perplexity": float(np.exp(-trace.ref_logprob_R[own].mean())),
        "activation_norm": float((trace.norm_RL[own].mean(axis=0) / base_norms).mean()),
        "repetition": repetition(text),
    }


def repetition(text: str) -> float:
    """The largest share of one repeated n-gram, over words and characters, n in 2, 3, 4.

    Returns:
        0 when nothing occurs twice; 1 for a text too short to hold any n-gram, so that silence is
        no way to score well.
    """
    lowered = " ".join(text.lower().split())
    words, characters = lowered.split(), list(lowered)
    shares = [
        share
        for units in (words, characters)
        for n in (2, 3, 4)
        if (share := _largest_repeated_share(units, n)) is not None
    ]
    return max(shares) if shares else 1.0


def _largest_repeated_share(units: Sequence[str], n: int) -> float | None:
    """Share of the commonest n-gram if it occurs at least twice, else 0; None without n-grams."""
    grams = Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))
    if not grams:
        return None
    largest = max(grams.values())
    return largest / grams.total() if largest > 1 else 0.0
