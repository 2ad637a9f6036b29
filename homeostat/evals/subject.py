"""Whoever is evaluated: answers conversations, and says how likely it finds given answers.

Evaluations know a model through this interface alone, so that scripted subjects with known
behaviour can take its place.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from homeostat.errors import HomeostatError
from homeostat.evals.branches import alike_in_length, ids_of, read_together, totals
from homeostat.models.adapters import Policy
from homeostat.models.logprobs import token_logprobs
from homeostat.rollout.generate import BATCH, Sampler
from homeostat.rollout.replies import Sampling, base_nll, predicting_in, reply_ids, sampled
from homeostat.types import Conversation, TokenStream, Turn

ROWS = 32  # prompts that share a cache
TEXTS = 256  # plain texts that are read at once
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
class SampledReply:
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

    def sample(self, talks: Sequence[Conversation], sampling: Sampling) -> list[SampledReply]:
        """A sampled reply to each conversation, as the base reads it."""

    def read(self, texts: Sequence[str]) -> list[Float[np.ndarray, " T"]]:
        """-log p of every token but the first of plain texts, without a chat template; nats."""

    def reference(self) -> AbstractContextManager[None]:
        """Within this context the subject is its own base."""

    def keep(self, recipe: Any, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns; whoever measures may keep it, for a run that is killed.

        The other methods keep each batch themselves. Dialogues cannot: whoever holds some together
        says here when they are over.

        Args:
            recipe: What the result follows from beside the subject, JSON-ready.
            compute: Returns something JSON-ready.
        """


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


Keep = Callable[[Any, Callable[[], Any]], Any]


def compute_anew(_recipe: Any, compute: Callable[[], Any]) -> Any:
    """Keep nothing."""
    return compute()


class PolicySubject:
    """A policy as it is now: within `Policy.reference` the base.

    Conversations are batched; what they all begin with is read once, and a conversation is read
    once for all of its answers.

    Attributes:
        tokens: How many it has read and written so far; what a batch shares counts once for each.
        talks: How many replies it has given, or found more or less likely, so far.
        spared_s: Seconds that went, in an earlier process, into what was taken from there.
    """

    def __init__(
        self,
        policy: Policy,
        told: Callable[[int], None] = lambda _tokens: None,
        kept: Keep = compute_anew,
        system: str | None = None,
    ) -> None:
        """A subject.

        Args:
            policy: To be evaluated.
            told: Hears of every batch that is done, and how many tokens it had.
            kept: Returns what a recipe came to in an earlier process, or computes and keeps it.
            system: A system turn that stands in front of every conversation; plain texts have none.
        """
        self.policy = policy
        self.system = system
        self.tokens, self.talks, self.spared_s = 0, 0, 0.0
        self._told = told
        self._kept = kept

    def keep(self, recipe: Any, compute: Callable[[], Any]) -> Any:
        """See `Subject.keep`; adapter and prompt make other subjects of the same weights."""
        fresh = False

        def measured() -> dict[str, Any]:
            nonlocal fresh
            fresh, began, before = True, time.perf_counter(), (self.tokens, self.talks)
            result = compute()
            spent = {"tokens": self.tokens - before[0], "talks": self.talks - before[1]}
            return {"result": result, "seconds": time.perf_counter() - began, **spent}

        kept = self._kept([self.policy.adapter_on, self.system, recipe], measured)
        if not fresh:
            self.spared_s += kept["seconds"]
            self.count(kept["tokens"], kept["talks"])
        return kept["result"]

    def count(self, tokens: int, talks: int = 0) -> None:
        """Note what a batch has taken."""
        self.tokens += tokens
        self.talks += talks
        self._told(tokens)

    def open(self, rows: int) -> PolicyDialogues:
        """See `Subject.open`."""
        return PolicyDialogues(self, rows)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See `Subject.reference`; the base is told nothing."""
        system, self.system = self.system, None
        try:
            with self.policy.reference():
                yield
        finally:
            self.system = system

    def prompted(self, talk: Conversation) -> Conversation:
        """A conversation as the subject reads it."""
        if self.system is None:
            return talk
        return Conversation((Turn("system", self.system), *talk.turns))

    def sample(self, talks: Sequence[Conversation], sampling: Sampling) -> list[SampledReply]:
        """See `Subject.sample`."""
        talks = [self.prompted(talk) for talk in talks]
        said = []
        for first in range(0, len(talks), BATCH):
            part = talks[first : first + BATCH]
            prompts = [self.policy.encode(talk).ids for talk in part]
            replies = self.keep(
                ["sample", prompts, first, *astuple(sampling)],
                partial(self._sampled, part, sampling, first),
            )
            for talk, (text, ids) in zip(part, replies, strict=True):
                turn = Turn("assistant", text, token_ids=tuple(ids))
                said.append(Conversation((*talk.turns, turn)))
        nll = base_nll(self.policy, said)
        return [
            SampledReply(talk.turns[-1].text, reply_ids(talk), nats)
            for talk, nats in zip(said, nll, strict=True)
        ]

    def _sampled(
        self, talks: Sequence[Conversation], sampling: Sampling, first: int
    ) -> list[tuple[str, list[int]]]:
        """Texts and ids of replies; ``first`` is the number of the first."""
        said = [talk for talk, _ in sampled(self.policy, talks, sampling, first=first)]
        # Read twice: once while it is sampled, and once by the base.
        self.count(sum(2 * len(self.policy.encode(talk).ids) for talk in said), len(said))
        return [(talk.turns[-1].text, list(reply_ids(talk))) for talk in said]

    def read(self, texts: Sequence[str]) -> list[Float[np.ndarray, " T"]]:
        """See `Subject.read`.

        Raises:
            HomeostatError: A text has fewer than two tokens, so that nothing in it is predicted.
        """
        streams: list[list[int]] = [list(self.policy.tokenizer(t)["input_ids"]) for t in texts]
        for ids in streams:
            if len(ids) < 2:
                raise HomeostatError(
                    f"a text of {len(ids)} tokens has nothing to predict; give longer texts."
                )
        nll: list[list[float]] = []
        for first in range(0, len(streams), TEXTS):
            part = streams[first : first + TEXTS]
            nll += self.keep(["read", part], partial(self._read, part))
        return [np.array(nats, dtype=np.float32) for nats in nll]

    @torch.no_grad()
    def _read(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """-log p of every id but the first."""
        streams = [
            TokenStream(ids, [-1] + [0] * (len(ids) - 1), [False] + [True] * (len(ids) - 1))
            for ids in texts
        ]
        states = torch.cat(predicting_in(self.policy, streams))
        targets = [token for ids in texts for token in ids[1:]]
        ids_R = torch.tensor(targets, device=self.policy.device)
        nll_R = -token_logprobs(states, ids_R, self.policy.unembed)
        self.count(sum(map(len, texts)), len(texts))
        of_texts = torch.split(nll_R, [len(ids) - 1 for ids in texts])
        return [nats.cpu().tolist() for nats in of_texts]

    def score(
        self, talks: Sequence[Conversation], answers: Sequence[Sequence[str]], opening: str = ""
    ) -> list[list[Score]]:
        """See `Subject.score`."""
        begun = ids_of(self.policy, opening)
        prompts = [[*self.policy.encode(self.prompted(talk)).ids, *begun] for talk in talks]
        given = [[ids_of(self.policy, text) for text in texts] for texts in answers]
        # Side by side in the order of their ids stand those that begin alike.
        order = sorted(range(len(talks)), key=lambda i: prompts[i])
        scores: dict[int, list[Score]] = {}
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            batch = [prompts[i] for i in part], [given[i] for i in part]
            sums = self.keep(["score", *batch], partial(self._sums, *batch))
            for i, totals_K in zip(part, sums, strict=True):
                pairs = zip(totals_K, given[i], strict=True)
                scores[i] = [Score(total, len(ids)) for total, ids in pairs]
        return [scores[i] for i in range(len(talks))]

    def _sums(
        self, prompts: Sequence[Sequence[int]], given: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """Log-probability of each prompt's answers, nats."""
        sampler = read_together(self.policy, prompts)
        branches = [(row, k) for row, answers in enumerate(given) for k in range(len(answers))]
        sums = [[0.0] * len(answers) for answers in given]
        for alike in alike_in_length(branches, given):
            replies = [given[row][k] for row, k in alike]
            logprobs = totals(sampler, [row for row, _ in alike], replies)
            for (row, k), total in zip(alike, logprobs, strict=True):
                sums[row][k] = total
        read = sum(map(len, prompts)) + sum(len(ids) for answers in given for ids in answers)
        self.count(read, len(prompts))
        return sums


