"""What frozen blocks make of a conversation is computed once, however often it is read.

Below the lowest adapter nothing ever changes: policy, reference, critic and every epoch read the
same there. Within `Policy.keeping_lower` what comes out of those blocks is kept for each
conversation, 2 to 4 bytes times the model's width for a token, and later passes begin above them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.models.hooks import decoder_layers
from homeostat.types import TokenBatch


class LowerBlocks:
    """States between the frozen blocks below and the blocks above, by conversation.

    Attributes:
        depth: How many blocks are below.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._kept: dict[tuple[int, ...], tuple[int, Float[Tensor, "T D"]]] = {}

    def find(self, batch: TokenBatch) -> Float[Tensor, "B T D"] | None:
        """The states of a batch; None unless those of every row are there, from its first token."""
        start = len(batch.prefix)
        found: list[Tensor] = []
        for key, length in zip(batch.keys, batch.attention_mask.sum(dim=1).tolist(), strict=True):
            begins, states = self._kept.get(key, (start + 1, None))
            if states is None or begins > start or begins + len(states) < start + length:
                return None
            found.append(states[start - begins : start - begins + length])
        joined = torch.cat(found)
        padded: Tensor = joined.new_zeros(*batch.attention_mask.shape, joined.shape[-1])
        padded[batch.attention_mask] = joined
        return padded

    def keep(self, batch: TokenBatch, states: Float[Tensor, "B T D"]) -> None:
        """Keep the states of a batch, but for rows of which more is there."""
        for key, row, mask in zip(batch.keys, states.detach(), batch.attention_mask, strict=True):
            held = row[mask]
            if key not in self._kept or len(self._kept[key][1]) < len(held):
                self._kept[key] = len(batch.prefix), held


def frozen_depth(model: nn.Module, adapted: Sequence[nn.Parameter]) -> int:
    """How many blocks lie below the lowest one that has any of these parameters."""
    known = {id(parameter) for parameter in adapted}
    layers = decoder_layers(model)
    has_one = (any(id(p) in known for p in layer.parameters()) for layer in layers)
    return next((i for i, adapted_here in enumerate(has_one) if adapted_here), 0)
