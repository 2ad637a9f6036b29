"""Attention in float32 against a slow loop, where it is used and where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from homeostat.config.register import build, config_part
from homeostat.models.attention import NAME, attend_in_float32
from homeostat.models.load import BaseModel

CPU = torch.device("cpu")
HEADS, SHARED, WIDTH = 4, 2, 8


def tiny(dtype: torch.dtype) -> Any:
    return build(config_part("model=tiny_random"), BaseModel, device=CPU, dtype=dtype).model


@pytest.mark.parametrize(("asked", "before"), [(5, 0), (1, 6), (3, 4)])
def test_it_is_the_slow_loop_rounded_once(asked: int, before: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, tokens: int) -> torch.Tensor:
        states = torch.randn(2, heads, tokens, WIDTH, generator=generator)
        return states.to(torch.bfloat16)

    known = before + asked
    query, key, value = draw(HEADS, asked), draw(SHARED, known), draw(SHARED, known)
    mask = torch.ones(asked, known, dtype=torch.bool).tril(before).repeat(2, 1, 1, 1)
    mask[1, :, 1:, 0] = False  # the first token of a row is hidden from those after it
    block: Any = torch.nn.Module()
    block.is_causal, block.num_key_value_groups = True, HEADS // SHARED
    found, _ = attend_in_float32(block, query, key, value, mask, scaling=0.5)
    assert found.dtype == torch.bfloat16
    for row in range(2):
        for head in range(HEADS):
            for place in range(asked):
                seen = mask[row, 0, place]
                keys = key[row, head // 2][seen].double()
                shares = torch.softmax(keys @ query[row, head, place].double() * 0.5, dim=0)
                expected = shares @ value[row, head // 2][seen].double()
                got = found[row, place, head].double()
                # Half of bfloat16's last place, and what float32 rounds before.
                assert torch.allclose(got, expected, rtol=2**-8, atol=1e-6)


def test_a_mask_that_is_added_may_come_in_the_model_s_own_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 3, WIDTH, generator=generator).bfloat16() for _ in range(3)]
    hidden = torch.full((1, 1, 3, 3), float("-inf")).triu(1)
    block: Any = torch.nn.Module()
    block.is_causal, block.num_key_value_groups = True, 1
    added, _ = attend_in_float32(block, *states, hidden.bfloat16(), scaling=0.5)
    seen, _ = attend_in_float32(block, *states, hidden == 0, scaling=0.5)
    assert torch.equal(added, seen)


def test_float32_is_handed_on_to_the_bit() -> None:
    """Also in a process that has loaded a model in half precision."""
    tiny(torch.bfloat16)
    model, ids = tiny(torch.float32), torch.arange(5, 14)[None]
    assert model.config._attn_implementation == NAME
    with torch.no_grad():
        own = model(input_ids=ids).logits
        with as_it_comes():
            assert torch.equal(model(input_ids=ids).logits, own)


def test_a_half_precision_on_a_cpu_rounds_no_more_than_torch_s_own() -> None:
    half = tiny(torch.bfloat16)
    with torch.no_grad():
        ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
        padded = torch.ones_like(ids)
        padded[0, :4] = 0
        own = half(input_ids=ids, attention_mask=padded).logits
        with as_it_comes():
            torchs = half(input_ids=ids, attention_mask=padded).logits
        whole = half.float()(input_ids=ids, attention_mask=padded).logits
    assert not torch.equal(own, torchs), "it is ours that was used"
    errors = [(logits.float() - whole)[padded > 0].abs().mean() for logits in (own, torchs)]
    assert 0 < errors[0] < 1.2 * errors[1] < 0.1


@contextmanager
def as_it_comes() -> Iterator[None]:
    """Within this context torch's attention is as transformers has it."""
    AttentionInterface.register(NAME, sdpa_attention_forward)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attend_in_float32)
