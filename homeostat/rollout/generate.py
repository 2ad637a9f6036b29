"""Batched sampling with a KV cache that lives over all turns of an episode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.forward import WORTH_SHARING, can_share, common_length
from homeostat.models.kv_cache import is_roomy, reserve, roomy_cache, take_back
from homeostat.models.logprobs import token_logprobs
from homeostat.models.lora import lean_adapters
from homeostat.types import TokenBlock

BATCH = 48  # rows that share a cache
LEAVE = 0.5  # share of rows that go on, below which those that have ended leave the batch


@dataclass(frozen=True)
class Nucleus:
    """Which next tokens may be drawn at all, after the temperature has acted.

    Attributes:
        top_p: The likeliest tokens that together reach this probability; 1 = all.
        top_k: At most so many of the likeliest; None = all.
    """

    top_p: float = 1.0
    top_k: int | None = None

    def keep(self, probs: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The probabilities, 0 where a token may not be drawn; not normalised again.

        The token that reaches ``top_p`` is kept, so at least one is. ``top_k`` acts first, and
        ``top_p`` is a share of what it leaves. Tokens as likely as the last one kept are kept too.

        Source: Holtzman et al. 2020, arXiv 1904.09751, section 3.1; Fan et al. 2018, arXiv
        1805.04833, section 5.2.
        """
        if self.top_k is not None and self.top_k < probs.shape[-1]:
            least = probs.topk(self.top_k, dim=-1).values[:, -1:]
            probs = probs * (probs >= least)
        if self.top_p < 1:
            ordered = probs.sort(dim=-1, descending=True).values
            before = ordered.cumsum(dim=-1) - ordered
            wanted = before < self.top_p * probs.sum(dim=-1, keepdim=True)
            last = wanted.sum(dim=-1, keepdim=True).clamp(min=1) - 1
            probs = probs * (probs >= ordered.gather(-1, last))
        return probs


ALL = Nucleus()


