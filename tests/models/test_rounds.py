"""Adapters in rounds: stacked, baked, un-baked and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from homeostat.errors import HomeostatError
from homeostat.models.adapter_files import load_adapter, save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.bake import baked, export_adapter, export_merged, verify_bake

IDS = torch.tensor([[5, 80, 33, 12, 200], [9, 9, 41, 7, 101]])
Stir = Callable[..., None]


@torch.no_grad()
def logits(policy: Policy) -> Tensor:
    return policy.unembed(policy.trunk(input_ids=IDS, use_cache=False).last_hidden_state)


@pytest.fixture
def stacked(make_policy: Callable[..., Policy], stir: Stir) -> Policy:
    """Three rounds, each of which changes what the policy says."""
    policy = make_policy()
    stir(policy, seed=1)
    for seed in (2, 3):
        policy.add_round(seed)
        stir(policy, seed=seed)
    return policy


def test_a_fresh_round_changes_nothing_and_alone_learns(
    make_policy: Callable[..., Policy], stir: Stir
) -> None:
    policy = make_policy()
    stir(policy)
    before = logits(policy)
    policy.add_round(seed=5)
    assert torch.equal(logits(policy), before)
    learning = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert learning
    assert all(".round_2." in name for name in learning)
    assert len(learning) == len(policy.adapter_parameters())
    stir(policy)
    assert not torch.equal(logits(policy), before)


def test_rounds_add_up(make_policy: Callable[..., Policy], stir: Stir) -> None:
    """Two rounds are one adapter whose product is the sum of theirs, by hand in one layer."""
    policy = make_policy(num_layers=1)
    stir(policy, seed=1)
    policy.add_round(seed=2)
    stir(policy, seed=2)
    layer = policy.trunk.layers[0].mlp.up_proj
    x = torch.randn(2, 3, policy.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = x @ layer.base_layer.weight.T
    for name in policy.rounds:
        product = layer.lora_B[name].weight @ layer.lora_A[name].weight
        expected = expected + layer.scaling[name] * (x @ product.T)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_the_policy_as_of_earlier_rounds(
    make_policy: Callable[..., Policy], stir: Stir, rounds: int
) -> None:
    policy, seen = make_policy(), []
    for seed in (1, 2, 3):
        if seed > 1:
            policy.add_round(seed)
        seen.append(logits(policy))
        stir(policy, seed=seed)
    now = logits(policy)
    with policy.as_of(rounds):
        assert torch.equal(logits(policy), [*seen, now][rounds])
    assert torch.equal(logits(policy), now)
    assert all(p.requires_grad for p in policy.adapter_parameters())


def test_a_round_that_is_dropped_is_fresh_again(
    make_policy: Callable[..., Policy], stir: Stir
) -> None:
    policy = make_policy()
    stir(policy, seed=1)
    before = logits(policy)
    policy.add_round(seed=2)
    fresh = [float(p.detach().std()) for p in policy.adapter_parameters()]
    drawn = []
    for seed in (7, 7, 8):
        stir(policy, seed=2)
        assert not torch.equal(logits(policy), before)
        policy.redraw_round(seed)
        assert torch.equal(logits(policy), before)
        drawn.append([p.detach().clone() for p in policy.adapter_parameters()])
    assert [float(p.std()) for p in drawn[0]] == pytest.approx(fresh, rel=0.3)
    assert all(p.requires_grad for p in policy.adapter_parameters())
    for again, other in ((1, True), (2, False)):
        same = [torch.equal(a, b) for a, b in zip(drawn[0], drawn[again], strict=True)]
        assert all(same) == other


def test_the_reference_of_a_stack_is_the_base_to_the_bit(
    make_policy: Callable[..., Policy], stacked: Policy
) -> None:
    with stacked.reference():
        assert torch.equal(logits(stacked), logits(make_policy()))


def test_baking_agrees_with_the_stack_and_unbaking_returns_the_base_to_the_bit(
    make_policy: Callable[..., Policy], stacked: Policy
) -> None:
    before = logits(stacked)
    assert 0 < verify_bake(stacked, IDS) < 1e-4
    with baked(stacked):
        weights = stacked.trunk.layers[0].mlp.up_proj.base_layer.weight
        assert not torch.equal(weights, make_policy().trunk.layers[0].mlp.up_proj.base_layer.weight)
    assert torch.equal(logits(stacked), before)
    with stacked.reference():
        assert torch.equal(logits(stacked), logits(make_policy()))


def test_unbaking_after_an_exception_too(
    make_policy: Callable[..., Policy], stacked: Policy
) -> None:
    with pytest.raises(ZeroDivisionError), baked(stacked):
        raise ZeroDivisionError
    with stacked.reference():
        assert torch.equal(logits(stacked), logits(make_policy()))


def test_the_stack_is_saved_and_taken_over(
    make_policy: Callable[..., Policy], stacked: Policy, tmp_path: Path
) -> None:
    save_adapter(stacked, tmp_path / "adapters")
    fresh = make_policy(seed=7)
    load_adapter(fresh, tmp_path / "adapters")
    assert fresh.rounds == stacked.rounds
    assert torch.equal(logits(fresh), logits(stacked))


def test_an_adapter_of_another_shape_is_refused(
    make_policy: Callable[..., Policy], stacked: Policy, tmp_path: Path
) -> None:
    save_adapter(stacked, tmp_path / "adapters")
    with pytest.raises(HomeostatError, match="does not fit this model"):
        load_adapter(make_policy(rank=8), tmp_path / "adapters")


def test_one_merged_model_is_exported(stacked: Policy, tmp_path: Path) -> None:
    export_merged(stacked, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(plain(IDS).logits, logits(stacked), atol=1e-4)


def test_one_adapter_is_exported(
    make_policy: Callable[..., Policy], stacked: Policy, tmp_path: Path
) -> None:
    before = logits(stacked)
    export_adapter(stacked, tmp_path / "one")
    assert torch.equal(logits(stacked), before), "exporting changes nothing"
    base = make_policy()
    base.model.unload()
    loaded = PeftModel.from_pretrained(base.base.model, str(tmp_path / "one"))
    assert torch.allclose(loaded(IDS).logits, before, atol=1e-4)
