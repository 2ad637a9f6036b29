"""Replies to single messages: sampled, steered or not, and read again under the base model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from homeostat.models.adapters import Policy
from homeostat.models.chat import until_last_response
from homeostat.models.forward import forward, make_batch, read_in_batches, read_prefix
from homeostat.models.hooks import Steering
from homeostat.models.logprobs import (
    TokenStatistics,
    predicting_hidden,
    token_logprobs,
    token_statistics,
)
from homeostat.rollout.generate import ALL, BATCH, Nucleus, Sampler
from homeostat.types import Conversation, Progress, TokenStream, Turn, silent


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn; ``key`` and a reply's own number give its random numbers."""

    max_new_tokens: int
    temperature: float
    key: tuple[int, ...]
    nucleus: Nucleus = ALL

    def uniforms(self, number: int) -> Float[np.ndarray, " N"]:
        """The random numbers behind one reply."""
        return np.random.default_rng([*self.key, number]).random(self.max_new_tokens)


def with_sampled_replies(
    policy: Policy,
    talks: Sequence[Conversation],
    sampling: Sampling,
    steering: Steering | None = None,
    first: int = 0,
    progress: Progress = silent,
) -> list[Conversation]:
    """Every conversation with one more reply, sampled from the policy as it is; see `sampled`."""
    replied = sampled(policy, talks, sampling, steering, first, progress)
    return [talk for talk, _ in replied]


def sampled(
    policy: Policy,
    talks: Sequence[Conversation],
    sampling: Sampling,
    steering: Steering | None = None,
    first: int = 0,
    progress: Progress = silent,
) -> list[tuple[Conversation, Tensor]]:
    """Every conversation with one more reply, and the hidden states that it was drawn from.

    The states, ``[R, D]`` of a reply, are what `predicting` would give, so that a policy never
    reads its own reply again.

    Args:
        policy: As it is now.
        talks: Each ends with a user's turn.
        sampling: Length, temperature and random numbers.
        steering: Acts while they are drawn, where given; one dose for all, or one for each.
        first: Number of the first reply; a reply depends on its number, not on the batch.
        progress: Told how many replies are done, and their tokens.
    """
    replied: list[tuple[Conversation, Tensor]] = []
    for start in range(0, len(talks), BATCH):
        part = talks[start : start + BATCH]
        numbers = [sampling.uniforms(first + start + row) for row in range(len(part))]
        prompts = [policy.encode(talk).ids for talk in part]
        sampler = Sampler(policy, len(part))
        rows = None if steering is None else steering.rows(start, start + len(part))
        with nullcontext() if rows is None else policy.steered(rows):
            sampler.append(prompts)
            ids = sampler.sample(np.stack(numbers), sampling.temperature, sampling.nucleus)
        replied += [
            (_with_reply(policy, talk, new), states)
            for talk, new, states in zip(part, ids, sampler.predicted_from, strict=True)
        ]
        progress(len(replied), len(talks), sum(map(len, ids)))
    return replied


def _with_reply(policy: Policy, talk: Conversation, ids: Sequence[int]) -> Conversation:
    text = policy.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Conversation((*talk.turns, Turn("assistant", text, token_ids=tuple(ids))))


def with_given_reply(policy: Policy, talk: Conversation, text: str) -> Conversation:
    """The conversation with a reply that somebody else wrote, read as if it had been sampled."""
    return Conversation((*talk.turns, _given(policy, text)))


def with_given_replies(policy: Policy, talk: Conversation) -> Conversation:
    """The conversation with all of its replies read as if they had been sampled."""
    turns = (_given(policy, t.text) if t.role == "assistant" else t for t in talk.turns)
    return Conversation(tuple(turns))


def _given(policy: Policy, text: str) -> Turn:
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Turn("assistant", text, token_ids=tuple(ids))


def predicting(policy: Policy, talks: Sequence[Conversation]) -> list[Float[Tensor, "R D"]]:
    """Final hidden states that predict each reply's tokens, policy as it is; no gradients."""
    return predicting_in(policy, [until_last_response(policy.encode(talk)) for talk in talks])


def predicting_in(policy: Policy, streams: Sequence[TokenStream]) -> list[Float[Tensor, "R D"]]:
    """Final hidden states that predict the response tokens of each stream; no gradients."""

    @torch.no_grad()
    def read(part: list[TokenStream], _places: list[int]) -> list[Tensor]:
        batch = make_batch(policy, part)
        prefix = read_prefix(policy, batch)
        hidden = predicting_hidden(forward(policy, batch, prefix), batch.response_mask)
        return list(torch.split(hidden, [sum(stream.response) for stream in part]))

    return read_in_batches(streams, read)


def reply_ids(talk: Conversation) -> tuple[int, ...]:
    """Ids of a conversation's last reply."""
    return talk.turns[talk.assistant_turns[-1]].token_ids or ()


def replied_ids(policy: Policy, talks: Sequence[Conversation]) -> Int[Tensor, " R"]:
    """Ids of every sampled reply of all conversations, one after the other."""
    ids = [token for talk in talks for turn in talk.turns for token in turn.token_ids or ()]
    return torch.tensor(ids, dtype=torch.long, device=policy.device)


@torch.no_grad()
def read_replies(
    policy: Policy,
    talks: Sequence[Conversation],
    ref_talks: Sequence[Conversation] | None = None,
) -> list[TokenStatistics]:
    """What the policy as it is says about each conversation's reply, token by token.

    Args:
        policy: As it is now.
        talks: Each ends with a reply.
        ref_talks: The conversations as the base is to read them, with the same replies; gives the
            reference's log-probabilities and KL(policy || base). None: no reference.
    """
    return statistics_of(policy, talks, predicting(policy, talks), ref_talks)


@torch.no_grad()
def statistics_of(
    policy: Policy,
    talks: Sequence[Conversation],
    states: Sequence[Tensor],
    ref_talks: Sequence[Conversation] | None = None,
) -> list[TokenStatistics]:
    """What `read_replies` says, from hidden states ``[R, D]`` of each reply that are there."""
    if not talks:
        return []
    refs = None
    if ref_talks is not None:
        with policy.reference():
            refs = torch.cat(predicting(policy, ref_talks))
    targets = replied_ids(policy, talks)
    whole = token_statistics(torch.cat(list(states)), targets, policy.unembed, refs)
    return whole.split([len(hidden) for hidden in states])


@torch.no_grad()
def base_nll(policy: Policy, talks: Sequence[Conversation]) -> list[Float[np.ndarray, " R"]]:
    """-log p, in nats, of each token of a talk's sampled replies; the base, without any persona."""
    if not talks:
        return []
    with policy.reference():
        states = predicting(policy, [talk.unprompted for talk in talks])
    nll_R = -token_logprobs(torch.cat(states), replied_ids(policy, talks), policy.unembed)
    return [nll.cpu().numpy() for nll in torch.split(nll_R, [len(hidden) for hidden in states])]
