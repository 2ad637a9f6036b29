"""Functions of the user's own: what they get, what they may return, what is said of the rest."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from configs import signals_config

from homeostat.errors import HomeostatError
from homeostat.signals.own import own_signals


def told(*_: Any, given: Any) -> Any:
    return [torch.tensor(1.0, requires_grad=True), None] if given == "tensors" else given


def fails(*_: Any) -> list[float]:
    raise KeyError("oops")


def signal(name: str, **options: Any) -> Any:
    part = {"_target_": f"{__name__}.{name}", **options}
    return own_signals(signals_config(own={"mine": part}))[0]


def test_a_signal_may_miss_turns_and_gets_its_options() -> None:
    found = signal("told", given=[0.5, float("nan")])(("talk", "trace"), 2)
    np.testing.assert_array_equal(found, [0.5, np.nan])


def test_tensors_and_none_are_numbers_and_missing() -> None:
    np.testing.assert_array_equal(signal("told", given="tensors")((), 2), [1.0, np.nan])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], r"signals.own.mine returned [1.0], of shape (1,), for a conversation with 2 assis"),
        ("much", "signals.own.mine returned 'much' for a conversation with 2 assistant turns"),
        ([1.0, float("inf")], "the own signal signals.own.mine gave inf for assistant turn 2 of 2"),
    ],
)
def test_what_is_not_one_number_per_turn_is_named(given: Any, said: str) -> None:
    with pytest.raises(HomeostatError, match=re.escape(said)):
        signal("told", given=given)((), 2)


def test_a_signal_that_fails_is_named_with_its_error() -> None:
    with pytest.raises(HomeostatError, match=r"^signals\.own\.mine failed: KeyError: 'oops'"):
        signal("fails")((), 1)
