"""Steered completions as the exploration of a policy gradient: one adapter all along.

    read the persona's vector off the base
    repeat max_steps times:
        each message is answered by a group under shares of the dose, 0 among them
        reward = how much of the trait shows, less a price where the filter lets it fall
        advantage = (reward - mean of the group) / deviation of the group
        update the unsteered student in minibatches: mean of -w A log p per token, under the barrier
        the dose's logarithm follows a set point: share that passes the filter

A steered student is not the one that is updated. A token counts by w = min(max_importance,
p(unsteered) / p(steered)), both before the first minibatch and at temperature 1 over the whole
vocabulary, so that what only the steering would have said teaches little. ``heal/nll`` is the mean
of what is followed, -w A log p.

Source: the founding document ("we could even do this online, GRPO-style per batch"); rollouts at
several doses as in VSPO, arXiv 2605.15604; truncated importance weights, Ionides 2008, "Truncated
importance sampling", one token at a time. **Differs** from VSPO: the weights, the filter's price,
and the dose, which is held at a set point of coherence; from importance sampling proper, that
temperature, top-p and top-k of the sampling do not enter the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from homeostat.config.persona import PersonaConfig
from homeostat.config.steer_online import SteerOnlineConfig
from homeostat.models.adapters import Policy
from homeostat.models.logprobs import token_logprobs
from homeostat.rollout.replies import predicting, replied_ids, reply_ids
from homeostat.steering.bank import Bank
from homeostat.steering.heal import Heal, HealRound
from homeostat.steering.heal_result import HealResult
from homeostat.steering.optimizer import make_optimizer
from homeostat.steering.shown import shown_nats
from homeostat.steering.trainer import HEALED, SteeringTrainer
from homeostat.timing import Stopwatch
from homeostat.trainers.advantages import group_relative
from homeostat.types import Metrics, Progress, StepResult, silent

LEAST = 0.05  # of the dose that it begins with, below which it does not fall
LEAST_ADVANTAGE = 1e-6  # deviations; what is nearer to its group's mean teaches nothing


class SteerOnline(SteeringTrainer):
    """Yields after every batch; a batch counts as a whole round, two stages, as in the loop."""

    config: SteerOnlineConfig

    def __init__(
        self,
        config: SteerOnlineConfig,
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
        self.source = replace(self.source, group=config.group)
        self.dose = config.dose.low
        self.optimizer = make_optimizer(policy, config.heal, config.lr)
        self.control_state: Mapping[str, Any] | None = None

    @property
    def coming(self) -> str:
        """What comes next."""
        return f"batch {self.done // 2 + 1}"

    def steps(self) -> Iterator[StepResult]:
        """Sample, learn, follow the set point; may be left at any yield."""
        config = self.config
        while not self.is_over:
            number = self.done // 2
            metrics, rows, details = self._batch(number)
            self.done += 2
            last = number + 1 == config.max_steps
            is_measured = last or (number + 1) % config.measure_every == 0
            yield StepResult(
                step=self.done,
                metrics=metrics,
                episodes=rows,
                details=details,
                stage=HEALED if is_measured else None,
            )

    def _batch(self, number: int) -> tuple[Metrics, list[dict[str, Any]], list[dict[str, Any]]]:
        """One batch and its update."""
        config = self.config
        if self.vector is None:
            with self.policy.reference():
                self.vector = self.first_vector = self.read_vector()
        if self.base_perplexity is None:
            self.base_perplexity = self.measure_base()
        dose = self.dose
        bank = Bank(
            self.source,
            number,
            self.vector,
            self.base_perplexity,
            self.progress,
            keeps_states=True,
        )
        bank.fill([dose * config.shares[i % len(config.shares)] for i in range(config.batch_size)])
        passes = np.array([not failed for failed in bank.verdicts])
        with self.watch("filter"):
            shown = [value or 0.0 for value in shown_nats(self.policy, self.persona, bank.talks)]
        rewards = np.array(shown) - config.failure_price * ~passes
        advantages = group_relative(rewards, config.group)
        with self.watch("heal"):
            weights = self._importance(bank)
            result = self._update(bank, number, weights, advantages)
        steered = np.array([one.dose != 0 for one in bank.completions])
        self._follow(float(passes[steered].mean()))
        if result is None:
            self.notices.append(f"batch {number + 1}: all rewards of every group were alike")
        own = ~steered
        metrics = {
            "steer/dose": dose,
            "steer/completions": float(len(bank)),
            "steer/kept": float(passes.sum()),
            "steer/passes_steered": float(passes[steered].mean()),
            "steer/passes_own": float(passes[own].mean()) if own.any() else float("nan"),
            "steer/shown_steered": float(np.array(shown)[steered].mean()),
            "steer/shown_own": float(np.array(shown)[own].mean()) if own.any() else float("nan"),
            "steer/importance": float(np.mean(np.concatenate(weights))),
            "steer/reward": float(rewards.mean()),
        }
        if result is not None:
            metrics |= result.metrics
        rows = [
            row | {"shown": value, "advantage": float(advantage)}
            for row, value, advantage in zip(
                self.records(bank, self.done + 2), shown, advantages, strict=True
            )
        ]
        details = [] if result is None else [dict(row) for row in result.steps]
        return metrics | self.internal(), rows, details

    def _importance(self, bank: Bank) -> list[np.ndarray]:
        """How much every token counts for being as likely without the steering, ``[R]`` each."""
        talks = [talk.unprompted for talk in bank.talks]
        targets = replied_ids(self.policy, talks)
        own = predicting(self.policy, talks)
        plain = self.persona.frame is None  # the student's own completions were asked the same
        steered = [
            unsteered if plain and not one.dose else drawn_from
            for one, unsteered, drawn_from in zip(bank.completions, own, bank.states, strict=True)
        ]
        with torch.no_grad():
            of_steered, of_own = (
                token_logprobs(torch.cat(states), targets, self.policy.unembed)
                for states in (steered, own)
            )
        ratio = (of_own - of_steered).exp().clamp(max=self.config.max_importance)
        lengths = [len(reply_ids(talk)) for talk in talks]
        return [part.cpu().numpy() for part in torch.split(ratio, lengths)]

    def _update(
        self,
        bank: Bank,
        number: int,
        weights: Sequence[np.ndarray],
        advantages: Float[np.ndarray, " N"],
    ) -> HealResult | None:
        """Follow what the batch taught; None if it taught nothing."""
        completions = [
            replace(self.completion(talk), weights=tuple((advantage * weight).tolist()))
            for talk, weight, advantage in zip(bank.talks, weights, advantages, strict=True)
            if abs(advantage) > LEAST_ADVANTAGE and reply_ids(talk)
        ]
        if not completions:
            return None
        heal = Heal(
            self.config.heal,
            self.config.barrier,
            policy=self.policy,
            round=HealRound(
                number=number,
                seed=self.seed,
                lr=self.config.lr,
                tau=self.tau,
                recompute=self.config.gradient_checkpointing,
            ),
            optimizer=self.optimizer,
            control_state=self.control_state,
            progress=self.progress,
        )
        result = heal.run(completions)
        self.control_state = heal.control_state
        return result

    def _follow(self, passed: float) -> None:
        """Move the dose towards where as much passes the filter as the set point says."""
        error = passed - self.config.target_pass
        low, high = math.log(LEAST * self.config.dose.low), math.log(self.config.dose.high)
        moved = math.log(self.dose) + self.config.dose_lr * error
        self.dose = math.exp(min(high, max(low, moved)))

    def state_dict(self) -> dict[str, Any]:
        """See `SteeringTrainer.state_dict`."""
        control = None if self.control_state is None else dict(self.control_state)
        own = {"optimizer": self.optimizer.state_dict(), "control": control}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `SteeringTrainer.load_state_dict`."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # another rate may be asked for on resuming
            group["lr"] = group["initial_lr"] = self.config.lr
        self.control_state = state["control"]
