"""The bank of one round: steered completions, sampled, read by the base, judged by the filter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.config.persona import PersonaConfig
from homeostat.config.steering import SteeringConfig
from homeostat.models.adapters import Policy
from homeostat.models.hooks import Steering
from homeostat.models.logprobs import token_statistics
from homeostat.rollout.generate import Nucleus
from homeostat.rollout.replies import (
    Sampling,
    base_nll,
    predicting,
    replied_ids,
    reply_ids,
    sampled,
    statistics_of,
    with_sampled_replies,
)
from homeostat.steering.filters import Steered, counts_by_dose, failed_gates, last_good_position
from homeostat.steering.vectors import Context, PersonaVector, as_message
from homeostat.timing import Stopwatch
from homeostat.types import Conversation, Progress, Turn, silent

WINDOW = 8  # tokens in which a completion may go wrong, for backtracking
ORDER, COMPLETION, AGAIN, BASE_REPLY = 3, 5, 7, 11  # what a random number is for


@dataclass(frozen=True)
class Source:
    """What completions are made from.

    Attributes:
        config: Of the loop.
        policy: The student so far.
        persona: What is steered towards; its narration is filtered.
        contexts: Messages that may be steered on.
        seed: Of the run.
        watch: Told where the time goes.
        group: Completions in a row that answer the same message.
        is_told: Whether a system line tells whoever completes to be the persona.
    """

    config: SteeringConfig
    policy: Policy
    persona: PersonaConfig
    contexts: Sequence[Context]
    seed: int
    watch: Stopwatch
    group: int = 1
    is_told: bool = False

    def ask(self, round_: int, first: int, count: int) -> list[Conversation]:
        """Messages of a round's completions, each as often as the others."""
        order = np.random.default_rng([self.seed, ORDER, round_]).permutation(len(self.contexts))
        places = (order[(first + i) // self.group % len(order)] for i in range(count))
        return [as_message(self.contexts[place].text) for place in places]

    def framed(self, talks: Sequence[Conversation]) -> list[Conversation]:
        """The messages as the teacher is asked them: under a system line, if it has one."""
        persona, lines = self.persona, []
        if persona.frame is not None:
            lines.append(persona.frame)
        if self.is_told:
            lines.append(persona.prompt.format(persona=persona.positive))
        if not lines:
            return list(talks)
        system = Turn("system", " ".join(lines))
        return [Conversation((system, *talk.turns)) for talk in talks]

    def sampling(self, *key: int) -> Sampling:
        """How completions are drawn, from random numbers of this key."""
        config = self.config
        nucleus = Nucleus(config.top_p, config.top_k)
        return Sampling(config.max_new_tokens, config.temperature, (self.seed, *key), nucleus)

    def base_perplexity(self, progress: Progress) -> float:
        """Median perplexity of the base's own replies to messages that may be steered on."""
        asked = self.ask(0, 0, self.config.batch_size)
        with self.watch("generate"), self.policy.reference():
            said = sampled(self.policy, asked, self.sampling(BASE_REPLY), progress=progress)
            talks, states = [talk for talk, _ in said], [hidden for _, hidden in said]
            statistics = statistics_of(self.policy, talks, states)
        return float(np.exp(np.median([-float(one.logprob.mean()) for one in statistics])))


@dataclass
class Bank:
    """Completions of one round, each with the conversation that it ends.

    Attributes:
        source: What they are made from.
        round: From 0.
        vector: What steers them.
        base_perplexity: Median of the base's own replies, for the filter.
        progress: Told how many are sampled.
        keeps_states: Whether ``states`` is wanted.
        completions: What was said.
        talks: The conversation that each ends.
        verdicts: The gates that each has failed; () = it passes.
        states: Of each, the hidden states ``[R, D]`` that its tokens were drawn from; without
            backtracking.
    """

    source: Source
    round: int
    vector: PersonaVector
    base_perplexity: float
    progress: Progress = silent
    keeps_states: bool = False
    completions: list[Steered] = field(default_factory=list)
    talks: list[Conversation] = field(default_factory=list)
    verdicts: list[tuple[str, ...]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.completions)

    def steering(self, dose: float | Sequence[float]) -> Steering:
        """The vector at a dose; one for all rows, or one for each."""
        return self.vector.steering(dose, self.source.config.dose)

    def fill(self, doses: Sequence[float]) -> None:
        """Sample one completion per dose, read by the base."""
        source, first = self.source, len(self)
        asked = source.framed(source.ask(self.round, first, len(doses)))
        with source.watch("generate"):
            said = sampled(
                source.policy,
                asked,
                source.sampling(COMPLETION, self.round),
                self.steering(doses),
                first=first,
                progress=self.progress,
            )
        talks = [talk for talk, _ in said]
        if self.keeps_states:
            self.states += [states for _, states in said]
        with source.watch("filter"):
            completions = self._read(talks, doses)
        for attempt in range(source.config.dose.backtracks):
            with source.watch("generate"):
                talks, completions = self._backtrack(attempt, talks, completions)
        self.talks += talks
        self.completions += completions
        self.verdicts += [self.failed_gates(completion) for completion in completions]

    def failed_gates(self, completion: Steered) -> tuple[str, ...]:
        """The gates that a completion fails."""
        source = self.source
        patterns = [re.compile(pattern) for pattern in source.persona.narration]
        return failed_gates(completion, source.config.filter, self.base_perplexity, patterns)

    def passed(self) -> list[int]:
        """Numbers of the completions that pass the filter."""
        return [i for i, failed in enumerate(self.verdicts) if not failed]

    def survival(self, dose: float) -> float:
        """Share of some new completions at a dose that pass the filter."""
        first = len(self)
        self.fill([dose] * self.source.config.dose.probe_size)
        return float(np.mean([not failed for failed in self.verdicts[first:]]))

    def kl_at(self, dose: float) -> float:
        """95th percentile of KL(steered || unsteered) over positions of new completions, nats."""
        policy, first = self.source.policy, len(self)
        self.fill([dose] * self.source.config.dose.probe_size)
        talks = self.talks[first:]
        with policy.steered(self.steering(dose)):
            steered = torch.cat(predicting(policy, talks))
        unsteered = torch.cat(predicting(policy, talks))
        with torch.no_grad():
            targets = replied_ids(policy, talks)
            kl_R = token_statistics(steered, targets, policy.unembed, unsteered).kl
        return float(torch.quantile(kl_R, 0.95))

    def fell(self) -> str:
        """How many completions each gate has stopped, in words."""
        counts: dict[str, int] = {}
        for failed in self.verdicts:
            for gate in failed:
                counts[gate] = counts.get(gate, 0) + 1
        return ", ".join(f"{gate} {count}" for gate, count in sorted(counts.items())) or "none"

    def _read(self, talks: Sequence[Conversation], doses: Sequence[float]) -> list[Steered]:
        nll = base_nll(self.source.policy, talks)
        return [
            Steered(talk.turns[-1].text, reply_ids(talk), nll_R, dose)
            for talk, nll_R, dose in zip(talks, nll, doses, strict=True)
        ]

    def _backtrack(
        self, attempt: int, talks: Sequence[Conversation], completions: Sequence[Steered]
    ) -> tuple[list[Conversation], list[Steered]]:
        """Cut what fell through the filter where it went wrong and go on with half the dose."""
        source = self.source
        again = [i for i, completion in enumerate(completions) if self.failed_gates(completion)]
        if not again:
            return list(talks), list(completions)
        heads = [self._head(talks[i], completions[i]) for i in again]
        doses = [completions[i].dose / 2 for i in again]
        sampling = source.sampling(AGAIN, self.round, attempt)
        rest = with_sampled_replies(source.policy, heads, sampling, self.steering(doses))
        new = list(talks)
        for i, head, longer in zip(again, heads, rest, strict=True):
            new[i] = self._rejoined(head, longer)
        read = list(completions)
        mended = self._read([new[i] for i in again], doses)
        for i, completion in zip(again, mended, strict=True):
            read[i] = completion
        return new, read

    def _head(self, talk: Conversation, completion: Steered) -> Conversation:
        """A conversation whose reply ends where it was still good."""
        good = last_good_position(
            completion, self.source.config.filter, self.base_perplexity, WINDOW
        )
        begun = Turn("assistant", "", token_ids=completion.ids[:good])
        return Conversation((*talk.turns[:-1], begun))

    def _rejoined(self, head: Conversation, longer: Conversation) -> Conversation:
        """The good beginning and what was sampled after it, as one reply."""
        source = self.source
        ids = (*(head.turns[-1].token_ids or ()), *reply_ids(longer))
        ids = ids[: source.config.max_new_tokens]
        text = source.policy.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Conversation((*head.turns[:-1], Turn("assistant", text, token_ids=ids)))


def fallen_by_gate(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What fell by dose and gate, from the records of what was sampled."""
    completions = [Steered(r["text"], (), np.zeros(0), r["dose"]) for r in records]
    return counts_by_dose(completions, [tuple(r["failed"]) for r in records])
