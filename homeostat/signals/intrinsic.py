"""What the model keeps about itself: pure functions of a trace and of the reply's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.signals.repetition import repetition
from homeostat.types import Trace


@dataclass(frozen=True)
class ReplyStates:
    """What the policy was like along one reply: arrays, or tensors that carry gradients.

    Attributes:
        entropy_R: As in a `Trace`.
        certainty_R: As in a `Trace`.
        norm_RL: As in a `Trace`.
        base_norms: The base model's mean norm at each of the L layers.
    """

    entropy_R: Any
    certainty_R: Any
    norm_RL: Any
    base_norms: Any


# Signals that follow from the policy's states, whichever tokens were drawn there.
OF_STATES: dict[str, Callable[[ReplyStates], Any]] = {
    "entropy": lambda reply: reply.entropy_R.mean(),
    "activation_norm": lambda reply: (reply.norm_RL.mean(0) / reply.base_norms).mean(),
    "self_certainty": lambda reply: reply.certainty_R.mean(),
}


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
    states = ReplyStates(
        entropy_R=trace.entropy_R[in_turn_R],
        certainty_R=trace.certainty_R[in_turn_R],
        norm_RL=trace.norm_RL[in_turn_R],
        base_norms=base_norms,
    )
    return {
        "self_perplexity": float(np.exp(-trace.logprob_R[in_turn_R].mean())),
        "base_perplexity": float(np.exp(-trace.ref_logprob_R[in_turn_R].mean())),
        "repetition": repetition(text),
    } | {name: float(signal(states)) for name, signal in OF_STATES.items()}
