"""What a LoRA lies on, in the terms of peft."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from homeostat.config.model import LoraConfig
from homeostat.models.hooks import BLOCKS, decoder_layers


def peft_config(model: Any, lora: LoraConfig) -> PeftLoraConfig:
    """LoRA on every linear layer of the decoder blocks within the band, and on nothing else."""
    layers = decoder_layers(model)
    low, high = lora.layers
    first = min(round(low * len(layers)), len(layers) - 1)
    last = max(round(high * len(layers)), first + 1)
    leaves = sorted(
        {
            name.split(".")[-1]
            for name, module in layers.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
    )
    turned = any(isinstance(module, Conv1D) for module in layers.modules())
    numbers = "|".join(str(i) for i in range(first, last))
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        fan_in_fan_out=turned,
        target_modules=rf"(?!.*vision).*\b({'|'.join(BLOCKS)})\.({numbers})\..*\b({'|'.join(leaves)})",
    )


@contextmanager
def lean_adapters(model: nn.Module) -> Iterator[None]:
    """Within this context the adapters cost less and learn nothing; for decoding token by token.

    All adapters of a layer are two products, in the number format of the base, the second added to
    the base's in place; peft makes seven tensors for each adapter, which for single tokens takes
    longer than the arithmetic. In float32 the same up to rounding. In half precision the adapter's
    part is rounded as the base's is. What is no plain LoRA on a linear layer stays as it is.
    """
    changed: list[Any] = [module for module in model.modules() if _is_plain(module)]
    for module in changed:
        module.forward = _lean_forward(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_plain(module: Any) -> bool:
    if type(module) is not LoraLinear or module.disable_adapters or module.merged:
        return False
    names = [name for name in module.active_adapters if name in module.lora_A]
    ordinary = not module.lora_variant and not any(module.lora_bias.get(name) for name in names)
    return bool(names) and ordinary and not module.training


@torch.no_grad()
def _lean_forward(module: Any) -> Callable[..., Tensor]:
    base = module.base_layer
    names = [name for name in module.active_adapters if name in module.lora_A]
    down = torch.cat([module.lora_A[name].weight for name in names])
    scaled = [module.lora_B[name].weight * module.scaling[name] for name in names]
    up = torch.cat(scaled, dim=1).T
    if base.weight.is_floating_point():  # not of a quantised layer, which takes what comes
        down, up = down.to(base.weight.dtype), up.to(base.weight.dtype)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = base(x, *args, **kwargs)
        low = torch.nn.functional.linear(x, down)
        result.view(-1, result.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up)
        return result

    return forward
