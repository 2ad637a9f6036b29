"""What every trainer of the policy's adapter has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from homeostat.bots.scripted import Bots
from homeostat.config.run import RolloutConfig
from homeostat.config.trainers import TrainerConfig
from homeostat.models.adapters import Policy
from homeostat.reward.compose import Reward, Rewards
from homeostat.signals.reader import Readings, SignalReader
from homeostat.timing import Stopwatch
from homeostat.types import Metrics, Progress, StepResult, silent


class AdapterTrainer(ABC):
    """A trainer whose `steps` yields after every update or round; it neither logs nor saves."""

    config: TrainerConfig

    def __init__(
        self,
        config: TrainerConfig,
        *,
        policy: Policy,
        bots: Bots,
        reader: SignalReader,
        reward: Reward,
        rollout: RolloutConfig,
        seed: int,
        watch: Stopwatch,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.policy = policy
        self.bots = bots
        self.reader = reader
        self.reward = reward
        self.rollout = rollout
        self.seed = seed
        self.watch = watch
        self.progress = progress
        self.done = 0
        self.optimizer = torch.optim.AdamW(policy.adapter_parameters(), config.lr, weight_decay=0.0)

    @abstractmethod
    def step(self) -> tuple[Metrics, Sequence[Mapping[str, Any]]]:
        """Do update number ``done + 1``; returns its metrics and its episodes' records."""

    def steps(self) -> Iterator[StepResult]:
        """Train; yields after every update, and may be left at any yield."""
        while self.done < self.config.max_steps:
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


def describe(readings: Readings, rewards: Rewards) -> Metrics:
    """Means over the turns and tokens of one batch of conversations, keyed ``area/name``."""
    kl = np.concatenate([found.kl_R for found in readings.traces])
    entropy = np.concatenate([found.entropy_R for found in readings.traces])
    metrics = {
        "reward/total": float(rewards.total_N.mean()),
        "policy/kl_nats_per_token": float(kl.mean()),
        "policy/entropy_nats_per_token": float(entropy.mean()),
        "rollout/response_tokens": float(len(kl)),
    }
    if rewards.valence.names:  # a control reward may hold nothing at a set point
        metrics["reward/valence"] = float(rewards.valence.total_N.mean())
    for column, name in enumerate(rewards.valence.names):
        metrics[f"reward/term/{name}"] = float(rewards.valence.terms_NS[:, column].mean())
    for name, term in rewards.own_terms.items():
        metrics[f"reward/own/{name}"] = float(term.mean())
    for name in readings.table.names:
        metrics[f"signal/{name}_mean"] = float(np.nanmean(readings.table.column(name)))
    for name, drift in readings.drift.items():
        metrics[f"perception/drift_{name}"] = drift
    return metrics
