"""TRL's GRPO, a side of bench_trl.py, which starts it with TRL's own Python; see there."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from bench_trl_task import (
    KL_COEF,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    Clerk,
    Task,
    read_task,
    timed,
)
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

# What TRL's trainer calls between sampling and the first forward pass with gradients.
STAGES = {"_generate": "generate", "_generate_and_score_completions": "generate and score"}


class Watch(TrainerCallback):
    """Seconds of every update, and how many of them went before its gradients."""

    def __init__(self, clerk: Clerk, task: Task) -> None:
        self._clerk = clerk
        self._task = task
        self.left = task.updates
        self.stages: dict[str, float] = {}
        self.started = 0.0
        self.reply_tokens = 0

    def install(self, trainer: GRPOTrainer) -> None:
        """Put a clock around what can be told apart."""
        for name, stage in STAGES.items():
            plain = getattr(trainer, name)
            setattr(trainer, name, timed(plain, time.perf_counter, self._adding(stage)))

    def _adding(self, stage: str) -> Any:
        def add(seconds: float) -> None:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

        return add

    def on_train_begin(self, *given: Any, **models: Any) -> None:
        """Wait for the first update."""
        del given, models
        self._begin()

    def on_step_end(self, *given: Any, **models: Any) -> None:
        """Report this update and wait for the next."""
        del given, models
        seconds = time.perf_counter() - self.started
        sampled = self.stages.get("generate", 0.0)
        scored = self.stages.get("generate and score", 0.0)
        stages = {"generate": sampled, "reference": scored - sampled, "update": seconds - scored}
        expected = self._task.episodes * self._task.new_tokens
        assert self.reply_tokens == expected, (self.reply_tokens, expected)
        self._clerk.report(seconds, stages)
        self.left -= 1
        if self.left:
            self._begin()

    def reward(self, completion_ids: list[list[int]], **given: Any) -> list[float]:
        """Some reward that differs within a group, at no cost."""
        del given
        self.reply_tokens = sum(map(len, completion_ids))
        return [float(ids[0] % 7) for ids in completion_ids]

    def _begin(self) -> None:
        self._clerk.wait()
        self.stages = {}
        self.started = time.perf_counter()


def make_trainer(task: Task, folder: str, watch: Watch) -> GRPOTrainer:
    """TRL's GRPO on the same task."""
    config = GRPOConfig(
        output_dir=folder,
        max_steps=task.updates,
        per_device_train_batch_size=task.episodes // task.minibatches,
        steps_per_generation=task.minibatches,
        gradient_accumulation_steps=1,
        num_generations=task.group,
        num_iterations=task.epochs,
        max_completion_length=task.new_tokens,
        generation_kwargs={"min_new_tokens": task.new_tokens},
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        beta=KL_COEF,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    prompts = [[{"role": "user", "content": text}] for text in task.texts]
    return GRPOTrainer(
        args=config,
        processing_class=AutoTokenizer.from_pretrained(task.model, padding_side="left"),
        model=AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, task.dtype)),
        reward_funcs=watch.reward,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear"),
        callbacks=[watch],
    )


def main() -> None:
    """Train, one update per line on standard input."""
    path, folder = sys.argv[1:3]
    task = read_task(path)
    watch = Watch(Clerk(), task)
    trainer = make_trainer(task, folder, watch)
    watch.install(trainer)
    trainer.train()


if __name__ == "__main__":
    main()
