"""Log-probabilities, entropies and KLs from hidden states, in chunks over the positions that count.

The one place where logits are shifted, and the only one where they exist: a chunk at a time, never
kept. With gradients and several chunks, each is recomputed in the backward pass rather than stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Unembed = Callable[[Tensor], Tensor]
CHUNK_LOGITS = 2**24  # logits that exist at once: 64 MiB in float32


@dataclass(frozen=True)
class TokenStatistics:
    """What the next-token distributions say about the tokens that followed, in nats.

    ``kl`` is KL(policy || reference) over the whole vocabulary. Without a reference the policy is
    its own: ``ref_logprob`` is ``logprob`` and ``kl`` is 0. ``certainty`` is self-certainty,
    KL(uniform || policy) = -mean_v log p(v) - log V.

    Source: Kang et al. 2025 (arXiv 2502.18581), equation 8, for the certainty.
    """

    logprob: Float[Tensor, " R"]
    entropy: Float[Tensor, " R"]
    ref_logprob: Float[Tensor, " R"]
    kl: Float[Tensor, " R"]
    certainty: Float[Tensor, " R"]

    def split(self, sizes: Sequence[int]) -> list[TokenStatistics]:
        """Those of consecutive runs of tokens, such as replies, of the given lengths."""
        columns = [torch.split(column, list(sizes)) for column in vars(self).values()]
        return [TokenStatistics(*row) for row in zip(*columns, strict=True)]


def predicting_hidden(
    hidden: Float[Tensor, "B T D"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "R D"]:
    """The hidden state that predicts each response token, which is the one before it.

    Raises:
        ValueError: A conversation begins with a response token, which nothing predicts.
    """
    if bool(response_mask[:, 0].any()):
        raise ValueError("a conversation cannot begin with a response token: nothing predicts it.")
    return hidden[:, :-1][response_mask[:, 1:]]


def token_statistics(
    hidden: Float[Tensor, "R D"],
    targets: Int[Tensor, " R"],
    unembed: Unembed,
    ref_hidden: Float[Tensor, "R D"] | None = None,
) -> TokenStatistics:
    """Log-probability and entropy of each token; with a reference also its log-prob and the KL.

    Args:
        hidden: Final hidden states that predict the tokens, from `predicting_hidden`.
        targets: The tokens.
        unembed: Hidden states to float32 logits.
        ref_hidden: The same hidden states with the adapter off.
    """
    return TokenStatistics(
        *in_chunks(_chunk_token_statistics, unembed, hidden, targets, ref_hidden)
    )


def token_logprobs(
    hidden: Float[Tensor, "R D"], targets: Int[Tensor, " R"], unembed: Unembed
) -> Float[Tensor, " R"]:
    """The ``logprob`` of `token_statistics`, where nothing else of it is wanted."""
    return in_chunks(_chunk_token_logprobs, unembed, hidden, targets)[0]


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]],
    unembed: Unembed,
    hidden: Float[Tensor, "R D"],
    *columns: Tensor | None,
) -> list[Tensor]:
    """What ``function`` makes of all rows, of so many at once that their logits stay few.

    With gradients and several chunks, each is recomputed in the backward pass.

    Args:
        function: Of ``unembed`` and some rows of each column; gives tensors [R, ...].
        unembed: Hidden states to float32 logits.
        hidden: Final hidden states.
        columns: What else belongs to each row; None is handed on as it is.
    """
    vocabulary = unembed(hidden[:0]).shape[-1]
    chunk = max(1, CHUNK_LOGITS // vocabulary)
    recompute = torch.is_grad_enabled() and hidden.requires_grad and len(hidden) > chunk
    parts = []
    for start in range(0, max(1, len(hidden)), chunk):
        part = slice(start, start + chunk)
        arguments = [None if column is None else column[part] for column in (hidden, *columns)]
        if recompute:
            parts.append(checkpoint(function, unembed, *arguments, use_reentrant=False))
        else:
            parts.append(function(unembed, *arguments))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _chunk_token_logprobs(unembed: Unembed, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (unembed(hidden).log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0],)


def _chunk_token_statistics(
    unembed: Unembed, hidden: Tensor, targets: Tensor, ref_hidden: Tensor | None
) -> tuple[Tensor, ...]:
    log_p = unembed(hidden).log_softmax(dim=-1)
    p = log_p.exp()
    logprob = log_p.gather(-1, targets[:, None])[:, 0]
    entropy = -torch.einsum("rv,rv->r", p, log_p)
    certainty = -log_p.mean(dim=-1) - math.log(log_p.shape[-1])
    if ref_hidden is None:
        return logprob, entropy, logprob, torch.zeros_like(logprob), certainty
    log_q = unembed(ref_hidden).log_softmax(dim=-1)
    ref_logprob = log_q.gather(-1, targets[:, None])[:, 0]
    kl = -entropy - torch.einsum("rv,rv->r", p, log_q)
    return logprob, entropy, ref_logprob, kl, certainty
