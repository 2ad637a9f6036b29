"""One teacher-forced pass of the policy, and one of the reference, for all that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
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
from homeostat.types import Conversation, Progress, TokenBatch, TokenStream, Trace, Turn, silent

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pass:
    """One forward pass over a batch: final hidden states and, by layer, token norms."""

    final: Float[Tensor, "B T D"]
    norms: dict[int, Float[Tensor, "B T"]]

    def norms_at(self, layers: Sequence[int], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "R L"]:
        """Norms of the tokens where ``mask`` is True; without layers L is 0."""
        if not layers:
            return self.final.new_zeros(int(mask.sum()), 0)
        return torch.stack([self.norms[layer][mask] for layer in layers], dim=1)


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
    ref_talks: Sequence[Conversation] | None = None,
) -> list[Trace]:
    """The trace of every conversation, in the order given.

    Within ``policy.reference()`` the policy is its own reference, and one pass serves as both.

    Args:
        policy: The model with its adapter.
        conversations: Must hold at least one sampled token each.
        norm_layers: Decoder blocks whose residual-stream norm is wanted.
        probe_layers: Decoder blocks at which user turns are pooled; see `word_states`.
        critic: Final hidden states [R, D] to values [R].
        max_tokens: Padded tokens per forward pass.
        padding: On which side of a batch, ``right`` or ``left``; the result is the same.
        progress: Told how many conversations are done.
        streams: Of the conversations; None = they are encoded first.
        ref_talks: The conversations as the reference is to read them, with the same replies, such
            as without what the policy was told; None = as they are.
    """
    streams = streams or [policy.encode(conversation) for conversation in conversations]
    streams = [until_last_response(stream) for stream in streams]

    def read(part: list[TokenStream], places: list[int]) -> list[Trace]:
        batch = ref_batch = make_batch(policy, part, padding)
        if ref_talks is not None:
            read_by_ref = [until_last_response(policy.encode(ref_talks[i])) for i in places]
            ref_batch = make_batch(policy, read_by_ref, padding)
        heard = [words[i] for i in places]
        return _trace_batch(policy, batch, ref_batch, heard, norm_layers, critic)

    words = _heard(policy, conversations, probe_layers)
    return read_in_batches(streams, read, max_tokens, progress)


@dataclass(frozen=True)
class _Heard:
    """The user's turns of one conversation, as pooled states of their words alone."""

    turns: tuple[int, ...]
    by_reference: Float[np.ndarray, "U P E"]
    by_policy: Float[np.ndarray, "U P E"]


def _heard(
    policy: Policy, conversations: Sequence[Conversation], layers: Sequence[int]
) -> list[_Heard]:
    """What each conversation's user says, adapter off and as the policy is now."""
    said = [[talk.turns[i].text for i in talk.user_turns] for talk in conversations]
    texts = list(dict.fromkeys(text for texts in said for text in texts))
    place = {text: i for i, text in enumerate(texts)}
    by_policy = by_reference = word_states(policy, texts, layers)
    if policy.adapter_on and layers:
        with policy.reference():
            by_reference = word_states(policy, texts, layers)
    rows = [[place[text] for text in texts] for texts in said]
    return [
        _Heard(talk.user_turns, by_reference[row], by_policy[row])
        for talk, row in zip(conversations, rows, strict=True)
    ]


