"""What the model keeps about itself: pure functions of a trace and of the reply's text."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from homeostat.signals.repetition import repetition
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
    in_turn_R = trace.turn_R == turn
    if not in_turn_R.any():
        return {"repetition": repetition(text)}
    return {
        "entropy": float(trace.entropy_R[in_turn_R].mean()),
        "self_perplexity": float(np.exp(-trace.logprob_R[in_turn_R].mean())),
        "base_perplexity": float(np.exp(-trace.ref_logprob_R[in_turn_R].mean())),
        "activation_norm": float((trace.norm_RL[in_turn_R].mean(axis=0) / base_norms).mean()),
        "repetition": repetition(text),
        "self_certainty": float(trace.certainty_R[in_turn_R].mean()),
    }
