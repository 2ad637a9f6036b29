"""Adapters that cost less while replies are decoded, against peft's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.lora import lean_adapters
from homeostat.types import TokenBlock

IDS = torch.tensor([[5, 9, 30, 41, 7], [8, 2, 2, 60, 11]])


@torch.no_grad()
def states(policy: Policy) -> Tensor:
    return policy.hidden(TokenBlock(IDS))


@pytest.mark.parametrize("rounds", [1, 2])
def test_lean_adapters_say_the_same(
    make_policy: Callable[..., Policy], stir: Callable[..., None], rounds: int
) -> None:
    policy = make_policy()
    stir(policy)
    if rounds == 2:
        policy.add_round(seed=3)
        stir(policy, seed=2)
    before = states(policy)
    with policy.reference():
        base = states(policy)
    with lean_adapters(policy.model):
        lean = states(policy)
    torch.testing.assert_close(lean, before, rtol=1e-4, atol=1e-5)
    assert (lean - base).abs().max() > 0.1
    assert torch.equal(states(policy), before)  # and afterwards peft's own again


def test_an_untrained_adapter_changes_no_bit(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    with policy.reference():
        base = states(policy)
    with lean_adapters(policy.model):
        assert torch.equal(states(policy), base)


def test_the_reference_stays_the_base(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    with policy.reference():
        base = states(policy)
        with lean_adapters(policy.model):
            assert torch.equal(states(policy), base)


def test_an_adapter_of_another_kind_is_left_alone(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    layers = [module for module in policy.model.modules() if hasattr(module, "lora_variant")]
    for layer in layers:
        layer.lora_variant["default"] = object()
    with lean_adapters(policy.model):
        assert not any("forward" in vars(layer) for layer in layers)


def test_in_half_precision_it_is_rounded_as_the_base_is(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy = make_policy()
    stir(policy)
    exact = states(policy)
    policy.base.model.to(torch.bfloat16)
    for parameter in policy.adapter_parameters():
        parameter.data = parameter.data.float()
    plain = states(policy).float()
    with lean_adapters(policy.model):
        lean = states(policy).float()
    # As far from float32 as peft's own arithmetic is, give or take.
    assert (lean - exact).norm() < 1.5 * (plain - exact).norm()