def word_states(
    policy: Policy, texts: Sequence[str], layers: Sequence[int], progress: Progress = silent
) -> Float[np.ndarray, "U P E"]:
    """Pooled states of what a user says, read as a message that opens a conversation.

    The fixed frame is the point: what came before, the policy's reply above all, cannot enter the
    reading. A message without tokens is NaN.

    Args:
        policy: As it is now.
        texts: Messages, without template tokens.
        layers: Decoder blocks; the forward pass ends at the deepest.
        progress: Told how many messages are read.
    """
    if not layers or not texts:
        return np.zeros((len(texts), len(layers), 2 * policy.hidden_size), dtype=np.float32)
    streams = [policy.encode(Conversation((Turn("user", text),))) for text in texts]

    @torch.no_grad()
    def read(part: list[TokenStream], _places: list[int]) -> list[np.ndarray]:
        batch = make_batch(policy, part)
        pooled: dict[int, Tensor] = {}

        def on_layer(layer: int, hidden: Tensor) -> None:
            pooled[layer] = _pool(hidden, batch)

        prefix = read_prefix(policy, batch)
        with read_residual(policy.trunk, layers, on_layer, stop_after=True):
            forward(policy, batch, prefix, whole=True)
        return list(torch.stack([pooled[layer] for layer in layers], dim=1).cpu().numpy())

    return np.stack(read_in_batches(streams, read, progress=progress))


def _trace_batch(
    policy: Policy,
    batch: TokenBatch,
    ref_batch: TokenBatch,
    heard: Sequence[_Heard],
    norm_layers: Sequence[int],
    critic: Critic | None,
) -> list[Trace]:
    policy_pass = read_pass(policy, batch, norm_layers)
    ref_pass = policy_pass
    if policy.adapter_on or ref_batch is not batch:
        with policy.reference():
            ref_pass = read_pass(policy, ref_batch, ())
    mask, ref_mask = batch.response_mask, ref_batch.response_mask
    hidden = predicting_hidden(policy_pass.final, mask)
    ref_hidden = None if ref_pass is policy_pass else predicting_hidden(ref_pass.final, ref_mask)
    stats = token_statistics(hidden, batch.input_ids[mask], policy.unembed, ref_hidden)
    columns = {
        "turn_R": batch.turn[mask],
        "logprob_R": stats.logprob,
        "entropy_R": stats.entropy,
        "ref_logprob_R": stats.ref_logprob,
        "kl_R": stats.kl,
        "certainty_R": stats.certainty,
        "value_R": None if critic is None else critic(hidden),
        "norm_RL": policy_pass.norms_at(norm_layers, mask),
    }
    per_row = mask.sum(dim=1).tolist()
    split = {k: None if v is None else _split(v, per_row) for k, v in columns.items()}
    return [
        Trace(
            **{k: None if v is None else v[row] for k, v in split.items()},  # type: ignore[arg-type]
            user_turns=words.turns,
            hidden_ref=words.by_reference,
            hidden_policy=words.by_policy,
        )
        for row, words in enumerate(heard)
    ]


def read_pass(policy: Policy, batch: TokenBatch, norm_layers: Sequence[int]) -> Pass:
    """One forward pass; norms of the layers are taken as they appear, their states never kept."""
    norms: dict[int, Tensor] = {}

    def on_layer(layer: int, hidden: Tensor) -> None:
        norms[layer] = hidden.float().norm(dim=-1)

    prefix, layers = read_prefix(policy, batch), sorted(norm_layers)
    lowest = layers[0] if layers else policy.num_layers
    with read_residual(policy.trunk, layers, on_layer):
        final = forward(policy, batch, prefix, whole=lowest < kept_depth(policy))
    return Pass(final, norms)


def _pool(hidden: Float[Tensor, "B T D"], batch: TokenBatch) -> Float[Tensor, "B E"]:
    """Mean and last token of the only turn of each row; NaN for one without tokens."""
    rows = []
    for row, turn in zip(hidden, batch.turn, strict=True):
        states = row[turn == 0].float()
        last = states[-1] if len(states) else states.new_full(states.shape[1:], torch.nan)
        rows.append(torch.cat([states.mean(dim=0), last]))
    return torch.stack(rows)


def _split(values: Tensor, sizes: Sequence[int]) -> list[np.ndarray]:
    kept = values.float() if values.is_floating_point() else values
    return [part.cpu().numpy() for part in torch.split(kept, list(sizes))]
