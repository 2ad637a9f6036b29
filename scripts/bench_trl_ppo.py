"""TRL's PPO, a side of bench_trl.py, which starts it with TRL's own Python; see there."""

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
from peft import LoraConfig, TaskType, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

NEVER_SAMPLED = "<repo_name>"  # pads; TRL takes every pad token for the end of a reply


class Watch(TrainerCallback):
    """Seconds per stage of an update, from the functions that TRL's training loop calls."""

    def __init__(self, clerk: Clerk, updates: int) -> None:
        self._clerk = clerk
        self.left = updates
        self.stages: dict[str, float] = {}
        self.started = self.update_began = 0.0

    def install(self, trainer: PPOTrainer) -> None:
        """Put a clock around what can be told apart."""
        scorers = {id(trainer.reward_model): "reward model", id(trainer.value_model): "values"}
        plain_forward, plain_reward = ppo_trainer.forward, ppo_trainer.get_reward

        def forward(*args: Any) -> Any:
            if torch.is_grad_enabled():  # of the update, which begins here
                self.update_began = self.update_began or time.perf_counter()
                return plain_forward(*args)
            return self._clocked(plain_forward, "reference")(*args)

        def get_reward(model: Any, *args: Any) -> Any:
            return self._clocked(plain_reward, scorers[id(model)])(model, *args)

        ppo_trainer.forward, ppo_trainer.get_reward = forward, get_reward
        ppo_trainer.batch_generation = self._clocked(ppo_trainer.batch_generation, "generate")

    def _clocked(self, function: Any, stage: str) -> Any:
        def add(seconds: float) -> None:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

        return timed(function, time.perf_counter, add)

    def on_train_begin(self, *given: Any, **models: Any) -> None:
        """Wait for the first update."""
        del given, models
        self._begin()

    def on_step_end(self, *given: Any, **models: Any) -> None:
        """Report this update and wait for the next."""
        del given
        now = time.perf_counter()
        stages = self.stages | {"update": now - self.update_began}
        stages["rest"] = now - self.started - sum(stages.values())
        self._clerk.report(now - self.started, stages, **self.counted(models["optimizer"]))
        self.left -= 1
        if self.left:
            self._begin()

    def counted(self, optimizer: Any) -> dict[str, Any]:
        """How many optimiser steps were taken so far, and how many numbers they moved."""
        groups = optimizer.param_groups
        states = [optimizer.state[p] for group in groups for p in group["params"]]
        return {
            "optimiser_steps": int(max(float(s["step"]) for s in states if s)),
            "trained_numbers": sum(p.numel() for group in groups for p in group["params"]),
        }

    def _begin(self) -> None:
        self._clerk.wait()
        self.stages, self.update_began = {}, 0.0
        self.started = time.perf_counter()


def make_trainer(task: Task, critic: str, folder: str, watch: Watch) -> PPOTrainer:
    """TRL's PPO on the same task; ``critic`` is what of the value model learns."""
    dtype = getattr(torch, task.dtype)

    def scorer() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            task.model, num_labels=1, dtype=dtype
        )

    tokenizer = AutoTokenizer.from_pretrained(task.model, padding_side="left")
    tokenizer.pad_token = NEVER_SAMPLED
    lora = {"r": LORA_RANK, "lora_alpha": LORA_ALPHA, "target_modules": "all-linear"}
    value_model = scorer()
    if critic == "lora":
        inject_adapter_in_model(
            LoraConfig(task_type=TaskType.SEQ_CLS, exclude_modules=["score"], **lora), value_model
        )
        value_model.score.requires_grad_(True)
    config = PPOConfig(
        output_dir=folder,
        total_episodes=len(task.prompts),
        per_device_train_batch_size=task.episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=task.minibatches,
        num_ppo_epochs=task.epochs,
        local_rollout_forward_batch_size=task.episodes,
        response_length=task.new_tokens,
        stop_token=None,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        kl_coef=KL_COEF,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype),
        ref_model=None,
        reward_model=scorer().requires_grad_(False),
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": task.prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": task.prompts[: task.episodes]}),
        peft_config=LoraConfig(task_type=TaskType.CAUSAL_LM, **lora),
        callbacks=[watch],
    )


def main() -> None:
    """Train, one update per line on standard input."""
    path, folder, critic = sys.argv[1:]
    task = read_task(path)
    watch = Watch(Clerk(), task.updates)
    trainer = make_trainer(task, critic, folder, watch)
    watch.install(trainer)
    trainer.train()


if __name__ == "__main__":
    main()
