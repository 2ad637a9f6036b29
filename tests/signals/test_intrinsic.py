from __future__ import annotations

import numpy as np
import pytest

from homeostat.signals.intrinsic import intrinsic_signals
from homeostat.types import Trace


def made_up() -> Trace:
    """Three response tokens in turn 1, one in turn 3, at two norm layers."""
    return Trace(
        turn_R=np.array([1, 1, 1, 3]),
        logprob_R=np.log([0.5, 0.25, 0.125, 0.1]),
        entropy_R=np.array([1.0, 2.0, 6.0, 4.0]),
        ref_logprob_R=np.log([0.5, 0.5, 0.5, 0.2]),
        kl_R=np.zeros(4),
        certainty_R=np.array([2.0, 4.0, 9.0, 7.0]),
        value_R=None,
        norm_RL=np.array([[2.0, 10.0], [4.0, 20.0], [6.0, 60.0], [8.0, 50.0]]),
        user_turns=(0, 2),
        hidden_ref=np.zeros((2, 1, 3)),
        hidden_policy=np.zeros((2, 1, 3)),
    )


def test_signals_by_hand() -> None:
    """Turn 1: mean norms 4 and 30, so with base norms 2 and 20 the ratios are 2 and 1.5."""
    found = intrinsic_signals(made_up(), 1, "yes, but why?", np.array([2.0, 20.0]))
    assert found == pytest.approx(
        {
            "entropy": 3.0,
            "self_perplexity": 4.0,  # the geometric mean of 2, 4, 8
            "base_perplexity": 2.0,
            "activation_norm": 1.75,
            "repetition": 0.0,
            "self_certainty": 5.0,
        }
    )


def test_each_turn_has_its_own_tokens() -> None:
    found = intrinsic_signals(made_up(), 3, "a" * 10, np.array([2.0, 20.0]))
    assert found == pytest.approx(
        {
            "entropy": 4.0,
            "self_perplexity": 10.0,
            "base_perplexity": 5.0,
            "activation_norm": (8 / 2 + 50 / 20) / 2,
            "repetition": 0.9,  # all but the first round of a cycle of one letter
            "self_certainty": 7.0,
        }
    )


@pytest.mark.parametrize(("text", "expected"), [("a" * 10, 0.9), ("", 1.0), ("Well.", 0.0)])
def test_turn_without_sampled_tokens_has_nothing_but_its_text(text: str, expected: float) -> None:
    found = intrinsic_signals(made_up(), 2, text, np.array([2.0, 20.0]))
    assert found == {"repetition": expected}