class PolicyDialogues:
    """Dialogues with a policy on one KV cache: nothing is read twice, side questions branch off."""

    def __init__(self, subject: PolicySubject, rows: int) -> None:
        self.subject = subject
        self.policy = policy = subject.policy
        self.talks = [subject.prompted(Conversation(()))] * rows
        self._sampler = Sampler(policy, rows)
        self._read = [0] * rows

    def say(self, messages: Sequence[str], max_new_tokens: int) -> list[str]:
        """See `Dialogues.say`."""
        self._grow([Turn("user", text) for text in messages])
        streams = [self.policy.encode(talk).ids for talk in self.talks]
        self._sampler.append([ids[read:] for ids, read in zip(streams, self._read, strict=True)])
        uniforms = np.full((len(streams), max_new_tokens), 0.5)
        replies = self._sampler.sample(uniforms, GREEDY)
        read = sum(len(ids) - before for ids, before in zip(streams, self._read, strict=True))
        self.subject.count(read + sum(map(len, replies)), len(replies))
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
        cells = [(row, text) for row, texts in enumerate(questions) for text in texts]
        scores_by_row: list[list[list[Score]]] = [[] for _ in questions]
        # A branch has a copy of its dialogue's cache: only so many at a time.
        for start in range(0, len(cells), ROWS):
            part = cells[start : start + ROWS]
            prompts = [self._aside(row, text) + begun for row, text in part]
            self.subject.count(sum(map(len, prompts)) + len(part) * sum(map(len, given)))
            branch = self._sampler.keep([row for row, _ in part])
            branch.append(prompts)
            scores = [totals(branch, range(len(part)), [ids] * len(part)) for ids in given]
            for (row, _), sums in zip(part, zip(*scores, strict=True), strict=True):
                read = zip(sums, given, strict=True)
                scores_by_row[row].append([Score(total, len(ids)) for total, ids in read])
        return scores_by_row

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
