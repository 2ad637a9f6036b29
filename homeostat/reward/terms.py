"""Reward terms beside valence that come with homeostat; a user's own are written the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from homeostat.types import Conversation


def praise(
    _conversation: Conversation,
    signals: Mapping[str, Float[np.ndarray, " N"]],
    _trace: Any,
    signal: str = "sentiment",
) -> Float[np.ndarray, " N"]:
    """The user's perceived sentiment after each assistant turn: the happier, the better.

    The control for homeostasis: external approval, which has no level at which it is enough. It
    rises with the same reading that relational valence holds near a set point.

    Args:
        signals: By name, one number per assistant turn.
        signal: Which of them is praise.

    Returns:
        The signal itself, in its own unit.
    """
    return np.asarray(signals[signal], dtype=np.float64)


def noise(
    conversation: Conversation,
    signals: Mapping[str, Float[np.ndarray, " N"]],
    _trace: Any,
) -> Float[np.ndarray, " N"]:
    """A standard normal number per assistant turn that follows from its words alone.

    The control for everything: the same reply is always worth the same, and nothing makes one
    reply better than another.
    """
    del signals
    return np.array(
        [
            np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).standard_normal()
            for text in (conversation.turns[i].text for i in conversation.assistant_turns)
        ]
    )
