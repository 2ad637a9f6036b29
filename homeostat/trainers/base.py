"""What every trainer of the policy's adapter has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from homeostat.config.run import RolloutConfig
from homeostat.config.trainers import TrainerConfig
from homeostat.models.adapters import Policy
from homeostat.reward.compose import Reward, Rewards
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.types import Bots, Footprint, Metrics, Progress, Reading, StepResult, silent


@dataclass(frozen=True)
class World:
    """What a trainer learns in: who speaks, who answers, what is measured and what is paid."""

    policy: Policy
    bots: Bots
    reader: SignalReader
    reward: Reward
    rollout: RolloutConfig


class AdapterTrainer(ABC):
    """A trainer whose `steps` yields after every update or round; it neither logs nor saves."""

    config: TrainerConfig

    def __init__(
        self,
        config: TrainerConfig,
        *,
        world: World,
        seed: int,
        watch: Stopwatch,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.policy = world.policy
        self.bots = world.bots
        self.reader = world.reader
        self.reward = world.reward
        self.rollout = world.rollout
        self.seed = seed
        self.watch = watch
        self.progress = progress
        self.notices: list[str] = []
        self.done = 0
        self.optimizer = torch.optim.AdamW(
            self.policy.adapter_parameters(), config.lr, weight_decay=0.0
        )

    @classmethod
    @abstractmethod
    def footprint(cls, config: Any, length: int) -> Footprint:
        """What training with this config will hold, for conversations of ``length`` tokens."""

    @property
    def is_over(self) -> bool:
        """Whether no update is left."""
        return self.done >= self.config.max_steps

    @property
    def coming(self) -> str:
        """What the next update is called."""
        return f"update {self.done + 1}/{self.config.max_steps}"

    @abstractmethod
    def step(self) -> tuple[Metrics, Sequence[Mapping[str, Any]]]:
        """Do update number ``done + 1``; returns its metrics and its episodes' records."""

    def steps(self) -> Iterator[StepResult]:
        """Train; yields after every update, and may be left at any yield."""
        while not self.is_over:
            metrics, records = self.step()
            self.done += 1
            yield StepResult(step=self.done, metrics=metrics, episodes=records)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the adapter; randomness follows from seed and step."""
        return {"done": self.done, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the update that `state_dict` was taken at."""
        self.done = int(state["done"])
        self.optimizer.load_state_dict(state["optimizer"])


def batch_metrics(
    readings: Sequence[Reading], rewards: Sequence[Rewards], affects: Sequence[str]
) -> Metrics:
    """Means over the turns and tokens of one batch of conversations, keyed ``area/name``.

    Args:
        readings: One per conversation.
        rewards: One per conversation.
        affects: Columns of what the readings have perceived.
    """
    kl = np.concatenate([reading.trace.kl_R for reading in readings])
    entropy = np.concatenate([reading.trace.entropy_R for reading in readings])
    metrics = {
        "reward/total": float(np.concatenate([r.total_N for r in rewards]).mean()),
        "policy/kl_nats_per_token": float(kl.mean()),
        "policy/entropy_nats_per_token": float(entropy.mean()),
        "rollout/response_tokens": float(len(kl)),
    }
    if rewards[0].valence.names:  # a control reward may hold nothing at a set point
        level_N = np.concatenate([r.valence.total_N for r in rewards])
        metrics["reward/valence"] = float(level_N.mean())
    terms_NS = np.concatenate([r.valence.terms_NS for r in rewards])
    for column, name in enumerate(rewards[0].valence.names):
        metrics[f"reward/term/{name}"] = float(terms_NS[:, column].mean())
    for name in rewards[0].own_terms:
        term_N = np.concatenate([r.own_terms[name] for r in rewards])
        metrics[f"reward/own/{name}"] = float(term_N.mean())
    values_NS = np.concatenate([reading.signals.values for reading in readings])
    for column, name in enumerate(readings[0].signals.names):
        values_N = values_NS[:, column]
        seen = not np.isnan(values_N).all()
        metrics[f"signal/{name}_mean"] = float(np.nanmean(values_N)) if seen else float("nan")
    drift_A = np.concatenate([reading.drift for reading in readings]).mean(axis=0)
    for name, drift in zip(affects, drift_A.tolist(), strict=True):
        metrics[f"perception/drift_{name}"] = drift
    return metrics
