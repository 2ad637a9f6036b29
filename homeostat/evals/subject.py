"""Whoever is evaluated: answers conversations, and says how likely it finds given answers.

Evaluations know a model through this interface alone, so that scripted subjects with known
behaviour can take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from homeostat.models.adapters import Policy
from homeostat.rollout.generate import Sampler
from homeostat.types import Conversation, Progress, silent

ROWS = 32  # prompts that share a cache
BRANCHES = 96  # given answers read at once
GREEDY = 1e-4  # a temperature that is as good as none


@dataclass(frozen=True)
class Score:
    """Log-probability of an answer, nats, and how many tokens it has."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens


@runtime_checkable
class Subject(Protocol):
    """Answers conversations; each ends with a user's turn."""

    def score(
        self, talks: Sequence[Conversation], answers: Sequence[Sequence[str]], opening: str = ""
    ) -> list[list[Score]]:
        """How likely each conversation's answers are as the beginning of the reply.

        Args:
            talks: To be answered.
            answers: Some texts per conversation.
            opening: Words that the reply begins with already.
        """

    def reply(self, talks: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """The greedy reply to each conversation."""


class PolicySubject:
    """A policy as it is now: within `Policy.reference` the base.

    Conversations are batched; what they all begin with is read once, and a conversation is read
    once for all of its answers.
    """

    def __init__(self, policy: Policy, progress: Progress = silent) -> None:
        self.policy = policy
        self.progress = progress
        self.tokens_read = 0

    def score(
        self, talks: Sequence[Conversation], answers: Sequence[Sequence[str]], opening: str = ""
    ) -> list[list[Score]]:
        """See `Subject.score`."""
        prompts = [[*self.policy.encode(talk).ids, *self._ids(opening)] for talk in talks]
        given = [[self._ids(text) for text in own] for own in answers]
        order = sorted(range(len(talks)), key=lambda i: len(prompts[i]))
        found: list[list[Score]] = [[] for _ in talks]
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            sampler = Sampler(self.policy, len(part))
            sampler.append([prompts[i] for i in part])
            branches = [(row, i, k) for row, i in enumerate(part) for k in range(len(given[i]))]
            for first in range(0, len(branches), BRANCHES):
                own = branches[first : first + BRANCHES]
                scores = sampler.keep([row for row, _, _ in own]).score(
                    [given[i][k] for _, i, k in own]
                )
                for (_, i, _), logprob in zip(own, scores, strict=True):
                    found[i].append(Score(float(logprob.sum()), len(logprob)))
            self.tokens_read += sum(len(prompts[i]) + sum(map(len, given[i])) for i in part)
            self.progress(min(start + ROWS, len(order)), len(order))
        return found

    def reply(self, talks: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """See `Subject.reply`."""
        found: list[str] = []
        for start in range(0, len(talks), ROWS):
            part = talks[start : start + ROWS]
            sampler = Sampler(self.policy, len(part))
            sampler.append([self.policy.encode(talk).ids for talk in part])
            ids = sampler.sample(np.full((len(part), max_new_tokens), 0.5), GREEDY)
            found += [
                self.policy.tokenizer.decode(own, skip_special_tokens=True).strip() for own in ids
            ]
            self.progress(len(found), len(talks), sum(map(len, ids)))
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
