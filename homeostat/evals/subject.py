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
from homeostat.types import Conversation, Progress, Turn, silent

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

    def open(self, rows: int) -> Dialogues:
        """So many empty dialogues, to be talked in."""


@runtime_checkable
class Dialogues(Protocol):
    """Dialogues that go on side by side; the subject's own replies are fed back to it."""

    def say(self, messages: Sequence[str], max_new_tokens: int) -> list[str]:
        """One user message per dialogue; returns the greedy replies."""

    def ask_aside(
        self, questions: Sequence[Sequence[str]], answers: Sequence[str], opening: str
    ) -> list[list[list[Score]]]:
        """How likely the answers to some questions are at this point; nothing of it is kept.

        Args:
            questions: As many to each dialogue.
            answers: The same for every question.
            opening: Words that each reply begins with already.

        Returns:
            By dialogue, question and answer.
        """


class PolicySubject:
    """A policy as it is now: within `Policy.reference` the base.

    Conversations are batched; what they all begin with is read once, and a conversation is read
    once for all of its answers.
    """

    def __init__(self, policy: Policy, progress: Progress = silent) -> None:
        self.policy = policy
        self.progress = progress

    def open(self, rows: int) -> PolicyDialogues:
        """See `Subject.open`."""
        return PolicyDialogues(self.policy, rows)

    def score(
        self, talks: Sequence[Conversation], answers: Sequence[Sequence[str]], opening: str = ""
    ) -> list[list[Score]]:
        """See `Subject.score`."""
        begun = ids_of(self.policy, opening)
        prompts = [[*self.policy.encode(talk).ids, *begun] for talk in talks]
        given = [[ids_of(self.policy, text) for text in own] for own in answers]
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
            self.progress(min(start + ROWS, len(order)), len(order))
        return found


class PolicyDialogues:
    """Dialogues with a policy on one KV cache: nothing is read twice, side questions branch off."""

    def __init__(self, policy: Policy, rows: int) -> None:
        self.policy = policy
        self.talks = [Conversation(())] * rows
        self._sampler = Sampler(policy, rows)
        self._read = [0] * rows

    def say(self, messages: Sequence[str], max_new_tokens: int) -> list[str]:
        """See `Dialogues.say`."""
        self._grow([Turn("user", text) for text in messages])
        streams = [self.policy.encode(talk).ids for talk in self.talks]
        self._sampler.append([ids[read:] for ids, read in zip(streams, self._read, strict=True)])
        uniforms = np.full((len(streams), max_new_tokens), 0.5)
        replies = self._sampler.sample(uniforms, GREEDY)
        texts = [
            self.policy.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies
        ]
        turns = zip(texts, replies, strict=True)
        self._grow([Turn("assistant", text, token_ids=tuple(ids)) for text, ids in turns])
        self._read = [len(ids) + len(reply) for ids, reply in zip(streams, replies, strict=True)]
        return texts

    def ask_aside(
        self, questions: Sequence[Sequence[str]], answers: Sequence[str], opening: str
    ) -> list[list[list[Score]]]:
        """See `Dialogues.ask_aside`."""
        begun = ids_of(self.policy, opening)
        given = [ids_of(self.policy, text) for text in answers]
        cells = [(row, text) for row, own in enumerate(questions) for text in own]
        asked = [Conversation((*self.talks[row].turns, Turn("user", text))) for row, text in cells]
        branch = self._sampler.keep([row for row, _ in cells])
        branch.append(
            [
                [*self.policy.encode(talk).ids[self._read[row] :], *begun]
                for talk, (row, _) in zip(asked, cells, strict=True)
            ]
        )
        found: list[list[list[Score]]] = [[[] for _ in own] for own in questions]
        places = [(row, k) for row, own in enumerate(questions) for k in range(len(own))]
        for ids in given:
            scores = branch.keep(range(len(cells))).score([ids] * len(cells))
            for (row, k), logprob in zip(places, scores, strict=True):
                found[row][k].append(Score(float(logprob.sum()), len(logprob)))
        return found

    def _grow(self, turns: Sequence[Turn]) -> None:
        self.talks = [
            Conversation((*talk.turns, turn)) for talk, turn in zip(self.talks, turns, strict=True)
        ]


def ids_of(policy: Policy, text: str) -> list[int]:
    """Token ids of a text that stands on its own."""
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
