"""Attention in float32, for models in a half precision on a CPU.

There torch's own kernel is several times slower in bfloat16 than in float32, above all for the one
token that decoding adds (`scripts/bench_attention.py`), and it rounds more. Keys and values stay in
the model's precision wherever they are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa"  # of torch's attention in transformers: models look for this very name
HALF = (torch.bfloat16, torch.float16)


def attend_in_float32(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What `sdpa_attention_forward` gives; for a half precision on a CPU rounded once, at the end.

    Anything else is handed on as it is.
    """
    if query.device.type != "cpu" or query.dtype not in HALF:
        states, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return states, None
    wide = (_widened(one) for one in (query, key, value, attention_mask))
    options = {name: _widened(option) for name, option in options.items()}
    states, _ = sdpa_attention_forward(module, *wide, **options)
    return states.to(query.dtype), None


def _widened(value: Any) -> Any:
    """A tensor in a half precision as float32: masks that are added come in the model's own."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def use_fast_attention(model: Any) -> None:
    """Let models in a half precision on a CPU attend in float32, from here on, in this process."""
    if model.device.type == "cpu" and model.dtype in HALF:
        AttentionInterface.register(NAME, attend_in_float32)
