"""Frozen blocks below the lowest adapter are read once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.forward import forward, make_batch, read_prefix
from homeostat.models.hooks import decoder_layers
from homeostat.signals.trace import trace
from homeostat.types import Conversation, Turn

Talk = Callable[..., Conversation]


@pytest.fixture
def upper(make_policy: Callable[..., Policy], stir: Callable[..., None]) -> Policy:
    """A policy of four blocks whose adapter lies on the upper two."""
    policy = make_policy(layers=(0.5, 1.0))
    stir(policy)
    return policy


@pytest.fixture
def talks(talk: Talk) -> list[Conversation]:
    said = [talk("hello", "hi there", "what?", "no", "bye"), talk("help me", "er"), talk("he", "x")]
    return [Conversation((Turn("system", "Be brief and be kind."), *one.turns)) for one in said]


@pytest.fixture
def computed(upper: Policy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which block has computed its attention, in order, over all passes."""
    seen: list[int] = []
    for number, layer in enumerate(decoder_layers(upper.model)):
        plain = layer.self_attn.forward

        def counted(*args: Any, number: int = number, plain: Any = plain, **kwargs: Any) -> Any:
            seen.append(number)
            return plain(*args, **kwargs)

        monkeypatch.setattr(layer.self_attn, "forward", counted)
    return seen


def read(policy: Policy, talks: list[Conversation], padding: str = "right") -> Tensor:
    batch = make_batch(policy, [policy.encode(one) for one in talks], padding)
    prefix = read_prefix(policy, batch)
    return forward(policy, batch, prefix)[batch.attention_mask]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_later_passes_begin_above_them(
    upper: Policy, talks: list[Conversation], computed: list[int], padding: str
) -> None:
    plain = read(upper, talks, padding)
    with upper.reference():
        plain_reference = read(upper, talks, padding)
    with upper.keeping_lower():
        first = read(upper, talks, padding)
        computed.clear()
        again = read(upper, talks, padding)
        assert computed == [0, 1, 2, 3, 2, 3]  # the prefix, then the rows
        with upper.reference():
            reference = read(upper, talks, padding)
        other_batch = read(upper, talks[1:], padding)
    assert torch.equal(first, plain)
    torch.testing.assert_close(again, plain)
    torch.testing.assert_close(reference, plain_reference)
    torch.testing.assert_close(other_batch, plain[-len(other_batch) :], rtol=1e-4, atol=1e-5)
    assert torch.equal(read(upper, talks, padding), plain)  # and afterwards whole again


def test_gradients_are_those_of_the_whole_pass(upper: Policy, talks: list[Conversation]) -> None:
    direction = torch.randn(upper.hidden_size, generator=torch.Generator().manual_seed(0))
    parameters = upper.adapter_parameters()
    plain = torch.autograd.grad((read(upper, talks) @ direction).sum(), parameters)
    with upper.keeping_lower():
        with torch.no_grad():
            read(upper, talks)
        kept = torch.autograd.grad((read(upper, talks) @ direction).sum(), parameters)
    for a, b in zip(kept, plain, strict=True):
        assert b.norm() > 0.1
        assert (a - b).norm() < 1e-4 * b.norm()


def test_a_conversation_of_which_less_is_known_is_read_whole(
    upper: Policy, talks: list[Conversation], computed: list[int]
) -> None:
    with upper.keeping_lower():
        read(upper, talks[1:])
        computed.clear()
        read(upper, talks)
    assert computed == [0, 1, 2, 3] * 2


def test_without_frozen_blocks_nothing_is_kept(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    with policy.keeping_lower():
        assert policy.lower is None


def test_a_trace_is_the_same_and_the_reference_begins_above(
    upper: Policy, talks: list[Conversation], computed: list[int]
) -> None:
    layers = {"norm_layers": (0, 2), "probe_layers": (1, 3)}
    plain = trace(upper, talks, **layers)
    computed.clear()
    with upper.keeping_lower():
        kept = trace(upper, talks, **layers)
    # Two prefixes and the policy's rows; and what users say, by either, with a prefix or without.
    assert computed.count(0) == 3 + 2
    assert computed.count(3) == 4 + 2
    for a, b in zip(kept, plain, strict=True):
        for name, value in vars(a).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(value, getattr(b, name), rtol=1e-4, atol=1e-5)
