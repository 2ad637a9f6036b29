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

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from homeostat.config.persona import PersonaConfig
from homeostat.config.steering import SteerHealConfig
from homeostat.models.adapters import Policy
from homeostat.steering.bank import Bank
from homeostat.steering.completions import Completion
from homeostat.steering.dose import Search, bisect_dose, bisect_to
from homeostat.steering.heal import Heal, HealRound
from homeostat.steering.trainer import HEALED, STEERED, SteeringTrainer
from homeostat.timing import Stopwatch
from homeostat.types import Metrics, Progress, StepResult, silent


class SteerHeal(SteeringTrainer):
    """The loop; yields twice per round, with the context to measure the policy in.

    Attributes:
        kept: Completions that the round under way is to be healed on.
        good_rounds: Rounds of the student after the last one that was good; 0 is the base.
        is_fresh: Whether the newest adapter has learnt nothing.
    """

    config: SteerHealConfig

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
        super().__init__(
            config, policy=policy, persona=persona, seed=seed, watch=watch, progress=progress
        )
        self.source = replace(self.source, is_told=config.teacher == "prompted")
        self.kept: list[Completion] = []
        self.good_rounds = 0
        self.is_fresh = True

    @property
    def coming(self) -> str:
        """What comes next, of which round."""
        return f"round {self.done // 2 + 1}: {HEALED if self.done % 2 else STEERED}"

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

    # --- steer ----------------------------------------------------------------------------------

    def _steer(self, round_: int) -> tuple[Metrics, list[dict[str, Any]]]:
        """Vector, dose and kept completions of a round."""
        config = self.config
        self.vector = self.read_vector()
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
        self.kept = [self.completion(bank.talks[i]) for i in passed[-wanted:]]
        if self.starved is None and len(passed) < max(2, config.min_kept * wanted):
            self._starve(bank, f"{len(passed)} of {len(bank)} completions passed the filter")
        metrics = self._steer_metrics(bank, len(passed), search)
        return metrics, self.records(bank, self.done + 1)

    @property
    def wanted(self) -> int:
        """Completions that a round trains on at most."""
        return self.config.target or self.config.batch_size

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
        return {**result.metrics, **self.internal()}, [dict(row) for row in result.steps]

    def judge(self, coherence: float | None, of_base: float | None) -> bool:
        """See `SteeringTrainer.judge`; a round that is not good may be dropped."""
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
        """See `SteeringTrainer.state_dict`."""
        return super().state_dict() | {
            "good_rounds": self.good_rounds,
            "is_fresh": self.is_fresh,
            "kept": [asdict(completion) for completion in self.kept],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `SteeringTrainer.load_state_dict`."""
        super().load_state_dict(state)
        self.good_rounds = int(state["good_rounds"])
        self.is_fresh = bool(state["is_fresh"])
        self.kept = [Completion(tuple(c["prompt"]), tuple(c["ids"])) for c in state["kept"]]
