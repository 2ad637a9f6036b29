from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from configs import tiny_config
from peft import PeftModel
from torch import Tensor

from homeostat.errors import HomeostatError
from homeostat.models.adapter_files import adapter_digest, load_adapter, save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.models.tiny import load_tiny

IDS = torch.tensor([[5, 80, 33, 12, 200], [9, 9, 41, 7, 101]])


class Boom(Exception):
    pass


def fresh_base() -> BaseModel:
    return load_tiny(tiny_config(), torch.device("cpu"), torch.float32)


@torch.no_grad()
def base_logits() -> Tensor:
    logits: Tensor = fresh_base().model(IDS).logits
    return logits


@torch.no_grad()
def policy_logits(policy: Policy) -> Tensor:
    logits: Tensor = policy.model(IDS).logits
    return logits


def adapted(policy: Policy) -> dict[int, set[str]]:
    """Block to the names of its layers that have a LoRA; -1 for a LoRA outside the blocks."""
    found: dict[int, set[str]] = {}
    for name, _ in policy.model.named_parameters():
        if "lora_" in name:
            place = re.search(r"\.layers\.(\d+)\..*?(\w+)\.lora_[AB]\.", name)
            block, layer = (int(place[1]), place[2]) if place else (-1, name)
            found.setdefault(block, set()).add(layer)
    return found


def test_fresh_adapter_is_the_base_to_the_bit(make_policy: Callable[..., Policy]) -> None:
    assert torch.equal(policy_logits(make_policy()), base_logits())


@torch.no_grad()
def test_trunk_and_unembed_give_the_models_logits(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    stir(policy)
    logits = policy.unembed(policy.trunk(input_ids=IDS).last_hidden_state)
    assert torch.equal(logits, policy_logits(policy))


@torch.no_grad()
def test_unembed_applies_the_models_soft_cap(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    hidden = 50 * torch.randn(3, policy.hidden_size, generator=torch.Generator().manual_seed(0))
    plain = hidden @ policy.model.get_base_model().get_input_embeddings().weight.T
    policy.model.get_base_model().config.final_logit_softcapping = 2.0
    torch.testing.assert_close(policy.unembed(hidden), 2 * torch.tanh(plain / 2))


def test_stirred_adapter_changes_the_logits_and_reference_is_the_base_to_the_bit(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    stir(policy)
    own, base = policy_logits(policy), base_logits()
    assert (own - base).abs().max() > 0.01
    with policy.reference():
        assert torch.equal(policy_logits(policy), base)
    assert torch.equal(policy_logits(policy), own)


def test_reference_nests(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    stir(policy)
    own, base = policy_logits(policy), base_logits()
    assert policy.adapter_on
    with policy.reference():
        assert not policy.adapter_on
        with policy.reference():
            assert not policy.adapter_on
        assert not policy.adapter_on
        assert torch.equal(policy_logits(policy), base)
    assert policy.adapter_on
    assert torch.equal(policy_logits(policy), own)


def test_adapter_is_on_again_after_an_exception(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    stir(policy)
    own = policy_logits(policy)

    with pytest.raises(Boom), policy.reference():
        raise Boom
    assert policy.adapter_on
    assert torch.equal(policy_logits(policy), own)


def test_reference_leaves_the_same_parameters_trainable(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    before = [id(p) for p in policy.adapter_parameters()]
    with policy.reference():
        pass
    assert before
    assert [id(p) for p in policy.adapter_parameters()] == before


@pytest.mark.parametrize(
    ("band", "blocks"),
    [
        ((0.0, 1.0), {0, 1, 2, 3}),
        ((0.5, 1.0), {2, 3}),
        ((0.25, 0.75), {1, 2}),
        ((0.0, 0.1), {0}),
        ((0.9, 1.0), {3}),
    ],
)
def test_band_places_lora_only_in_its_blocks(
    make_policy: Callable[..., Policy], band: tuple[float, float], blocks: set[int]
) -> None:
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted(make_policy(layers=band)) == dict.fromkeys(blocks, linear)


def test_only_the_adapter_is_trainable(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(rank=4)
    trainable = [(n, p) for n, p in policy.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name, _ in trainable)
    assert len(policy.adapter_parameters()) == len(trainable) == 4 * 7 * 2
    ranks = {min(p.shape) for _, p in trainable}
    assert ranks == {4}


def test_seed_alone_decides_the_adapters_first_weights(make_policy: Callable[..., Policy]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (
        torch.cat([p.detach().flatten() for p in make_policy(seed=seed).adapter_parameters()])
        for seed in (5, 5, 6)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)  # the global generator was left alone


def test_saved_adapter_loads_with_plain_peft(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None], tmp_path: Path
) -> None:
    policy = make_policy(layers=(0.5, 1.0))
    stir(policy)
    save_adapter(policy, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(fresh_base().model, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        logits = loaded(IDS).logits
    assert torch.equal(logits, policy_logits(policy))
    assert not torch.equal(logits, base_logits())


def test_facts_about_the_model(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    end = policy.tokenizer.eos_token_id
    assert (policy.num_layers, policy.hidden_size, policy.max_context) == (4, 32, 2048)
    assert policy.eos_ids == (end,)
    assert policy.pad_id == end
    assert policy.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("generation", "expected"), [(None, (256,)), (3, (3, 256)), ([256, 3], (256, 3))]
)
def test_end_tokens_are_those_of_the_model_and_of_the_tokenizer(
    make_policy: Callable[..., Policy],
    generation: int | list[int] | None,
    expected: tuple[int, ...],
) -> None:
    policy = make_policy()
    assert policy.tokenizer.eos_token_id == 256
    policy.base.model.generation_config.eos_token_id = generation
    assert policy.eos_ids == expected


def test_a_saved_adapter_is_taken_over_to_the_bit_by_one_of_its_shape(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None], tmp_path: Path
) -> None:
    policy = make_policy()
    stir(policy)
    save_adapter(policy, tmp_path)
    other = make_policy(seed=1)
    optimised = other.adapter_parameters()
    load_adapter(other, tmp_path)
    assert torch.equal(policy_logits(other), policy_logits(policy))
    assert all(a is b for a, b in zip(optimised, other.adapter_parameters(), strict=True))
    for misfit in (make_policy(rank=2), make_policy(layers=(0.5, 1.0))):
        with pytest.raises(HomeostatError, match=r"lora\.\*"):
            load_adapter(misfit, tmp_path)


def test_a_digest_tells_trained_policies_apart(
    make_policy: Callable[..., Policy], stir: Callable[..., None]
) -> None:
    policy, same, other, wider = make_policy(), make_policy(), make_policy(), make_policy(rank=8)
    for own, seed in ((policy, 1), (same, 1), (other, 2), (wider, 1)):
        stir(own, seed=seed)
    assert adapter_digest(policy) == adapter_digest(same)
    assert len({adapter_digest(own) for own in (policy, other, wider)}) == 3
    before = adapter_digest(policy)
    policy.add_round(seed=3)
    assert adapter_digest(policy) != before
