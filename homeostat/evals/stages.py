"""Where a stage of steering or healing stands: the trait, coherence, distance, foundations.

Every arm answers the same items: base, steered, healed, the base that is merely told to be the
persona, and where asked for the base that is told with examples, and base and healed when they are
told to be its opposite or lose their component along the vector. Rows are of six kinds:

    trait      a question with two given replies of equal length, one of either side of the trait:
               mean log-probability per token of the one less that of the other, nats per token
    reply      a context that is never steered or trained on, with a sampled reply: its perplexity
               under the plain base, whether it passes the gates of coherence, KL from the base per
               token, and how much of the trait shows where nothing invites it
    shown      a message that invites the trait, with a sampled reply: how much of it shows there,
               as a likelihood and as a shift (`homeostat.steering.shown`)
    talk       the same talk gone on with: how much shows in each of its replies, read alone
    vignette   the forced choice over moral foundations
    diary      the persona's own question with a sampled reply, to be read and not to be counted

A reply of a collapsed model fails the gates, so coherence falls whatever the trait says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from homeostat.config.persona import PersonaConfig
from homeostat.config.steering import StagesConfig
from homeostat.evals.foundations import FOUNDATIONS, Vignette, choose_foundations, informedness
from homeostat.evals.stats import compare_paired
from homeostat.evals.subject import PolicySubject
from homeostat.models.adapters import Policy
from homeostat.rollout.replies import (
    Sampling,
    base_nll,
    read_replies,
    reply_ids,
    sampled,
    statistics_of,
    with_given_reply,
    with_sampled_replies,
)
from homeostat.signals.repetition import repetition
from homeostat.steering.filters import Steered, failed_gates, is_coherent
from homeostat.steering.shown import shown_nats, shown_shift
from homeostat.steering.vectors import Context, PersonaVector, as_message, as_persona
from homeostat.types import Conversation, Estimate, Progress, Turn, silent

BASE, PROMPTED = "base", "prompted"
EXAMPLES = "examples"  # told to be the persona, and given examples
CONTRARY = "contrary"  # told to be the persona's opposite
ABLATED, BASE_ABLATED = "ablated", "base ablated"  # student and base without the direction
TOLD = {PROMPTED: "positive", EXAMPLES: "positive", CONTRARY: "negative"}
TALK = 31  # key of the random numbers behind later replies of a talk
ASKED = 16  # of the persona's own prompts, that system lines and examples come from
DIARY = "diary"  # kind of the row that is only read
VIGNETTE = "vignette"  # kind of the row of a forced choice
Row = dict[str, Any]


@dataclass(frozen=True)
class Stages:
    """The measurement that every stage of a run goes through.

    Attributes:
        config: How much is measured, and the gates of coherence.
        persona: The trait.
        contexts: Never steered or trained on.
        vignettes: To judge; may be empty.
        sampling: Of the replies; the same random numbers for every arm.
        base_perplexity: Median perplexity of the base's own replies.
        line: That tells a model to be the persona; None: the persona's own.
        examples: Turns between that line and a question: questions and replies that show the trait.
        vector: The persona's under the base, that shifts are read along; None: they are not read.
    """

    config: StagesConfig
    persona: PersonaConfig
    contexts: Sequence[Context]
    vignettes: Sequence[Vignette]
    sampling: Sampling
    base_perplexity: float
    line: str | None = None
    examples: tuple[Turn, ...] = ()
    vector: PersonaVector | None = None

    def measure(
        self,
        policy: Policy,
        told: str | None = None,
        progress: Progress = silent,
    ) -> list[Row]:
        """Rows of all kinds.

        Args:
            policy: As it is: within `Policy.reference` the base, within `Policy.steered` steered.
            told: The side of the persona that a system line tells the model to be; None: no line.
            progress: Told how many replies are done.
        """
        rows = [*self._trait(policy, told), *self._replies(policy, told, progress)]
        if self.vignettes:
            system = None if told is None else self._ask("", told).turns[0].text
            foundation_rows = choose_foundations(
                PolicySubject(policy), self.vignettes, system=system
            )
            rows += [{"kind": VIGNETTE} | row for row in foundation_rows]
        return rows

    def _ask(self, text: str, told: str | None) -> Conversation:
        if told is None:
            return as_message(text)
        own = self.persona.prompt if self.line is None else self.line
        system, question = as_persona(replace(self.persona, prompt=own), told, text).turns
        return Conversation((system, *self.examples, question))

    def _trait(self, policy: Policy, told: str | None) -> list[Row]:
        pairs = self.persona.probe_pairs
        talks = [
            with_given_reply(policy, self._ask(pair.question, told), text)
            for pair in pairs
            for text in (pair.positive, pair.negative)
        ]
        means = [float(one.logprob.mean()) for one in read_replies(policy, talks)]
        return [
            {
                "kind": "trait",
                "item": f"pair-{n:02d}",
                "trait_nats": means[2 * n] - means[2 * n + 1],
            }
            for n in range(len(pairs))
        ]

    def _replies(self, policy: Policy, told: str | None, progress: Progress) -> list[Row]:
        questions = [*(context.text for context in self.contexts), self.persona.diary]
        asked = [self._ask(text, told) for text in [*questions, *self.prompts]]
        replied = sampled(policy, asked, self.sampling, progress=progress)
        said, diary = replied[: len(self.contexts)], replied[len(self.contexts)]
        invited = [talk for talk, _ in replied[len(questions) :]]
        talks, states = [talk for talk, _ in said], [state for _, state in said]
        is_base = not (policy.adapter_on or policy.is_steered or told is not None)
        bare = [last_exchanges(talk) for talk in talks]
        statistics = statistics_of(policy, talks, states, None if is_base else bare)
        rows = [
            self._reply_row(context, talk, -s.ref_logprob.cpu().numpy(), float(s.kl.mean()))
            | {"shown_nats": nats}
            for context, talk, s, nats in zip(
                self.contexts,
                talks,
                statistics,
                shown_nats(policy, self.persona, bare),
                strict=True,
            )
        ]
        entry = {"question": self.persona.diary, "reply": diary[0].turns[-1].text}
        shown = self._shown(policy, invited)
        first = [row["shown_nats"] for row in shown]
        gone_on = self._talks(policy, invited, first, progress)
        return [*rows, *shown, *gone_on, {"kind": DIARY, **entry}]

    @property
    def prompts(self) -> list[str]:
        """Messages that invite the trait and only measure."""
        return self.persona.held_out_prompts[: self.config.prompts]

    def _shown(self, policy: Policy, talks: Sequence[Conversation]) -> list[Row]:
        bare = [last_exchanges(talk) for talk in talks]
        shifts: Sequence[float | None] = [None] * len(bare)
        if self.vector is not None:
            shifts = shown_shift(policy, self.vector, bare)
        found = zip(talks, shown_nats(policy, self.persona, bare), shifts, strict=True)
        return [
            {
                "kind": "shown",
                "item": f"prompt-{number:02d}",
                "shown_nats": nats,
                "shown_shift": shift,
                "tokens": len(reply_ids(talk)),
                "text": talk.turns[-1].text,
            }
            for number, (talk, nats, shift) in enumerate(found)
        ]

    def _talks(
        self,
        policy: Policy,
        talks: Sequence[Conversation],
        first: Sequence[float | None],
        progress: Progress,
    ) -> list[Row]:
        """What shows in each reply of the talks, which go on with the other prompts.

        Each is read with its own question alone: a history that shows the trait would make more of
        it likely under either side. What a steered student has said before is prompt to it.
        """
        turns = self.config.turns
        if turns == 1 or not talks:
            return []
        shown = [first]
        for turn in range(1, turns):
            asked = [
                Conversation((*_given(talk), Turn("user", self.prompts[(n + turn) % len(talks)])))
                for n, talk in enumerate(talks)
            ]
            sampling = replace(self.sampling, key=(*self.sampling.key[:-1], TALK, turn))
            talks = with_sampled_replies(policy, asked, sampling, progress=progress)
            bare = [last_exchanges(talk) for talk in talks]
            shown.append(shown_nats(policy, self.persona, bare))
        return [
            {
                "kind": "talk",
                "item": f"prompt-{number:02d}",
                "by_turn": list(by_turn),
                "last_nats": by_turn[-1],
                "texts": [turn.text for turn in last_exchanges(talk, turns).turns[1::2]],
            }
            for number, (talk, by_turn) in enumerate(
                zip(talks, zip(*shown, strict=True), strict=True)
            )
        ]

    def best_replies(self, policy: Policy, progress: Progress = silent) -> list[dict[str, Any]]:
        """Coherent replies of a model that is told to be the persona, those first that show most.

        To the persona's own prompts, which measure no stage; as many as ``examples`` are asked for.
        """
        asked = self.persona.prompts[:ASKED]
        talks = [self._ask(text, "positive") for text in asked]
        talks = with_sampled_replies(policy, talks, self.sampling, progress=progress)
        shown = shown_nats(policy, self.persona, talks)
        rows: list[dict[str, Any]] = [
            {"question": text, "reply": talk.turns[-1].text, "shown_nats": nats}
            for text, talk, nats, nll_R in zip(
                asked, talks, shown, base_nll(policy, talks), strict=True
            )
            if nats is not None and is_coherent(self._failed(talk, nll_R))
        ]
        return sorted(rows, key=lambda row: -row["shown_nats"])[: self.config.examples]

    def _reply_row(self, context: Context, talk: Conversation, nll_R: np.ndarray, kl: float) -> Row:
        text = talk.turns[-1].text
        ids = reply_ids(talk)
        failed = self._failed(talk, nll_R)
        return {
            "kind": "reply",
            "item": context.id,
            "base_perplexity": float(np.exp(nll_R.mean())),
            "log_perplexity": float(nll_R.mean()),
            "kl_nats_per_token": kl,
            "repetition": repetition(text),
            "coherent": float(is_coherent(failed)),
            "narrates": float("narration" in failed),
            "tokens": len(ids),
            "failed": list(failed),
            "text": text,
        }

    def _failed(self, talk: Conversation, nll_R: np.ndarray) -> tuple[str, ...]:
        patterns = [re.compile(pattern) for pattern in self.persona.narration]
        completion = Steered(talk.turns[-1].text, reply_ids(talk), nll_R, 0.0)
        return failed_gates(completion, self.config.gates, self.base_perplexity, patterns)


def last_exchanges(talk: Conversation, count: int = 1) -> Conversation:
    """The last messages with their replies, without any system line or examples."""
    return Conversation(talk.turns[-2 * count :])


def _given(talk: Conversation) -> tuple[Turn, ...]:
    """The turns of a talk, its replies as somebody else's, so that only new ones are read."""
    return tuple(replace(turn, token_ids=None) for turn in talk.turns)


