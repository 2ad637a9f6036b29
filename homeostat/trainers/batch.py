"""One update's experience: what was played, what it was paid, and which tokens are learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from homeostat.models.chat import until_last_response
from homeostat.reward.compose import Rewards
from homeostat.types import Episode, Metrics, Reading, TokenStream

Ragged = Sequence[Float[np.ndarray, " _"]]  # one array per episode, over its response tokens


@dataclass(frozen=True)
class Credit:
    """What a trainer makes of the rewards; without a critic there are no values and returns."""

    advantages: Ragged
    values: Ragged = ()
    returns: Ragged = ()


@dataclass(frozen=True)
class Batch:
    """One update's experience, in the order in which the episodes were played.

    The streams end with the last response: nothing is learned from what the user says then.
    ``references`` are the base's log-probabilities; ``held_back`` is 1 for the tokens of KL-Cov.
    """

    episodes: Sequence[Episode]
    streams: Sequence[TokenStream]
    readings: Sequence[Reading]
    rewards: Sequence[Rewards]
    logprobs: Ragged
    credit: Credit
    shares: Metrics = field(default_factory=dict)  # of the terms, in the variance of the reward
    references: Ragged = ()
    held_back: Ragged = ()

    def only(self, kept: Sequence[Bool[np.ndarray, " _"]]) -> Batch:
        """The same with some of the response tokens; episodes that have none of them are left out.

        Args:
            kept: Of every episode, which response tokens stay.
        """
        rows = [row for row, kept_R in enumerate(kept) if kept_R.any()]

        def tokens(arrays: Ragged) -> Ragged:
            return [arrays[row][kept[row]] for row in rows] if arrays else ()

        credit = self.credit
        return Batch(
            episodes=[self.episodes[row] for row in rows],
            streams=[_responding(self.streams[row], kept[row]) for row in rows],
            readings=[self.readings[row] for row in rows],
            rewards=[self.rewards[row] for row in rows],
            logprobs=tokens(self.logprobs),
            credit=Credit(*map(tokens, (credit.advantages, credit.values, credit.returns))),
            shares=self.shares,
            references=tokens(self.references),
        )


def response_turns(stream: TokenStream) -> Int[np.ndarray, " R"]:
    """Turn of each response token."""
    return np.array([t for t, own in zip(stream.turn, stream.response, strict=True) if own])


def reply_ends(stream: TokenStream, eos_ids: Sequence[int]) -> dict[int, bool]:
    """Of each sampled turn whether the model ended it itself, rather than running out of room."""
    tokens = zip(stream.turn, stream.ids, stream.response, strict=True)
    last = {turn: token for turn, token, own in tokens if own}
    return {turn: token in eos_ids for turn, token in last.items()}


def _responding(stream: TokenStream, kept_R: Bool[np.ndarray, " R"]) -> TokenStream:
    """The stream up to the last of the response tokens that stay responses."""
    response = np.array(stream.response)
    response[response] = kept_R
    return until_last_response(replace(stream, response=response.tolist()))


def gathered(arrays: Ragged, rows: Sequence[int], device: torch.device) -> Float[Tensor, " R"]:
    """The arrays of some episodes in a row."""
    return torch.from_numpy(np.concatenate([arrays[row] for row in rows])).to(device, torch.float32)
