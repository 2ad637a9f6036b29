"""Parts of `gpu_acceptance.py`: updates and healing under a cap of 12 GB, beside the memory plan.

Sampling and the update proper are measured apart. A plan reserves half a cache for rows that go on
when others have ended, and random weights hardly ever end a reply: their sampling must not exceed
its plan by more than the error that an update may have either way.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_calls import seconds_of
from gpu_models import (
    CAP_BYTES,
    DEFAULT,
    Brief,
    Fitted,
    Place,
    fitted,
    make_policy,
    make_trainer,
    random_model,
    random_rows,
    run_settings,
)
from gpu_records import Finding, Records, Skipped

from homeostat.config.register import build, config_part, target_of
from homeostat.config.run import RunConfig
from homeostat.models.adapters import Policy
from homeostat.models.forward import batches_by_length
from homeostat.models.load import BaseModel
from homeostat.models.tiny import byte_tokenizer
from homeostat.runs.memory import PROMPT_TOKENS, MemoryPlan, episode_tokens
from homeostat.steering.completions import Completion
from homeostat.steering.heal import Heal, HealRound
from homeostat.trainers.batch import Batch
from homeostat.types import Bots

MAX_ERROR = 0.15  # of the memory plan
NO_PEAK = "peak not measured on a CPU"
META = Place(torch.device("meta"), tiny=False)


@contextmanager
def capped(device: torch.device) -> Iterator[None]:
    """Within this context the process is refused more than the cap on a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()  # what is reserved already would count
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_BYTES / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@dataclass
class Gauge:
    """Seconds and peak memory of the stages of an update.

    Attributes:
        device: Without a GPU nothing is known of memory.
        before: Bytes that were held when it was made, which no peak contains.
        seconds: Of each stage.
        peaks: Bytes of each stage; None without a GPU.
    """

    device: torch.device
    before: int = field(init=False, default=0)
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_gpu:
            self.before = torch.cuda.memory_allocated(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether peaks can be measured."""
        return self.device.type == "cuda"

    def measure(self, stage: str, call: Callable[[], object]) -> None:
        """Make the call as a stage."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.seconds[stage] = seconds_of(call, self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - self.before if self.on_gpu else None
        self.peaks[stage] = peak


def update_part(place: Place, shape: str, kind: str, _: Records) -> Finding:
    """One whole update of PPO or GRPO at the settings of ``scale=gpu12``."""
    settings = run_settings(kind, place.tiny)
    with capped(place.device):
        gauge = Gauge(place.device)
        policy = make_policy(shape, place, torch.bfloat16, settings.lora)
        # GRPO's plan is PPO's.
        whole = _plan_whole(shape, kind) if place.tiny and kind == "ppo" else None
        return _update(policy, settings, gauge, whole)


def healing_part(place: Place, shape: str, _: Records) -> Finding:
    """One step of healing, on as many completions as a minibatch has."""
    settings = run_settings("steer_heal", place.tiny)
    with capped(place.device):
        gauge = Gauge(place.device)
        policy = make_policy(shape, place, torch.bfloat16, settings.lora)
        fit = _fit(policy, settings)
        config: Any = fit.config
        rows = random_rows(config.heal.minibatch, fit.length)
        completions = [
            Completion(tuple(row[:PROMPT_TOKENS]), tuple(row[PROMPT_TOKENS:])) for row in rows
        ]
        recompute = config.gradient_checkpointing
        round_ = HealRound(number=0, seed=0, lr=config.lr, tau=0.0, recompute=recompute)
        once = replace(config.heal, epochs=1, validation=0.0)
        heal = Heal(once, config.barrier, policy=policy, round=round_)
        gauge.measure("update", functools.partial(heal.run, completions))
        whole = _plan_whole(shape, "steer_heal") if place.tiny else None
        return _finding(gauge, fit, whole, {"completions": len(completions)})


def four_bit_part(place: Place, _: Records) -> Finding:
    """One update of PPO on a folder of random weights that is loaded in 4 bits."""
    if place.device.type != "cuda":
        raise Skipped("needs CUDA")
    if find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed")
    settings = run_settings("ppo", place.tiny)
    with tempfile.TemporaryDirectory() as folder, capped(place.device):
        save_random(place, Path(folder))
        gauge = Gauge(place.device)
        config = config_part("model=qwen2.5_0.5b", path=folder, quantization="4bit")
        base = build(config, BaseModel, device=place.device, dtype=torch.bfloat16)
        policy = Policy(base, settings.lora, seed=0)
        return _update(policy, settings, gauge, None)


def save_random(place: Place, folder: Path) -> None:
    """Write a model of random weights and its tokenizer, as a hub would hand them out."""
    random_model(DEFAULT, place, torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def _update(policy: Policy, settings: RunConfig, gauge: Gauge, whole: Fitted | None) -> Finding:
    """One update, and its peaks beside its plan.

    Args:
        policy: Fresh.
        settings: Of the run that the update is from.
        gauge: Made before the policy was.
        whole: Of the shape that this one was shrunk from.
    """
    fit = _fit(policy, settings)
    trainer = make_trainer(policy, fit.config, settings.rollout, _bots(settings))
    batches: list[Batch] = []
    told: dict[str, float] = {}
    gauge.measure("sampling", lambda: batches.append(trainer.collect()))
    gauge.measure("update", lambda: told.update(trainer.update(batches[0])))
    stages = {**trainer.watch.seconds, "update": gauge.seconds["update"]}
    figures = {
        "stages_s": stages,
        "response_tokens": sum(len(one) for one in batches[0].logprobs),
        "first_ratio": told["policy/first_ratio"],
        "optimiser_steps": told["optim/minibatches"],
        # A miss of the plan may be one of these two, and not of the bytes of a token.
        "micro_batch_tokens_planned": _gradient_tokens(fit),
        "micro_batch_tokens_held": _micro_batch_tokens(batches[0], fit.config),
    }
    return _finding(gauge, fit, whole, figures)


def _gradient_tokens(fit: Fitted) -> int:
    return int(target_of(fit.config).footprint(fit.config, fit.length).gradient_tokens)


def _micro_batch_tokens(batch: Batch, config: Any) -> int:
    """Padded tokens of the largest micro-batch that the first update makes of these episodes."""
    lengths = [len(stream.ids) for stream in batch.streams]
    order = np.random.default_rng([0, 0]).permutation(len(lengths))  # seed and update, as it draws
    largest = 0
    for rows in np.array_split(order, min(config.minibatches, len(order))):
        held = [lengths[row] for row in rows]
        parts = batches_by_length(held, config.micro_batch_tokens)
        largest = max(largest, *(len(part) * max(held[i] for i in part) for part in parts))
    return largest


def _bots(settings: RunConfig) -> Bots:
    return Brief(build(settings.bot, Bots))


def _fit(policy: Policy, settings: RunConfig) -> Fitted:
    """The settings' trainer as it fits under the cap."""
    config: Any = settings.trainer
    if config.needs_persona:
        return fitted(policy, config, PROMPT_TOKENS + config.max_new_tokens)
    return fitted(policy, config, episode_tokens(policy, settings.rollout, _bots(settings)))


def _plan_whole(shape: str, kind: str) -> Fitted:
    """What fits of a whole shape, from shapes alone."""
    settings = run_settings(kind, tiny=False)
    return _fit(make_policy(shape, META, torch.bfloat16, settings.lora), settings)


def planned(plan: MemoryPlan) -> dict[str, int]:
    """Bytes that each stage is planned to hold; the larger is the plan's total."""
    standing = plan.weights + plan.adapters + plan.optimiser
    return {
        "sampling": standing + plan.kv_cache,
        "update": standing + plan.activations + plan.logits,
    }


def ratios(plan: MemoryPlan, peaks: Mapping[str, int | None]) -> dict[str, float | None]:
    """Plan to peak of each stage that has been measured."""
    bytes_of = planned(plan)
    return {name: None if peak is None else bytes_of[name] / peak for name, peak in peaks.items()}


def is_within(ratio: Mapping[str, float | None]) -> bool | None:
    """Whether an update is near its plan and sampling not far above; None if unmeasured."""
    update, sampled = ratio["update"], ratio.get("sampling")
    if update is None:
        return None
    return abs(update - 1) <= MAX_ERROR and (sampled is None or sampled >= 1 - MAX_ERROR)


def _finding(gauge: Gauge, fit: Fitted, whole: Fitted | None, more: dict[str, Any]) -> Finding:
    """Plan, peaks and seconds; the bar is that of `is_within`."""
    ratio, bytes_of = ratios(fit.plan, gauge.peaks), planned(fit.plan)
    measured = [peak for peak in gauge.peaks.values() if peak is not None]
    largest = max(bytes_of[stage] for stage in gauge.peaks)
    figures = {
        "seconds_per_update": sum(gauge.seconds.values()),
        "plan_gb": largest / 1e9,
        "peak_gb": max(measured) / 1e9 if measured else None,
        "plan_to_peak": largest / max(measured) if measured else None,
        "stages_plan_gb": {stage: bytes_of[stage] / 1e9 for stage in gauge.peaks},
        "stages_peak_gb": {s: None if p is None else p / 1e9 for s, p in gauge.peaks.items()},
        "stages_plan_to_peak": ratio,
        "plan_parts_gb": {name: size / 1e9 for name, size in fit.plan.parts().items()},
        "held_before_gb": gauge.before / 1e9 if gauge.on_gpu else None,
        **_settings(fit),
        "whole_shape": None
        if whole is None
        else {"plan_gb": whole.plan.total / 1e9, **_settings(whole)},
    }
    said = [f"{sum(gauge.seconds.values()):.2f} s an update"]
    said += [
        f"{stage} {peak / 1e9:.2f} GB, planned {bytes_of[stage] / 1e9:.2f} ({ratio[stage]:.2f})"
        for stage, peak in gauge.peaks.items()
        if peak is not None
    ]
    said += [] if measured else [f"{NO_PEAK}, planned {largest / 1e6:.0f} MB"]
    said += [] if fit.changed is None else [fit.changed]
    if whole is not None:
        changed = "" if whole.changed is None else f" {whole.changed}"
        said.append(f"whole shape planned {whole.plan.total / 1e9:.1f} GB{changed}")
    return Finding(", ".join(said), figures | more, is_within(ratio))


def _settings(fit: Fitted) -> dict[str, Any]:
    return {
        "episodes": fit.config.batch_size,
        "longest_tokens": fit.length,
        "gradient_checkpointing": fit.config.gradient_checkpointing,
    }
