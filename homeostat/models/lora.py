"""What a LoRA lies on, in the terms of peft."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig as PeftLoraConfig
from torch import nn
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
