"""Attention in float32, for models in a half precision on a CPU.

There torch's own kernel is several times slower in bfloat16 than in float32, above all for the one
token that decoding adds (`scripts/bench_attention.py`), and it rounds more. Keys and values stay in
the model's precision wherever they are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TORCH, FLOAT32 = "sdpa", "sdpa_float32"  # as transformers names it, and ours


def attend_in_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What `sdpa_attention_forward` gives, computed in float32 and rounded once, at the end."""
    wide = (query.float(), key.float(), value.float())
    states, _ = sdpa_attention_forward(module, *wide, attention_mask, **options)
    return states.to(query.dtype), None


def use_fast_attention(model: Any) -> None:
    """Let a model attend in float32 where that is faster; others stay as they are."""
    on_cpu = model.device.type == "cpu" and model.dtype != torch.float32
    if on_cpu and model.config.get_text_config()._attn_implementation == TORCH:
        AttentionInterface.register(FLOAT32, attend_in_float32)
        AttentionMaskInterface.register(FLOAT32, sdpa_mask)
        model.set_attn_implementation(FLOAT32)