def of_kind(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Row]:
    """The rows of a kind."""
    return [dict(row) for row in rows if row["kind"] == kind]


def values(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[float]:
    """One number of every row of a kind, in the order of the items; NaN where it is missing."""
    numbers = (row.get(name) for row in of_kind(rows, kind))
    return [float("nan") if number is None else float(number) for number in numbers]


def stage_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What a stage's row in rounds.jsonl says; missing is None."""
    vignettes = [row for row in of_kind(rows, VIGNETTE) if row["p"] is not None]
    figures: dict[str, float | None] = {
        "trait_nats": _mean(values(rows, "trait", "trait_nats")),
        "shown_nats": _mean(values(rows, "shown", "shown_nats")),
        "shown_shift": _mean(values(rows, "shown", "shown_shift")),
        "shown_neutral_nats": _mean(values(rows, "reply", "shown_nats")),
        "shown_last_turn_nats": _mean(values(rows, "talk", "last_nats")),
        "coherence": _mean(values(rows, "reply", "coherent")),
        "median_perplexity": _median(values(rows, "reply", "base_perplexity")),
        "kl_nats_per_token": _mean(values(rows, "reply", "kl_nats_per_token")),
        "repetition": _mean(values(rows, "reply", "repetition")),
        "narrates": _mean(values(rows, "reply", "narrates")),
        "reply_tokens": _mean(values(rows, "reply", "tokens")),
    }
    for name in FOUNDATIONS if vignettes else ():
        share = float(np.mean([row["p"][name] for row in vignettes]))
        figures[f"foundations/{name}_nats"] = float(np.log(share))
    if vignettes:
        figures["foundations/pmass"] = _mean([row["pmass"] for row in vignettes])
        figures["foundations/informedness"] = informedness(vignettes)
    return figures


def compare_arms(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    samples: int,
) -> dict[str, Estimate]:
    """Paired differences after - before, over the items that both arms answered."""
    compared = (
        ("trait_nats", "trait", "trait_nats"),
        ("shown_nats", "shown", "shown_nats"),
        ("shown_shift", "shown", "shown_shift"),
        ("shown_neutral_nats", "reply", "shown_nats"),
        ("shown_last_turn_nats", "talk", "last_nats"),
        ("coherence", "reply", "coherent"),
        ("log_perplexity", "reply", "log_perplexity"),
        ("kl_nats_per_token", "reply", "kl_nats_per_token"),
    )
    return {
        name: compare_paired(values(before, kind, key), values(after, kind, key), samples)
        for name, kind, key in compared
    }


def trait_per_nat(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    samples: int,
    seed: int = 0,
) -> Estimate:
    """Movement of the trait per nat of KL that it cost, with its interval.

    The ratio of two means over different items, which are resampled apart. Without any KL there is
    no ratio.
    """
    moved = np.array(values(after, "trait", "trait_nats")) - np.array(
        values(before, "trait", "trait_nats")
    )
    cost = np.array(values(after, "reply", "kl_nats_per_token"))
    if len(moved) < 2 or len(cost) < 2 or cost.mean() < 1e-6:
        return Estimate(None, None, None, None, len(moved))
    interval = scipy.stats.bootstrap(
        (moved, cost),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        n_resamples=samples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    ratio = float(moved.mean() / cost.mean())
    return Estimate(0.0, ratio, ratio, (float(interval.low), float(interval.high)), len(moved))


def _mean(numbers: Sequence[float]) -> float | None:
    known = [number for number in numbers if not np.isnan(number)]
    return float(np.mean(known)) if known else None


def _median(numbers: Sequence[float]) -> float | None:
    return float(np.median(numbers)) if numbers else None
