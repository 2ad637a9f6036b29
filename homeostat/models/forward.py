"""One forward pass over a batch of conversations; what all of them begin with is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.hooks import read_residual, skip_blocks
from homeostat.types import Progress, TokenBatch, TokenBlock, TokenStream, silent

T = TypeVar("T")
READ_TOKENS = 4096  # padded tokens of a forward pass without gradients
WORTH_SHARING = 8  # tokens; below that a second call costs more than it saves


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length; longest x count stays within ``max_tokens``."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def read_in_batches(
    streams: Sequence[TokenStream],
    read: Callable[[list[TokenStream], list[int]], Sequence[T]],
    max_tokens: int = READ_TOKENS,
    progress: Progress = silent,
) -> list[T]:
    """What ``read`` makes of every stream, in the streams' order.

    Args:
        streams: Read in batches of similar length.
        read: Gets some streams and their places; returns one result for each.
        max_tokens: Padded tokens per batch.
        progress: Told how many streams are read, and their tokens.
    """
    results: dict[int, T] = {}
    lengths = [len(stream.ids) for stream in streams]
    for part in batches_by_length(lengths, max_tokens):
        results |= zip(part, read([streams[i] for i in part], part), strict=True)
        progress(len(results), len(streams), sum(lengths[i] for i in part))
    return [results[i] for i in range(len(streams))]


class SharedPrefix(DynamicCache):  # type: ignore[misc]
    """Keys and values of one prefix, lent to every row; what the rows add is never kept."""

    frozen = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The prefix before the rows' own keys and values; the prefix itself while not frozen."""
        if not self.frozen:
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
            return keys, values
        layer, rows = self.layers[layer_idx], len(key_states)
        return (
            torch.cat([layer.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([layer.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def can_share(policy: Policy) -> bool:
    """Whether the model attends to all that came before in every block.

    A sliding window would count the padding between prefix and row, and other kinds of state cannot
    be lent to many rows. Blocks that are computed again are given no cache by transformers. Rows
    whose prompts are steered by doses of their own have nothing in common.
    """
    if policy.is_recomputing or not policy.reads_prompts_alike:
        return False
    cache = DynamicCache(config=policy.base.model.config.get_text_config())
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def shared_prefix(streams: Sequence[TokenStream]) -> int:
    """How many template tokens all streams begin with; 0 where sharing them is not worth it.

    The system prompt, as a rule. It ends before the first turn's content, and before the token that
    predicts it if it is a response, so that nothing that is measured lies inside.
    """
    if len(streams) < 2:
        return 0
    first_turn = min(_template_before(stream) for stream in streams)
    common = common_length([s.ids[:first_turn] for s in streams])
    return common if common >= WORTH_SHARING else 0


def _template_before(stream: TokenStream) -> int:
    contents = (i - stream.response[i] for i, turn in enumerate(stream.turn) if turn >= 0)
    return next(contents, len(stream.ids))


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with."""
    columns = enumerate(zip(*rows, strict=False))
    return next((i for i, ids in columns if len(set(ids)) > 1), min(map(len, rows)))


def make_batch(
    policy: Policy, streams: Sequence[TokenStream], padding: str = "right"
) -> TokenBatch:
    """Streams as one batch, with what they all begin with apart where the model can share it."""
    shared = shared_prefix(streams) if can_share(policy) else 0
    return pad(streams, policy.pad_id, policy.device, padding, shared)


def read_prefix(policy: Policy, batch: TokenBatch) -> SharedPrefix | None:
    """The cache of the batch's prefix under the policy as it is now; None without a prefix.

    Outside ``torch.no_grad`` the gradients of all rows flow through it.
    """
    if not batch.prefix:
        return None
    cache = SharedPrefix(config=policy.base.model.config.get_text_config())
    policy.hidden(TokenBlock(torch.tensor([batch.prefix], device=policy.device)), cache)
    cache.frozen = True
    return cache


def forward(
    policy: Policy, batch: TokenBatch, prefix: SharedPrefix | None = None, whole: bool = False
) -> Float[Tensor, "B T D"]:
    """Final hidden states of the batch's tokens, padded on whichever side.

    Args:
        policy: As it is now: adapter on or off.
        batch: The tokens after the prefix.
        prefix: From `read_prefix`, with the adapter in the same state.
        whole: Compute every block, also where `Policy.keeping_lower` has some already.
    """
    mask = batch.attention_mask.long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + len(batch.prefix)
    known = mask.new_ones(len(mask), len(batch.prefix))
    block = TokenBlock(batch.input_ids, torch.cat([known, mask], dim=1), positions)
    read = partial(policy.hidden, block, prefix, predicted_index(batch))
    lower, depth = policy.lower, kept_depth(policy)
    if lower is None or not depth:
        return read()
    states = None if whole else lower.find(batch)
    if states is not None:
        with skip_blocks(policy.trunk, depth, states):
            return read()
    with read_residual(policy.trunk, [depth - 1], lambda _, out: lower.keep(batch, out)):
        return read()


def kept_depth(policy: Policy) -> int:
    """How many of the lowest blocks a conversation is read by once, policy as it is; often 0.

    Not under a steering, which may act on them, nor where blocks look back over a window.
    """
    if policy.lower is None or policy.is_steered or not can_share(policy):
        return 0
    return policy.lower.depth


def predicted_index(batch: TokenBatch) -> Int[Tensor, "B T"]:
    """Which token of its reply each position predicts, from 0; -1 where it predicts none."""
    mask = batch.response_mask
    starts = mask & ~torch.nn.functional.pad(mask[:, :-1], (1, 0))
    position = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    first = torch.where(starts, position, -1).cummax(dim=1).values
    number = torch.where(mask, position - first, -1)
    return torch.nn.functional.pad(number[:, 1:], (0, 1), value=-1)
