"""Attention in float32 against a slow loop, where it is used, and that nobody else learns of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from homeostat.config.register import build, config_part
from homeostat.models.attention import FLOAT32, TORCH, attend_in_float32
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


def test_only_a_half_precision_on_a_cpu_gets_it() -> None:
    half, full = tiny(torch.bfloat16), tiny(torch.float32)
    assert half.config._attn_implementation == FLOAT32
    assert full.config._attn_implementation == TORCH, "float32 stays as it was, to the bit"
    with torch.no_grad():
        ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
        padded = torch.ones_like(ids)
        padded[0, :4] = 0
        own = half(input_ids=ids, attention_mask=padded).logits
        half.set_attn_implementation(TORCH)
        torchs = half(input_ids=ids, attention_mask=padded).logits
        whole = half.float()(input_ids=ids, attention_mask=padded).logits
    errors = [(logits.float() - whole)[padded > 0].abs().mean() for logits in (own, torchs)]
    assert 0 < errors[0] < 1.2 * errors[1] < 0.1, "it rounds no more than torch's own"


def test_a_saved_model_does_not_ask_for_it(tmp_path: Path) -> None:
    tiny(torch.bfloat16).save_pretrained(tmp_path)
    assert FLOAT32 not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == TORCH
