"""What an adapter is trained with: its optimiser, and its learning rate over a round."""

from __future__ import annotations

import math

import torch

from homeostat.config.steering import HealConfig
from homeostat.models.adapters import Policy


def make_optimizer(policy: Policy, config: HealConfig, lr: float) -> torch.optim.Optimizer:
    """AdamW over the policy's newest adapter."""
    return torch.optim.AdamW(
        policy.adapter_parameters(),
        lr,
        # With 0.999 the second moment would not have warmed up when training ends.
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )


def rate_at(config: HealConfig, steps: int, step: int) -> float:
    """What the learning rate of a round is multiplied by.

        (step + 1) / W                                   while step < W = warmup steps
        1, or (1 + cos(pi (step - W) / (steps - W))) / 2 afterwards

    Args:
        config: Warm-up and kind.
        steps: Of the round.
        step: From 0.
    """
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
