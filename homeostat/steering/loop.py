"""Steer, heal, repeat: a persona vector is distilled into one low-rank adapter per round.

    repeat max_steps times:
        read the persona's vector off the student so far                steering/vectors.py
        find a dose, sample steered completions, keep what passes       steering/dose.py, filters.py
        yield the steered student                                       to be measured
        train a fresh adapter on what was kept, under a barrier         heal.py, barriers.py
        yield the healed student                                        to be measured, and judged

Source: the founding document, steer-heal-love (wassname). **Differs:** the dose is searched for per
round rather than set; completions are judged by perplexity relative to the base's own replies; tau
can be read off a pilot epoch, so that aggregates of different scale are compared fairly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np

from homeostat.config.steering import QUANTILE, PersonaConfig, SteerHealConfig
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.hooks import Steering
from homeostat.rollout.generate import BATCH
from homeostat.rollout.replies import reply_ids
from homeostat.steering.bank import Bank, Source
from homeostat.steering.completions import Completion
from homeostat.steering.dose import Search, bisect_dose, bisect_to
from homeostat.steering.heal import Heal, HealRound
from homeostat.steering.vectors import (
    Context,
    PersonaVector,
    extract,
    read_contexts,
    spread,
    student_shift,
)
from homeostat.timing import Stopwatch
from homeostat.types import Conversation, Footprint, Metrics, Progress, StepResult, silent

STEERED, HEALED = "steered", "healed"
DROPPED = "dropped"  # a healed round that was not good enough to be kept
# Of a chunk of logits in the backward pass: those of a loss, the reference's log-probabilities and
# the difference of the two.
DIVERGENCE_COPIES = 7


def share_contexts(
    config: SteerHealConfig, persona: PersonaConfig
) -> tuple[list[Context], list[Context], list[Context]]:
    """The contexts that measure, those that the vector is read from, and those to be steered on.

    Raises:
        HomeostatError: There are too few of them, or of the persona's prompts.
    """
    contexts = spread(read_contexts(config.vector.contexts_path), seed=0)
    measured, read = config.stages.contexts, config.vector.contexts
    steered_on = contexts[measured + read :]
    invited = config.asked == "persona"
    if invited:
        steered_on = [
            Context(f"{persona.name}-{number:02d}", "persona", text)
            for number, text in enumerate(persona.prompts)
        ]
    if invited and len(steered_on) < 8:
        raise HomeostatError(
            f"persona {persona.name} has {len(steered_on)} prompts and trainer.asked=persona needs "
            "8 at least; give more by persona.prompts, or use trainer.asked=contexts."
        )
    if len(contexts) < measured + read or len(steered_on) < min(config.batch_size, 8):
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
        good_rounds: Rounds of the student after the last one that was good; 0 is the base.
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
        self.held_out, self.read_from, steered_on = share_contexts(config, persona)
        self.source = Source(config, policy, persona, steered_on, seed, watch)
        self.done = 0
        self.base_perplexity: float | None = None
        self.first_vector: PersonaVector | None = None
        self.vector: PersonaVector | None = None
        self.dose = 0.0
        self.tau = None if config.barrier.tau == QUANTILE else float(config.barrier.tau)
        self.kept: list[Completion] = []
        self.good_rounds = 0
        self.is_fresh = True  # the newest adapter has learnt nothing
        self.starved: str | None = None
        self.notices: list[str] = []

    @classmethod
    def footprint(cls, config: SteerHealConfig, length: int) -> Footprint:
        """What a round will hold, for prompt and completion of ``length`` tokens together."""
        tokens = config.heal.minibatch * length  # an aggregate needs its whole minibatch at once
        return Footprint(
            rows=min(config.batch_size, BATCH),
            length=length,
            gradient_tokens=tokens,
            logit_copies=DIVERGENCE_COPIES,
            recomputes=config.gradient_checkpointing or tokens > config.heal.micro_batch_tokens,
        )

    @property
    def coming(self) -> str:
        """What comes next, of which round."""
        return f"round {self.done // 2 + 1}: {HEALED if self.done % 2 else STEERED}"

    @property
    def is_over(self) -> bool:
        """Whether no stage is left."""
        return self.done >= 2 * self.config.max_steps or self.starved is not None

    def steps(self) -> Iterator[StepResult]:
        """Steer and heal in turn; may be left at any yield."""
        while not self.is_over:
            round_, healing = divmod(self.done, 2)
            metrics, rows = self._heal(round_) if healing else self._steer(round_)
            self.done += 1
            yield StepResult(
                step=self.done,
                metrics=metrics,
                episodes=() if healing else rows,
                details=rows if healing else (),
                stage=HEALED if healing else STEERED,
                measure_in=None if healing else self._teacher(),
            )

    def _teacher(self) -> AbstractContextManager[None] | None:
        """What makes the student the teacher of the round; None where it is told to be."""
        if self.config.teacher == "prompted":
            return None
        return self.policy.steered(self.steering(self.dose))

    def steering(self, dose: float) -> Steering:
        """The vector of the round under way at a dose."""
        if self.vector is None:
            raise ValueError("no round has begun, so there is no vector yet.")
        return self.vector.steering(dose, self.config.dose)

    def measure_base(self) -> float:
        """Median perplexity of the base's own replies."""
        return self.source.base_perplexity(self.progress)

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
        bank = Bank(self.source, round_, self.vector, self.base_perplexity, self.progress)
        search = self._search(bank)
        if search.dose is None:
            self._starve(bank, "even the lowest dose fails")
        else:
            self.dose = search.dose
            bank.fill(self._doses(len(bank)))
            for _ in range(config.most_batches - 1):
                if config.target is None or len(bank.passed()) >= config.target:
                    break
                bank.fill(self._doses(0))
        passed, wanted = bank.passed(), self.wanted
        self.kept = [self._completion(bank.talks[i]) for i in passed[-wanted:]]
        if self.starved is None and len(passed) < max(2, config.min_kept * wanted):
            self._starve(bank, f"{len(passed)} of {len(bank)} completions passed the filter")
        verdicts = [bank.failed_gates(completion) for completion in bank.completions]
        return self._steer_metrics(bank, len(passed), search), self._records(bank, verdicts)

    @property
    def wanted(self) -> int:
        """Completions that a round trains on at most."""
        return self.config.target or self.config.batch_size

    def _records(self, bank: Bank, verdicts: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
        """The completions as they go to episodes.jsonl."""
        return [
            {
                "step": self.done + 1,
                "stage": STEERED,
                "dose": completion.dose,
                "failed": list(failed),
                "prompt": talk.unprompted.turns[0].text,
                "text": completion.text,
            }
            for completion, failed, talk in zip(bank.completions, verdicts, bank.talks, strict=True)
        ]

    def _steer_metrics(self, bank: Bank, kept: int, search: Search) -> Metrics:
        assert self.first_vector is not None
        nll = [float(completion.nll_R.mean()) for completion in bank.completions]
        return {
            "steer/dose": self.dose,
            "steer/doses_tried": float(len(search.tried)),
            "steer/completions": float(len(bank)),
            "steer/kept": float(kept),
            "steer/median_perplexity": float(np.exp(np.median(nll))) if nll else float("nan"),
            "steer/vector_relative_norm": max(bank.vector.relative_norm.values()),
            "steer/cosine_to_first": bank.vector.cosine(self.first_vector.vectors),
        }

    def _search(self, bank: Bank) -> Search:
        """The dose; what was sampled on the way stays in the bank."""
        dose = self.config.dose
        if self.config.teacher == "prompted":
            return Search(0.0, [])
        if dose.kind == "grid":
            return Search(sorted(dose.values)[len(dose.values) // 2], [])
        if dose.kind == "iso_kl":
            return bisect_to(dose.low, dose.high, dose.probes, bank.kl_at, dose.target_kl)

        def survives(tried: float) -> bool:
            return bank.survival(tried) >= dose.target_survival

        return bisect_dose(dose.low, dose.high, dose.probes, survives)

    def _doses(self, banked: int) -> list[float]:
        """Doses of the completions that are still to be sampled."""
        left, dose = max(0, self.config.batch_size - banked), self.config.dose
        if self.config.teacher == "prompted":
            return [0.0] * self.config.batch_size
        if dose.kind != "grid":
            count = max(left, self.config.batch_size // 2)
            return [self.dose * dose.shares[i % len(dose.shares)] for i in range(count)]
        return [dose.values[i % len(dose.values)] for i in range(self.config.batch_size)]

    def _completion(self, talk: Conversation) -> Completion:
        prompt = self.policy.encode(Conversation(talk.unprompted.turns[:-1])).ids
        return Completion(tuple(prompt), reply_ids(talk))

    def _starve(self, bank: Bank, why: str) -> None:
        """End the loop: there is too little to train on."""
        self.starved = (
            f"{why}; trainer.min_kept={self.config.min_kept:g} of "
            f"trainer.{'target' if self.config.target else 'batch_size'}={self.wanted} are needed. "
            f"By gate: {bank.fell()}. Lower the dose (trainer.dose.low, "
            "trainer.dose.target_survival), or loosen trainer.filter."
        )

    # --- heal -----------------------------------------------------------------------------------

    def _heal(self, round_: int) -> tuple[Metrics, list[dict[str, Any]]]:
        """A fresh adapter on the kept completions."""
        config, policy = self.config, self.policy
        if not self.is_fresh:
            policy.add_round(seed=self.seed * 1000 + round_)
        self.is_fresh = False
        before = len(policy.rounds) - 1
        reference = {"base": 0, "prev": before, "last_good": self.good_rounds}
        heal = Heal(
            config.heal,
            config.barrier,
            policy=policy,
            round=HealRound(
                number=round_,
                seed=self.seed,
                lr=config.lr,
                tau=self.tau,
                reference=reference[config.barrier.reference],
                recompute=config.gradient_checkpointing,
            ),
            progress=self.progress,
        )
        with self.watch("heal"):
            if self.tau is None:
                heal.read_tau(self.kept)
            result = heal.run(self.kept)
            self.tau = heal.tau
        if result.notice is not None:
            self.notices.append(f"round {round_ + 1}: {result.notice}")
        return {**result.metrics, **self._internal()}, [dict(row) for row in result.steps]

    def _internal(self) -> Metrics:
        """How far healing has moved the student itself along the first round's vector."""
        first = self.first_vector
        assert first is not None
        with self.watch("vector"):
            shift = student_shift(self.policy, self.held_out, sorted(first.vectors))
        return {"heal/shift_cosine": first.cosine(shift), "heal/shift_dose": first.dose_of(shift)}

    def judge(self, coherence: float | None, of_base: float | None) -> bool:
        """Take in how coherent the healed student is; whether its newest round is kept.

        Args:
            coherence: Share of its replies that are; None if that is not known.
            of_base: The same share of the base's.
        """
        good = (
            coherence is not None
            and of_base is not None
            and coherence >= self.config.good * of_base
        )
        if good:
            self.good_rounds = len(self.policy.rounds)
        kept = good or self.config.adopt == "all"
        if not kept:
            self.policy.redraw_round(seed=self.seed * 1000 + self.done)
            self.is_fresh = True
        return kept

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the stages still to come depend on, beside the adapters."""
        return {
            "done": self.done,
            "base_perplexity": self.base_perplexity,
            "dose": self.dose,
            "tau": self.tau,
            "good_rounds": self.good_rounds,
            "is_fresh": self.is_fresh,
            "starved": self.starved,
            "notices": self.notices,
            "kept": [asdict(completion) for completion in self.kept],
            "vectors": [
                None
                if vector is None
                else {
                    "vectors": dict(vector.vectors),
                    "relative_norm": dict(vector.relative_norm),
                    "kind": vector.kind,
                }
                for vector in (self.first_vector, self.vector)
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the stage that `state_dict` was taken at."""
        self.done = int(state["done"])
        self.base_perplexity = state["base_perplexity"]
        self.dose = float(state["dose"])
        self.tau = state["tau"]
        self.good_rounds = int(state["good_rounds"])
        self.is_fresh = bool(state["is_fresh"])
        self.starved = state["starved"]
        self.notices = list(state["notices"])
        self.kept = [Completion(tuple(c["prompt"]), tuple(c["ids"])) for c in state["kept"]]
        self.first_vector, self.vector = (
            None if stored is None else PersonaVector(**stored) for stored in state["vectors"]
        )
