"""homeostat's side of bench_trl.py, which starts it; see there for what is measured."""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from bench_calls import Talkative
from bench_trl_task import (
    KL_COEF,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    PROMPT_TOKENS,
    Clerk,
    Task,
    read_task,
)

from homeostat.config.model import PretrainedModelConfig
from homeostat.config.register import build, config_part
from homeostat.config.reward import RewardConfig, SetPointConfig
from homeostat.config.run import RolloutConfig
from homeostat.models.load import BaseModel
from homeostat.models.placement import place
from homeostat.reward.compose import Reward
from homeostat.reward.valence import SetPoint
from homeostat.rollout.episodes import training_seeds
from homeostat.signals.reader import SignalReader
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.trainers.grpo import GRPO
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.trainers.ppo import PPO
from homeostat.types import Conversation, Turn


class Asker:
    """A user who asks one thing and then says goodbye."""

    name = "asker"

    def __init__(self, text: str) -> None:
        self._text = text

    def opening(self) -> Turn:
        """The prompt."""
        return Turn("user", self._text)

    def answer(self, reply: str) -> Turn:
        """The turn that ends every episode of homeostat."""
        del reply
        return Turn("user", "Thank you.")


class Askers:
    """One asker per seed of a training episode, in the order of the task's prompts."""

    def __init__(self, task: Task) -> None:
        self._texts = task.texts
        self._first = training_seeds(0, 0, 1)[0]

    def spawn(self, seed: int) -> Asker:
        """The asker of episode ``seed``."""
        return Asker(self._texts[seed - self._first])


def make_trainer(task: Task, watch: Stopwatch) -> PolicyGradient:
    """PPO or GRPO with a set point on the entropy and all intrinsic signals measured."""
    model = PretrainedModelConfig(name="smollm2", path=task.model)
    base = build(model, BaseModel, device=torch.device("cpu"), dtype=place("cpu", task.dtype).dtype)
    policy = Talkative(base, config_part("lora", rank=LORA_RANK, alpha=LORA_ALPHA), seed=0)
    reader = SignalReader(policy, config_part("signals", affect=None), None)
    reader.base_norms = np.ones(len(reader.norm_layers))
    asked = RewardConfig(
        set_points={
            "entropy": SetPointConfig(weight=1.0, setpoint=2.0, tolerance=0.5, min_tolerance=1e-6)
        }
    )
    of_its_own = (
        {"value_lr": LEARNING_RATE} if task.trainer == "ppo" else {"group_size": task.group}
    )
    config = config_part(
        f"trainer={task.trainer}",
        lr=LEARNING_RATE,
        batch_size=task.episodes,
        max_steps=task.updates,
        epochs=task.epochs,
        minibatches=task.minibatches,
        kl=config_part("trainer=ppo", "kl", coef=KL_COEF),
        target_kl=None,
        **of_its_own,
    )
    return (PPO if task.trainer == "ppo" else GRPO)(
        config,
        world=World(
            policy,
            Askers(task),
            reader,
            Reward(asked, {"entropy": SetPoint(1.0, 2.0, 0.5)}),
            RolloutConfig(turns=1, max_new_tokens=task.new_tokens),
        ),
        seed=0,
        watch=watch,
    )


def main() -> None:
    """Train, one update per line on standard input."""
    clerk = Clerk()
    task, watch = read_task(sys.argv[1]), Stopwatch()
    trainer = make_trainer(task, watch)
    prompt = trainer.policy.encode(Conversation((Turn("user", task.texts[0]),)))
    assert prompt.ids == task.prompts[0]
    assert len(prompt.ids) == PROMPT_TOKENS
    steps = trainer.steps()
    for _ in range(task.updates):
        clerk.wait()
        before, started = dict(watch.seconds), time.perf_counter()
        metrics = next(steps).metrics
        seconds = time.perf_counter() - started
        assert metrics["rollout/response_tokens"] == task.episodes * task.new_tokens
        assert metrics["optim/minibatches"] == task.epochs * task.minibatches
        stages = {name: s - before.get(name, 0.0) for name, s in watch.seconds.items()}
        clerk.report(seconds, stages, first_ratio=metrics["policy/first_ratio"])


if __name__ == "__main__":
    main()
