"""Whoever is evaluated: answers conversations, and says how likely it finds given answers.

Evaluations know a model through this interface alone, so that scripted subjects with known
behaviour can take its place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.forward import can_share, common_length
from homeostat.models.logprobs import token_statistics
from homeostat.rollout.generate import Sampler
from homeostat.rollout.replies import Sampling, base_nll, predicting_in, reply_ids, sampled
from homeostat.types import Conversation, Progress, TokenStream, Turn, silent

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


@dataclass(frozen=True)
class Reply:
    """A sampled reply: its text, its ids, and -log p of each under the plain base, nats."""

    text: str
    ids: tuple[int, ...]
    base_nll_R: Float[np.ndarray, " R"]


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

    def sample(self, talks: Sequence[Conversation], sampling: Sampling) -> list[Reply]:
        """A sampled reply to each conversation, as the base reads it."""

    def read(self, texts: Sequence[str]) -> list[Float[np.ndarray, " T"]]:
        """-log p of every token but the first of plain texts, without a chat template; nats."""

    def reference(self) -> AbstractContextManager[None]:
        """Within this context the subject is its own base."""


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

    def split(self, rows: Sequence[int]) -> Dialogues:
        """Dialogues that go on from these, in this order; one that is named twice, in two ways."""


class PolicySubject:
    """A policy as it is now: within `Policy.reference` the base.

    Conversations are batched; what they all begin with is read once, and a conversation is read
    once for all of its answers.

    Attributes:
        tokens: How many it has read and written so far; what a batch shares counts once for each.
    """

    def __init__(self, policy: Policy, progress: Progress = silent) -> None:
        self.policy = policy
        self.progress = progress
        self.tokens = 0

    def open(self, rows: int) -> PolicyDialogues:
        """See `Subject.open`."""
        return PolicyDialogues(self, rows)

    def reference(self) -> AbstractContextManager[None]:
        """See `Subject.reference`."""
        return self.policy.reference()

    def sample(self, talks: Sequence[Conversation], sampling: Sampling) -> list[Reply]:
        """See `Subject.sample`."""
        said = [talk for talk, _ in sampled(self.policy, talks, sampling)]
        nll = base_nll(self.policy, said)
        self.tokens += sum(2 * len(self.policy.encode(talk).ids) for talk in said)
        return [
            Reply(talk.turns[-1].text, reply_ids(talk), own)
            for talk, own in zip(said, nll, strict=True)
        ]

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[Float[np.ndarray, " T"]]:
        """See `Subject.read`.

        Raises:
            HomeostatError: A text has fewer than two tokens, so that nothing in it is predicted.
        """
        found = []
        for ids in (self.policy.tokenizer(text)["input_ids"] for text in texts):
            if len(ids) < 2:
                raise HomeostatError(
                    f"a text of {len(ids)} tokens has nothing to predict; give longer texts."
                )
            rest = len(ids) - 1
            stream = TokenStream(list(ids), [-1] + [0] * rest, [False] + [True] * rest)
            found.append(stream)
            self.tokens += len(ids)
        states = predicting_in(self.policy, found)
        return [
            -token_statistics(
                own, torch.tensor(stream.ids[1:], device=own.device), self.policy.unembed
            )
            .logprob.cpu()
            .numpy()
            for own, stream in zip(states, found, strict=True)
        ]

    def score(
        self, talks: Sequence[Conversation], answers: Sequence[Sequence[str]], opening: str = ""
    ) -> list[list[Score]]:
        """See `Subject.score`."""
        begun = ids_of(self.policy, opening)
        prompts = [[*self.policy.encode(talk).ids, *begun] for talk in talks]
        given = [[ids_of(self.policy, text) for text in own] for own in answers]
        self.tokens += sum(map(len, prompts)) + sum(len(ids) for own in given for ids in own)
        # Side by side in the order of their ids stand those that begin alike.
        order = sorted(range(len(talks)), key=lambda i: prompts[i])
        found: list[list[Score]] = [[Score(0.0, 0)] * len(own) for own in given]
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            sampler = read_together(self.policy, [prompts[i] for i in part])
            branches = [(row, i, k) for row, i in enumerate(part) for k in range(len(given[i]))]
            for own in alike_in_length(branches, given):
                rows, replies = [row for row, _, _ in own], [given[i][k] for _, i, k in own]
                for (_, i, k), total in zip(own, totals(sampler, rows, replies), strict=True):
                    found[i][k] = Score(total, len(given[i][k]))
            self.progress(min(start + ROWS, len(order)), len(order))
        return found


class PolicyDialogues:
    """Dialogues with a policy on one KV cache: nothing is read twice, side questions branch off."""

    def __init__(self, subject: PolicySubject, rows: int) -> None:
        self.subject = subject
        self.policy = policy = subject.policy
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
        self.subject.tokens += sum(map(len, replies)) + sum(
            len(ids) - read for ids, read in zip(streams, self._read, strict=True)
        )
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
        found: list[list[list[Score]]] = [[] for _ in questions]
        # A branch has a copy of its dialogue's cache: only so many at a time.
        for start in range(0, len(cells), ROWS):
            part = cells[start : start + ROWS]
            prompts = [self._aside(row, text) + begun for row, text in part]
            self.subject.tokens += sum(map(len, prompts)) + len(part) * sum(map(len, given))
            branch = self._sampler.keep([row for row, _ in part])
            branch.append(prompts)
            scores = [totals(branch, range(len(part)), [ids] * len(part)) for ids in given]
            for (row, _), own in zip(part, zip(*scores, strict=True), strict=True):
                read = zip(own, given, strict=True)
                found[row].append([Score(total, len(ids)) for total, ids in read])
        return found

    def _aside(self, row: int, text: str) -> list[int]:
        """What a dialogue has not read yet if its user says this next."""
        talk = Conversation((*self.talks[row].turns, Turn("user", text)))
        return self.policy.encode(talk).ids[self._read[row] :]

    def split(self, rows: Sequence[int]) -> PolicyDialogues:
        """See `Dialogues.split`."""
        other = copy.copy(self)
        other.talks = [self.talks[row] for row in rows]
        other._sampler = self._sampler.keep(rows)
        other._read = [self._read[row] for row in rows]
        return other

    def _grow(self, turns: Sequence[Turn]) -> None:
        self.talks = [
            Conversation((*talk.turns, turn)) for talk, turn in zip(self.talks, turns, strict=True)
        ]


def read_together(policy: Policy, prompts: Sequence[Sequence[int]]) -> Sampler:
    """A sampler that has read these prompts, a row each; beginnings that some share only once."""
    stems, stem_of = shared_stems(prompts) if can_share(policy) else ([], [])
    if not stems:
        sampler = Sampler(policy, len(prompts))
        sampler.append(prompts)
        return sampler
    sampler = Sampler(policy, len(stems))
    sampler.append(stems)
    sampler = sampler.keep(stem_of)
    rest = zip(prompts, stem_of, strict=True)
    sampler.append([prompt[len(stems[stem]) :] for prompt, stem in rest])
    return sampler


def shared_stems(
    prompts: Sequence[Sequence[int]],
) -> tuple[list[Sequence[int]], list[int]]:
    """Beginnings to be read once for the neighbours that share them.

    Neighbours that share at least so many ids make a group, and its stem is what the whole group
    shares; of all such lengths the one is taken by which the fewest columns are computed, padding
    included. At least one id of every prompt is left, so that something predicts what follows.

    Args:
        prompts: Sorted, so that those which begin alike are neighbours.

    Returns:
        The stems, and each prompt's number among them; empty where nothing is gained.
    """
    alike = [common_length(pair) for pair in pairwise(prompts)]
    common = min([*alike, *map(len, prompts)])
    best = len(prompts) * (max(map(len, prompts)) - common)  # only what all share is read once
    found: tuple[list[Sequence[int]], list[int]] = ([], [])
    for least in sorted({length for length in alike if length > common}):
        groups = [0, *accumulate(int(length < least) for length in alike)]
        members = [
            [p for p, group in zip(prompts, groups, strict=True) if group == g]
            for g in range(groups[-1] + 1)
        ]
        lengths = [min(common_length(own), min(map(len, own)) - 1) for own in members]
        rest = max(len(p) - lengths[g] for p, g in zip(prompts, groups, strict=True))
        columns = len(members) * (max(lengths) - common) + len(prompts) * rest
        if columns < best:
            best = columns
            stems = [own[0][:length] for own, length in zip(members, lengths, strict=True)]
            found = stems, groups
    return found


def alike_in_length(
    branches: Sequence[tuple[int, int, int]], given: Sequence[Sequence[Sequence[int]]]
) -> Iterator[list[tuple[int, int, int]]]:
    """Branches (row, prompt, answer) in batches whose answers need no padding."""

    def length(branch: tuple[int, int, int]) -> int:
        return len(given[branch[1]][branch[2]])

    for _, group in groupby(sorted(branches, key=length), length):
        own = list(group)
        for first in range(0, len(own), BRANCHES):
            yield own[first : first + BRANCHES]


def totals(sampler: Sampler, rows: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of a reply after some of the rows, nats; the sampler has read nothing more.

    Args:
        sampler: Has read the prompts.
        rows: A row may be named more than once.
        replies: Equally many ids for each.
    """
    if len(replies[0]) == 1:
        return sampler.next_logprob(rows, [ids[0] for ids in replies]).tolist()
    return [float(own.sum()) for own in sampler.keep(rows).score(replies)]


def ids_of(policy: Policy, text: str) -> list[int]:
    """Token ids of a text that stands on its own."""
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
