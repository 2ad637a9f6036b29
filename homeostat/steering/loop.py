"""Steer, heal, repeat: a persona vector is distilled into one low-rank adapter per round.

    repeat max_steps times:
        read the persona's vector off the student so far                steering/vectors.py
        find a dose, sample steered completions, keep what passes       steering/dose.py, filters.py
        yield the steered student                                       to be measured
        train a fresh adapter on what was kept, under a barrier         heal.py, barriers.py
        yield the healed student                                        to be measured

Source: the founding document, steer-heal-love (wassname). **Differs:** the dose is searched for per
round rather than set; completions are judged by perplexity relative to the base's own replies; tau
can be read off a pilot epoch, so that aggregates of different scale are compared fairly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from homeostat.config.steering import QUANTILE, PersonaConfig, SteerHealConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.hooks import Steering
from homeostat.models.logprobs import token_statistics
from homeostat.rollout.replies import (
    Sampling,
    base_nll,
    predicting,
    reply,
    reply_ids,
    sampled,
    statistics_of,
)
from homeostat.steering.dose import Search, bisect_dose, bisect_to
from homeostat.steering.filters import Steered, judge, last_good_position, report
from homeostat.steering.heal import Completion, Heal
from homeostat.steering.vectors import Context, PersonaVector, extract, plain, read_contexts, spread
from homeostat.timing import Stopwatch
from homeostat.types import Conversation, Metrics, Progress, StepResult, Turn, silent

STEERED, HEALED = "steered", "healed"
WINDOW = 8  # tokens in which a completion may go wrong, for backtracking


def share_contexts(config: SteerHealConfig) -> tuple[list[Context], list[Context], list[Context]]:
    """The contexts that measure, those that the vector is read from, and those to be steered on.

    Raises:
        HomeostatError: There are too few of them.
    """
    contexts = spread(read_contexts(config.vector.contexts_path), seed=0)
    measured, read = config.stages.contexts, config.vector.contexts
    steered_on = contexts[measured + read :]
    if len(steered_on) < min(config.batch_size, 8):
        raise HomeostatError(
            f"{len(contexts)} contexts are too few: trainer.stages.contexts={measured} are for "
            f"measuring and trainer.vector.contexts={read} for the vector; lower these, or give "
            "more by trainer.vector.contexts_path."
        )
    return contexts[:measured], contexts[measured : measured + read], steered_on


class SteerHeal:
    """The loop; yields twice per round, with the context to measure the policy in.

    Attributes:
        held_out: Contexts that are never steered or trained on.
        base_perplexity: Median perplexity of the base's own replies; None before the first round.
        starved: Why the loop ended early, if it did.
        notices: What the user should know about the rounds so far.
    """

    def __init__(
        self,
        config: SteerHealConfig,
        *,
        policy: Policy,
        persona: PersonaConfig,
        seed: int,
        watch: Stopwatch,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.policy = policy
        self.persona = persona
        self.seed = seed
        self.watch = watch
        self.progress = progress
        self.held_out, self.read_from, self.steered_on = share_contexts(config)
        self.done = 0
        self.base_perplexity: float | None = None
        self.first_vector: PersonaVector | None = None
        self.vector: PersonaVector | None = None
        self.dose = 0.0
        self.tau: float | None = None
        self.kept: list[Completion] = []
        self.starved: str | None = None
        self.notices: list[str] = []

    @property
    def is_over(self) -> bool:
        """Whether no stage is left."""
        return self.done >= 2 * self.config.max_steps or self.starved is not None

    def steps(self) -> Iterator[StepResult]:
        """Steer and heal in turn; may be left at any yield."""
        while not self.is_over:
            round_, healing = divmod(self.done, 2)
            metrics, records = self._heal(round_) if healing else self._steer(round_)
            self.done += 1
            yield StepResult(
                step=self.done,
                metrics=metrics,
                episodes=records,
                stage=HEALED if healing else STEERED,
                measure_in=None if healing else self.policy.steered(self.steering(self.dose)),
            )

    def steering(self, dose: float | Sequence[float]) -> Steering:
        """The vector of the round under way at a dose; one for all rows, or one for each."""
        if self.vector is None:
            raise ValueError("no round has begun, so there is no vector yet.")
        return self.vector.steering(dose, self.config.dose)

    # --- steer ----------------------------------------------------------------------------------

    def _steer(self, round_: int) -> tuple[Metrics, list[dict[str, Any]]]:
        """Vector, dose and kept completions of a round."""
        config = self.config
        with self.watch("vector"):
            self.vector = extract(
                self.policy, self.persona, self.read_from, config.vector, self.seed, self.progress
            )
        if self.first_vector is None:
            self.first_vector = self.vector
        if self.base_perplexity is None:
            self.base_perplexity = self.measure_base()
        bank: list[Steered] = []
        talks: list[Conversation] = []
        search = self._search(round_, bank, talks)
        if search.dose is None:
            self._starve(bank, "even the lowest dose fails")
        else:
            self.dose = search.dose
            self._complete(round_, self._doses(len(bank)), bank, talks)
        verdicts = [self._judge(completion) for completion in bank]
        kept = [i for i, failed in enumerate(verdicts) if not failed]
        self.kept = [self._completion(talks[i]) for i in kept[-config.batch_size :]]
        if self.starved is None and len(kept) < max(2, config.min_kept * config.batch_size):
            self._starve(bank, f"{len(kept)} of {len(bank)} completions passed the filter")
        records = [
            {
                "step": self.done + 1,
                "stage": STEERED,
                "dose": completion.dose,
                "failed": list(failed),
                "prompt": talk.turns[0].text,
                "text": completion.text,
            }
            for completion, failed, talk in zip(bank, verdicts, talks, strict=True)
        ]
        return self._steer_metrics(bank, len(kept), search), records

    def _steer_metrics(self, bank: Sequence[Steered], kept: int, search: Search) -> Metrics:
        assert self.vector is not None
        assert self.first_vector is not None
        nll = [float(completion.nll_R.mean()) for completion in bank]
        return {
            "steer/dose": self.dose,
            "steer/doses_tried": float(len(search.tried)),
            "steer/completions": float(len(bank)),
            "steer/kept": float(kept),
            "steer/median_perplexity": float(np.exp(np.median(nll))) if nll else float("nan"),
            "steer/vector_relative_norm": max(self.vector.relative_norm.values()),
            "steer/cosine_to_first": self.vector.cosine(self.first_vector),
        }

    def _search(self, round_: int, bank: list[Steered], talks: list[Conversation]) -> Search:
        """The dose; what was sampled on the way goes into ``bank``."""
        dose = self.config.dose
        if dose.kind == "grid":
            return Search(sorted(dose.values)[len(dose.values) // 2], [])
        if dose.kind == "iso_kl":
            return bisect_to(
                dose.low,
                dose.high,
                dose.probes,
                lambda tried: self._kl_at(tried, round_, bank, talks),
                dose.target_kl,
            )

        def survives(tried: float) -> bool:
            start = len(bank)
            self._complete(round_, [tried] * dose.probe_size, bank, talks)
            passed = [not self._judge(completion) for completion in bank[start:]]
            return float(np.mean(passed)) >= dose.target_survival

        return bisect_dose(dose.low, dose.high, dose.probes, survives)

    def _doses(self, banked: int) -> list[float]:
        """Doses of the completions that are still to be sampled."""
        left = max(0, self.config.batch_size - banked)
        if self.config.dose.kind != "grid":
            return [self.dose] * max(left, self.config.batch_size // 2)
        values = self.config.dose.values
        return [values[i % len(values)] for i in range(self.config.batch_size)]

    def _kl_at(
        self, dose: float, round_: int, bank: list[Steered], talks: list[Conversation]
    ) -> float:
        """95th percentile of KL(steered || unsteered) over positions, nats."""
        start = len(bank)
        self._complete(round_, [dose] * self.config.dose.probe_size, bank, talks)
        assert self.vector is not None
        new = talks[start:]
        with self.policy.steered(self.steering(dose)):
            steered = predicting(self.policy, new)
        unsteered = predicting(self.policy, new)
        ids = [torch.tensor(reply_ids(talk), device=self.policy.device) for talk in new]
        with torch.no_grad():
            kl = [
                token_statistics(own, targets, self.policy.unembed, ref).kl
                for own, targets, ref in zip(steered, ids, unsteered, strict=True)
            ]
        return float(torch.quantile(torch.cat(kl), 0.95))

    def _complete(
        self,
        round_: int,
        doses: Sequence[float],
        bank: list[Steered],
        talks: list[Conversation],
    ) -> None:
        """Sample one completion per dose, judge-ready, into the bank."""
        first = len(bank)
        contexts = self._contexts(round_, first, len(doses))
        asked = [plain(context.text) for context in contexts]
        with self.watch("generate"):
            new = reply(
                self.policy,
                asked,
                self._sampling(round_),
                self.steering(doses),
                first=first,
                progress=self.progress,
            )
        with self.watch("filter"):
            found = self._read(new, doses)
        for attempt in range(self.config.dose.backtracks):
            with self.watch("generate"):
                new, found = self._backtrack(round_, attempt, new, found)
        talks += new
        bank += found

    def _read(self, talks: Sequence[Conversation], doses: Sequence[float]) -> list[Steered]:
        nll = base_nll(self.policy, talks)
        return [
            Steered(talk.turns[-1].text, reply_ids(talk), own, dose)
            for talk, own, dose in zip(talks, nll, doses, strict=True)
        ]

    def _backtrack(
        self,
        round_: int,
        attempt: int,
        talks: Sequence[Conversation],
        found: Sequence[Steered],
    ) -> tuple[list[Conversation], list[Steered]]:
        """Cut what fell through the filter where it went wrong and go on with half the dose."""
        assert self.base_perplexity is not None
        config, policy = self.config, self.policy
        again = [i for i, completion in enumerate(found) if self._judge(completion)]
        if not again:
            return list(talks), list(found)
        heads = []
        for i in again:
            good = last_good_position(found[i], config.filter, self.base_perplexity, WINDOW)
            ids = found[i].ids[:good]
            heads.append(Conversation((*talks[i].turns[:-1], Turn("assistant", "", token_ids=ids))))
        doses = [found[i].dose / 2 for i in again]
        sampling = Sampling(
            config.max_new_tokens,
            config.temperature,
            (self.seed, 7, round_, attempt),
        )
        rest = reply(policy, heads, sampling, self.steering(doses))
        new = list(talks)
        for i, head, longer in zip(again, heads, rest, strict=True):
            ids = (*(head.turns[-1].token_ids or ()), *reply_ids(longer))[: config.max_new_tokens]
            text = policy.tokenizer.decode(ids, skip_special_tokens=True).strip()
            turn = Turn("assistant", text, token_ids=ids)
            new[i] = Conversation((*head.turns[:-1], turn))
        nll = base_nll(policy, [new[i] for i in again])
        read = list(found)
        for i, own, dose in zip(again, nll, doses, strict=True):
            read[i] = Steered(new[i].turns[-1].text, reply_ids(new[i]), own, dose)
        return new, read

    def _contexts(self, round_: int, first: int, count: int) -> list[Context]:
        """Contexts of a round's completions, each as often as the others."""
        order = np.random.default_rng([self.seed, 3, round_]).permutation(len(self.steered_on))
        return [self.steered_on[order[(first + i) % len(order)]] for i in range(count)]

    def _sampling(self, round_: int) -> Sampling:
        return Sampling(self.config.max_new_tokens, self.config.temperature, (self.seed, 5, round_))

    def measure_base(self) -> float:
        """Median perplexity of the base's replies to contexts that may be steered on."""
        asked = [plain(context.text) for context in self._contexts(0, 0, self.config.batch_size)]
        sampling = Sampling(self.config.max_new_tokens, self.config.temperature, (self.seed, 11))
        with self.watch("generate"), self.policy.reference():
            said = sampled(self.policy, asked, sampling, progress=self.progress)
            talks, states = [talk for talk, _ in said], [own for _, own in said]
            found = statistics_of(self.policy, talks, states)
        return float(np.exp(np.median([-float(one.logprob.mean()) for one in found])))

    def _judge(self, completion: Steered) -> tuple[str, ...]:
        assert self.base_perplexity is not None
        patterns = [re.compile(pattern) for pattern in self.persona.narration]
        return judge(completion, self.config.filter, self.base_perplexity, patterns)

    def _completion(self, talk: Conversation) -> Completion:
        prompt = self.policy.encode(Conversation(talk.turns[:-1])).ids
        return Completion(tuple(prompt), reply_ids(talk))

    def _starve(self, bank: Sequence[Steered], why: str) -> None:
        """End the loop: there is too little to train on."""
        counts: dict[str, int] = {}
        for completion in bank:
            for gate in self._judge(completion):
                counts[gate] = counts.get(gate, 0) + 1
        fell = ", ".join(f"{gate} {count}" for gate, count in sorted(counts.items())) or "none"
        self.starved = (
            f"{why}; trainer.min_kept={self.config.min_kept:g} of "
            f"trainer.batch_size={self.config.batch_size} are needed. By gate: {fell}. "
            "Lower the dose (trainer.dose.low, trainer.dose.target_survival), or loosen "
            "trainer.filter."
        )

    def filter_report(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What fell by dose and gate, from the records of a steered stage."""
        completions = [Steered(r["text"], (), np.zeros(0), r["dose"]) for r in records]
        return report(completions, [tuple(r["failed"]) for r in records])

    # --- heal -----------------------------------------------------------------------------------

    def _heal(self, round_: int) -> tuple[Metrics, list[dict[str, Any]]]:
        """A fresh adapter on the kept completions."""
        config, policy = self.config, self.policy
        if round_:
            policy.add_round(seed=self.seed * 1000 + round_)
        heal = Heal(
            config.heal,
            config.barrier,
            policy=policy,
            lr=config.lr,
            seed=self.seed,
            round=round_,
            tau=self.tau if config.barrier.tau == QUANTILE else float(config.barrier.tau),
            recompute=config.gradient_checkpointing,
            progress=self.progress,
        )
        with self.watch("heal"):
            if config.barrier.tau == QUANTILE and self.tau is None:
                self.tau = heal.read_tau(self.kept)
            result = heal.run(self.kept)
        if result.notice is not None:
            self.notices.append(f"round {round_ + 1}: {result.notice}")
        return dict(result.metrics), [dict(row) for row in result.steps]

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the stages still to come depend on, beside the adapters."""
        return {
            "done": self.done,
            "base_perplexity": self.base_perplexity,
            "dose": self.dose,
            "tau": self.tau,
            "starved": self.starved,
            "notices": self.notices,
            "kept": [asdict(completion) for completion in self.kept],
            "vectors": [
                None
                if own is None
                else {
                    "vectors": dict(own.vectors),
                    "relative_norm": dict(own.relative_norm),
                    "kind": own.kind,
                }
                for own in (self.first_vector, self.vector)
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the stage that `state_dict` was taken at."""
        self.done = int(state["done"])
        self.base_perplexity = state["base_perplexity"]
        self.dose = float(state["dose"])
        self.tau = state["tau"]
        self.starved = state["starved"]
        self.notices = list(state["notices"])
        self.kept = [Completion(tuple(c["prompt"]), tuple(c["ids"])) for c in state["kept"]]
        self.first_vector, self.vector = (
            None if own is None else PersonaVector(**own) for own in state["vectors"]
        )
