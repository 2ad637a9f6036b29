"""One teacher-forced pass of the policy, and one of the reference, for all that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.chat import until_last_response
from homeostat.models.forward import (
    READ_TOKENS,
    forward,
    kept_depth,
    make_batch,
    read_in_batches,
    read_prefix,
)
from homeostat.models.hooks import read_residual
from homeostat.models.logprobs import predicting_hidden, token_statistics
from homeostat.types import Conversation, Progress, TokenBatch, TokenStream, Trace, silent

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Pass:
    """One forward pass over a batch: final hidden states, token norms, pooled user turns."""

    final: Float[Tensor, "B T D"]
    norms: dict[int, Float[Tensor, "B T"]]
    pooled: dict[int, Float[Tensor, "U E"]]


@torch.no_grad()
def trace(
    policy: Policy,
    conversations: Sequence[Conversation],
    norm_layers: Sequence[int] = (),
    probe_layers: Sequence[int] = (),
    critic: Critic | None = None,
    max_tokens: int = READ_TOKENS,
    padding: str = "right",
    progress: Progress = silent,
    streams: Sequence[TokenStream] | None = None,
) -> list[Trace]:
    """The trace of every conversation, in the order given.

    Within ``policy.reference()`` the policy is its own reference, and one pass serves as both.

    Args:
        policy: The model with its adapter.
        conversations: Must hold at least one sampled token each.
        norm_layers: Decoder blocks whose residual-stream norm is wanted.
        probe_layers: Decoder blocks at which user turns are pooled.
        critic: Final hidden states [R, D] to values [R].
        max_tokens: Padded tokens per forward pass.
        padding: On which side of a batch, ``right`` or ``left``; the result is the same.
        progress: Told how many conversations are done.
        streams: Of the conversations; None = they are encoded first.
    """
    streams = streams or [policy.encode(conversation) for conversation in conversations]
    if not probe_layers:  # nobody reads the user's last turn
        streams = [until_last_response(stream) for stream in streams]

    def read(part: list[TokenStream], places: list[int]) -> list[Trace]:
        batch = make_batch(policy, part, padding)
        users = [conversations[i].user_turns for i in places]
        return _trace_batch(policy, batch, users, norm_layers, probe_layers, critic)

    return read_in_batches(streams, read, max_tokens, progress)


def pooled_user_turns(
    policy: Policy, streams: Sequence[TokenStream], turns: Sequence[int], layers: Sequence[int]
) -> Float[Tensor, "B P E"]:
    """One user turn of each stream, pooled after each block as in `Trace`, policy as it is.

    The forward pass ends at the deepest block, since nothing above it is read.
    """
    batch = make_batch(policy, streams)
    pooled: dict[int, Tensor] = {}
    users = [(turn,) for turn in turns]

    def on_layer(layer: int, hidden: Tensor) -> None:
        pooled[layer] = _pool(hidden, batch, users)

    reading = read_residual(policy.trunk, layers, on_layer, stop_after=True)
    with torch.no_grad():
        prefix = read_prefix(policy, batch)
        with reading:
            forward(policy, batch, prefix, whole=True)
    return torch.stack([pooled[layer] for layer in layers], dim=1)


def _trace_batch(
    policy: Policy,
    batch: TokenBatch,
    users: Sequence[tuple[int, ...]],
    norm_layers: Sequence[int],
    probe_layers: Sequence[int],
    critic: Critic | None,
) -> list[Trace]:
    policy_pass = _read(policy, batch, users, norm_layers, probe_layers)
    ref_pass = policy_pass
    if policy.adapter_on:
        # Below the lowest adapter the reference has read what the policy has.
        depth = kept_depth(policy)
        upper = [layer for layer in probe_layers if layer >= depth]
        with policy.reference():
            ref_pass = _read(policy, batch, users, (), upper)
        ref_pass.pooled.update({k: v for k, v in policy_pass.pooled.items() if k not in upper})
    mask = batch.response_mask
    hidden = predicting_hidden(policy_pass.final, mask)
    ref_hidden = None if ref_pass is policy_pass else predicting_hidden(ref_pass.final, mask)
    stats = token_statistics(hidden, batch.input_ids[mask], policy.unembed, ref_hidden)
    norms = (
        torch.stack([policy_pass.norms[layer][mask] for layer in norm_layers], dim=1)
        if norm_layers
        else hidden.new_zeros(len(hidden), 0)
    )
    columns = {
        "turn_R": batch.turn[mask],
        "logprob_R": stats.logprob,
        "entropy_R": stats.entropy,
        "ref_logprob_R": stats.ref_logprob,
        "kl_R": stats.kl,
        "certainty_R": stats.certainty,
        "value_R": None if critic is None else critic(hidden),
        "norm_RL": norms,
    }
    per_row = mask.sum(dim=1).tolist()
    split = {k: None if v is None else _split(v, per_row) for k, v in columns.items()}
    turns = [len(u) for u in users]
    hidden_ref, hidden_policy = (
        _split(_stack_layers(one_pass.pooled, probe_layers, sum(turns), one_pass.final), turns)
        for one_pass in (ref_pass, policy_pass)
    )
    return [
        Trace(
            **{k: None if v is None else v[row] for k, v in split.items()},  # type: ignore[arg-type]
            user_turns=users[row],
            hidden_ref=hidden_ref[row],
            hidden_policy=hidden_policy[row],
        )
        for row in range(len(per_row))
    ]


def _read(
    policy: Policy,
    batch: TokenBatch,
    users: Sequence[tuple[int, ...]],
    norm_layers: Sequence[int],
    probe_layers: Sequence[int],
) -> _Pass:
    """One forward pass; hidden states of the layers are reduced as they appear, never kept."""
    norms: dict[int, Tensor] = {}
    pooled: dict[int, Tensor] = {}

    def on_layer(layer: int, hidden: Tensor) -> None:
        if layer in norm_layers:
            norms[layer] = hidden.float().norm(dim=-1)
        if layer in probe_layers:
            pooled[layer] = _pool(hidden, batch, users)

    prefix, layers = read_prefix(policy, batch), sorted({*norm_layers, *probe_layers})
    lowest = layers[0] if layers else policy.num_layers
    with read_residual(policy.trunk, layers, on_layer):
        final = forward(policy, batch, prefix, whole=lowest < kept_depth(policy))
    return _Pass(final, norms, pooled)


def _pool(
    hidden: Float[Tensor, "B T D"], batch: TokenBatch, users: Sequence[Sequence[int]]
) -> Float[Tensor, "U E"]:
    """Mean and last token of each listed user turn; NaN for a turn without tokens."""
    rows = []
    for row, turns in enumerate(users):
        for turn in turns:
            states = hidden[row][batch.turn[row] == turn].float()
            last = states[-1] if len(states) else states.new_full(states.shape[1:], torch.nan)
            rows.append(torch.cat([states.mean(dim=0), last]))
    return torch.stack(rows)


def _stack_layers(
    pooled: dict[int, Tensor], layers: Sequence[int], turns: int, like: Tensor
) -> Float[Tensor, "U P E"]:
    if not layers:
        return like.new_zeros(turns, 0, 2 * like.shape[-1])
    return torch.stack([pooled[layer] for layer in layers], dim=1)


def _split(values: Tensor, sizes: Sequence[int]) -> list[np.ndarray]:
    kept = values.float() if values.is_floating_point() else values
    return [part.cpu().numpy() for part in torch.split(kept, list(sizes))]