@dataclass
class _Replies:
    """What has been drawn so far: tokens, the states that they come from, and how many."""

    tokens: Int[Tensor, "B N"]
    states: Float[Tensor, "B N D"]
    length: Int[Tensor, " B"]

    @classmethod
    def none(cls, rows: int, limit: int, like: Float[Tensor, "B D"], pad_id: int) -> _Replies:
        """Room for so many rows and tokens."""
        tokens = torch.full((rows, limit), pad_id, device=like.device)
        states = like.new_zeros(rows, limit, like.shape[1])
        return cls(tokens, states, torch.zeros(rows, dtype=torch.long, device=like.device))

    def put(self, rows: Tensor, step: int, tokens: Tensor, states: Tensor) -> None:
        """One more token of some rows."""
        self.tokens[rows, step], self.states[rows, step] = tokens, states
        self.length[rows] = step + 1


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
        self._cache = roomy_cache(policy.text_config)
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
        if self._mask.shape[1]:
            self._read(blocks)
            return
        # Episodes of one group begin alike: each prompt is read once and lent to its rows.
        prompts = list(dict.fromkeys(map(tuple, blocks)))
        alike = len(prompts) < len(blocks) and self._policy.treats_rows_alike
        if not alike or not can_share(self._policy):
            self._read(self._read_once(blocks))
            return
        self._mask = self._mask[: len(prompts)]
        self._read(self._read_once([list(prompt) for prompt in prompts]))
        index = self._tensor([[prompts.index(tuple(block)) for block in blocks]])[0]
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        self._hidden = None if self._hidden is None else self._hidden[index]

    def _read(self, blocks: Sequence[list[int]]) -> None:
        """Read a block of each row, as wide as the longest."""
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
        self,
        uniforms: Float[np.ndarray, "B N"],
        temperature: float = 1.0,
        nucleus: Nucleus = ALL,
    ) -> list[list[int]]:
        """One reply per row: until the model ends its turn, or N tokens.

        A token is the inverse of the cumulative next-token distribution at the row's next uniform
        number, so a reply depends on its own numbers alone, and base and trained model can be
        compared on common random numbers.

        Returns:
            Sampled ids per row, the end-of-turn id included where it was sampled.
        """
        if self._hidden is None:
            raise ValueError("append a prompt before sampling.")
        device, (count, limit) = self._policy.device, uniforms.shape
        # Below 1 also in float32: a number that rounds up to 1 would pass the whole distribution.
        numbers = torch.from_numpy(uniforms).to(device, torch.float32).clamp(max=1 - 2**-24)
        drawn = _Replies.none(count, limit, self._hidden, self._policy.pad_id)
        with lean_adapters(self._policy.model):
            reserve(self._cache, limit)
            self._decode(drawn, numbers, temperature, nucleus)
        self._hidden = None  # of a token that the rows have passed
        lengths = drawn.length.tolist()
        replies = [ids[:n] for ids, n in zip(drawn.tokens.tolist(), lengths, strict=True)]
        # The newest token of each row has not been read yet; the next block begins with it.
        self._unread = [ids[-1:] for ids in replies]
        self.predicted_from = [row[:n] for row, n in zip(drawn.states, lengths, strict=True)]
        return replies

    @torch.no_grad()
    def _decode(
        self,
        drawn: _Replies,
        numbers: Float[Tensor, "B N"],
        temperature: float,
        nucleus: Nucleus,
    ) -> None:
        """Draw token by token; rows that have ended leave the batch once they are many."""
        eos = torch.tensor(self._policy.eos_ids, device=self._policy.device)
        part, rows = self, torch.arange(len(numbers), device=self._policy.device)
        goes_on, since = torch.ones_like(rows, dtype=torch.bool), 0
        for step in range(numbers.shape[1]):
            assert part._hidden is not None
            logits = self._policy.unembed(part._hidden)
            chosen = _inverse_cdf(logits, numbers[rows, step], temperature, nucleus)
            drawn.put(rows[goes_on], step, chosen[goes_on], part._hidden[goes_on])
            goes_on = goes_on & ~torch.isin(chosen, eos)
            left = int(goes_on.sum())
            if left == 0 or step + 1 == numbers.shape[1]:
                break
            if left <= LEAVE * len(rows) and self._can_part:
                self._take_back(part, rows, since)
                part, rows = part.keep(torch.nonzero(goes_on)[:, 0].tolist()), rows[goes_on]
                goes_on, since = torch.ones_like(rows, dtype=torch.bool), part._mask.shape[1]
                reserve(part._cache, numbers.shape[1] - step)
            number = torch.where(goes_on, step + 1, -1)
            part._forward(
                drawn.tokens[rows, step][:, None], goes_on.long()[:, None], number[:, None]
            )
        self._take_back(part, rows, since)

    @property
    def _can_part(self) -> bool:
        return is_roomy(self._cache) and self._policy.treats_rows_alike

    def _take_back(self, part: Sampler, rows: Tensor, since: int) -> None:
        """Take over what some rows have read on their own since column ``since``."""
        if part is self:
            return
        new = part._mask[:, since:]
        missing = part._mask.shape[1] - self._mask.shape[1]
        self._mask = torch.nn.functional.pad(self._mask, (0, missing))
        self._mask[rows, since:] = new
        take_back(self._cache, rows, part._cache, since)

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
            logprobs = token_logprobs(
                torch.cat(held), self._tensor([targets])[0], self._policy.unembed
            )
        return list(torch.split(logprobs, [len(reply) for reply in replies]))

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
            return token_logprobs(states, targets, self._policy.unembed)

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


def _inverse_cdf(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    temperature: float = 1.0,
    nucleus: Nucleus = ALL,
) -> Tensor:
    """The token at which the cumulative distribution passes each uniform number."""
    scaled = logits if temperature == 1 else logits / temperature
    cumulative = nucleus.keep(scaled.softmax(dim=-1)).cumsum(dim=-1)
    whole = cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * whole, right=True)
    # Where the product rounds up to the whole, the last token that may be drawn.
    return torch.minimum(chosen[:, 0], (cumulative < whole).sum(dim=-1))
