"""What tells one model from another: a digest of every bit of its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PART = 2**20  # values that are summed at once


def fingerprint(model: Any) -> str:
    """Hex digest of the architecture and of every bit of the weights, on whichever device."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in model.state_dict().items():
        if isinstance(weight, Tensor):
            digest.update(f"{name} {weight.dtype} {checksum(weight)}".encode())
    return digest.hexdigest()


@torch.no_grad()
def checksum(weight: Tensor) -> list[int]:
    """Two exact sums over the bits of every ``PART`` values: plain, and by place within the part.

    One changed value changes the first, two that changed places the second.
    """
    bits = weight.detach().contiguous().view(-1).view(INTEGERS[weight.element_size()])
    place = torch.arange(1, min(PART, bits.numel()) + 1, device=bits.device)
    sums = []
    for part in torch.split(bits, PART):
        numbers = part.long()
        sums += [numbers.sum(), (numbers * place[: len(part)]).sum()]
    return [] if not sums else [int(total) for total in torch.stack(sums).tolist()]
