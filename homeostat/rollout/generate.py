"""Batched sampling with a KV cache that lives over all turns of an episode."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.forward import WORTH_SHARING, can_share, common_length
from homeostat.models.logprobs import token_statistics
from homeostat.types import TokenBlock


class Sampler:
    """Samples replies for a fixed set of rows; nothing that was read once is read again.

    All rows share the columns of one cache. A row that has nothing to say in a column is masked
    there, and positions count only what a row really holds, so that a row's tokens do not depend on
    its neighbours (up to floating point). Where a model looks back over a window of columns only,
    those in which a row was masked count in it, too: beyond the window rows are not independent.

    Attributes:
        predicted_from: Of each row's newest reply, the final hidden states ``[R, D]`` that its
            tokens were drawn from: what reading it again would give.
    """

    def __init__(self, policy: Policy, rows: int) -> None:
        self._policy = policy
        self._cache = DynamicCache(config=policy.base.model.config.get_text_config())
        self._mask = torch.zeros(rows, 0, dtype=torch.long, device=policy.device)
        self._unread: list[list[int]] = [[] for _ in range(rows)]
        self._hidden: Tensor | None = None
        self.predicted_from: list[Tensor] = []

    def fork(self) -> Sampler:
        """A copy that goes on from here on its own."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        other._unread = [list(ids) for ids in self._unread]
        return other

    def keep(self, rows: Sequence[int]) -> Sampler:
        """A copy with these rows in this order; a row that is named twice may go two ways."""
        other = copy.copy(self)
        index = torch.tensor(rows, device=self._policy.device)
        other._cache = copy.copy(self._cache)
        other._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        other._cache.batch_select_indices(index)
        other._mask = self._mask[index]
        other._unread = [list(self._unread[row]) for row in rows]
        other._hidden = None if self._hidden is None else self._hidden[index]
        return other

    def append(self, ids: Sequence[Sequence[int]]) -> None:
        """Let every row read more tokens (the template and the user's next turn).

        Raises:
            HomeostatError: A conversation would outgrow the model's context.
        """
        blocks = [unread + list(new) for unread, new in zip(self._unread, ids, strict=True)]
        self._unread = [[] for _ in blocks]
        if self._mask.shape[1] == 0:
            blocks = self._read_once(blocks)
        width = max(map(len, blocks))
        if width == 0:
            return
        pad = self._policy.pad_id
        tokens = [[pad] * (width - len(block)) + block for block in blocks]
        mask = [[0] * (width - len(block)) + [1] * len(block) for block in blocks]
        read = self._tensor(mask)
        # The last column predicts the first token of the reply that comes next.
        self._forward(self._tensor(tokens), read, _last_column(read, 0))

    def sample(
        self, uniforms: Float[np.ndarray, "B N"], temperature: float = 1.0
    ) -> list[list[int]]:
        """One reply per row: until the model ends its turn, or N tokens.

        A token is the inverse of the cumulative next-token distribution at the row's next uniform
        number, so a reply depends on its own numbers alone, and base and trained model can be
        compared on common random numbers.

        Returns:
            Sampled ids per row, the end-of-turn id included where it was sampled.
        """
        rows, limit = uniforms.shape
        # Below 1 also in float32: a number that rounds up to 1 would pass the whole distribution.
        numbers = torch.from_numpy(uniforms).to(self._policy.device, torch.float32)
        numbers = numbers.clamp(max=1 - 2**-24)
        eos = torch.tensor(self._policy.eos_ids, device=self._policy.device)
        replies: list[list[int]] = [[] for _ in range(rows)]
        states: list[Tensor] = []
        alive = torch.ones(rows, dtype=torch.bool, device=self._policy.device)
        for step in range(limit):
            if self._hidden is None:
                raise ValueError("append a prompt before sampling.")
            states.append(self._hidden)
            logits = self._policy.unembed(self._hidden) / temperature
            chosen = _inverse_cdf(logits, numbers[:, step])
            for row in torch.nonzero(alive)[:, 0].tolist():
                replies[row].append(int(chosen[row]))
            still = alive & ~torch.isin(chosen, eos)
            last = step + 1 == limit or not bool(still.any())
            if last:
                # The newest token of each row has not been read yet; the next block begins with it.
                for row in torch.nonzero(alive)[:, 0].tolist():
                    self._unread[row] = [replies[row][-1]]
                break
            for row in torch.nonzero(alive & ~still)[:, 0].tolist():
                self._unread[row] = [replies[row][-1]]
            alive = still
            pad = torch.full_like(chosen, self._policy.pad_id)
            column = alive.long()[:, None]
            number = torch.where(column > 0, step + 1, -1)
            self._forward(torch.where(alive, chosen, pad)[:, None], column, number)
        self._hidden = None  # of a token that the rows have passed
        by_row = torch.stack(states, dim=1)
        self.predicted_from = [row[: len(ids)] for row, ids in zip(by_row, replies, strict=True)]
        return replies

    def score(self, replies: Sequence[Sequence[int]]) -> list[Float[Tensor, " R"]]:
        """Log-probability of each token of a given reply per row, nats; at least one token each.

        The rows have then read these replies, but for each row's last token, as after `sample`.
        """
        if self._hidden is None:
            raise ValueError("append a prompt before scoring.")
        states, width = self._hidden[:, None], max(map(len, replies)) - 1
        self._unread = [[reply[-1]] for reply in replies]
        if width:
            pad = self._policy.pad_id
            inputs = [list(reply[:-1]) for reply in replies]
            tokens = self._tensor([row + [pad] * (width - len(row)) for row in inputs])
            mask = self._tensor([[1] * len(row) + [0] * (width - len(row)) for row in inputs])
            number = torch.where(mask > 0, mask.cumsum(dim=1), -1)
            states = torch.cat([states, self._forward(tokens, mask, number)], dim=1)
        self._hidden = None
        held = [hidden[: len(reply)] for hidden, reply in zip(states, replies, strict=True)]
        targets = [token for reply in replies for token in reply]
        with torch.no_grad():
            statistics = token_statistics(
                torch.cat(held), self._tensor([targets])[0], self._policy.unembed
            )
        return list(torch.split(statistics.logprob, [len(reply) for reply in replies]))

    def next_logprob(self, rows: Sequence[int], tokens: Sequence[int]) -> Float[Tensor, " N"]:
        """Log-probability of a next token in some rows, nats; nothing is read.

        Args:
            rows: A row may be named more than once.
            tokens: One for each.
        """
        if self._hidden is None:
            raise ValueError("append a prompt before scoring.")
        states, targets = self._hidden[list(rows)], self._tensor([list(tokens)])[0]
        with torch.no_grad():
            return token_statistics(states, targets, self._policy.unembed).logprob

    def _read_once(self, blocks: Sequence[list[int]]) -> list[list[int]]:
        """Read what all rows begin with as one row and lend it to all; returns what is left."""
        rows, shared = len(blocks), common_length(blocks)
        shared = min(shared, min(map(len, blocks)) - 1)
        if rows == 1 or shared < WORTH_SHARING or not can_share(self._policy):
            return list(blocks)
        tokens = self._tensor([blocks[0][:shared]])
        self._mask = self._mask[:1]
        self._forward(tokens, torch.ones_like(tokens), None)
        self._cache.batch_repeat_interleave(rows)
        self._mask = self._mask.repeat(rows, 1)
        return [block[shared:] for block in blocks]

    @torch.no_grad()
    def _forward(self, tokens: Tensor, mask: Tensor, predicted: Tensor | None) -> Tensor:
        """Read a block; returns its hidden states and keeps those of the last column."""
        self._mask = torch.cat([self._mask, mask], dim=1)
        held = self._mask.cumsum(dim=1)[:, -mask.shape[1] :]
        longest = int(held.max())
        if longest > self._policy.max_context:
            raise HomeostatError(
                f"a conversation of {longest} tokens does not fit into the model's context of "
                f"{self._policy.max_context}; lower rollout.turns, rollout.max_new_tokens or "
                "eval.reply_tokens."
            )
        block = TokenBlock(tokens, self._mask, (held - 1).clamp(min=0))
        states = self._policy.hidden(block, self._cache, predicted)
        self._hidden = states[:, -1]
        return states

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self._policy.device)


def _last_column(mask: Tensor, value: int) -> Tensor:
    """-1 everywhere but in the last column of rows that hold something there."""
    index = torch.full_like(mask, -1)
    index[:, -1] = torch.where(mask[:, -1] > 0, value, -1)
    return index


def _inverse_cdf(logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Tensor:
    """The token at which the cumulative distribution passes each uniform number."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return chosen[:, 0].clamp(max=logits.shape[-1] - 1)
