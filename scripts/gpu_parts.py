"""The parts of `gpu_acceptance.py`: what each measures, and the bar that it must pass."""

from __future__ import annotations

import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_calls import Call, Talkative, generate, sample, seconds_of, stir_adapter
from gpu_models import (
    DEFAULT,
    SET_POINT,
    SHAPES,
    Brief,
    Parrots,
    Place,
    make_policy,
    make_trainer,
    random_rows,
    run_settings,
)
from gpu_records import Finding, Part, Records, Skipped, sentence
from gpu_updates import four_bit_part, healing_part, update_part
from torch import Tensor

from homeostat.config.register import build, config_part
from homeostat.config.run import RolloutConfig
from homeostat.models.adapter_files import load_adapter, save_adapter
from homeostat.models.adapters import Policy
from homeostat.models.tiny import load_tiny
from homeostat.trainers.policy_gradient import PolicyGradient
from homeostat.types import Bots

MAX_HOURS = 1.0
APPROACH = 0.75  # most of the first distance from the set point that may be left
BATCHES = (64, 16, 128)
SAMPLED_PROMPT, SAMPLED_TOKENS, REPEATS = 50, 48, 3


def make_parts(device: torch.device, tiny: bool) -> list[Part]:
    """All parts, most decisive first; the last needs no time of its own."""
    place = Place(device, tiny)
    learn = [
        Part(f"learning, {kind}, {_name(dtype)}", functools.partial(learning, place, kind, dtype))
        for dtype in (torch.float32, torch.bfloat16)
        for kind in ("ppo", "grpo")
    ]
    ppo, grpo = ([_update(place, shape, kind) for shape in SHAPES] for kind in ("ppo", "grpo"))
    heal = [
        Part(f"12 GB, healing, {shape}", functools.partial(healing_part, place, shape))
        for shape in SHAPES
    ]
    sample = [
        Part(f"sampling, batch {rows}", functools.partial(sampling, place, rows))
        for rows in BATCHES
    ]
    return [
        *learn,
        *(part for pair in zip(ppo, heal, strict=True) for part in pair),
        Part("resume", functools.partial(resume, place)),
        Part("4-bit, ppo", functools.partial(four_bit_part, place)),
        *sample,
        *grpo,
        Part("run time", functools.partial(run_time, place), least_s=0.0),
    ]


def _update(place: Place, shape: str, kind: str) -> Part:
    return Part(f"12 GB, {kind}, {shape}", functools.partial(update_part, place, shape, kind))


def learning(place: Place, kind: str, dtype: torch.dtype, _: Records) -> Finding:
    """A set point of 3 nats, from above; the bar is that of the package's own tests."""
    base = load_tiny(config_part("model=tiny_random", num_layers=1), place.device, dtype)
    policy = Policy(base, config_part("lora", rank=4, alpha=8.0), seed=0)
    groups = {} if kind == "ppo" else {"group_size": 8}
    config = config_part(
        f"trainer={kind}",
        lr=0.1,
        lr_decay="linear",
        batch_size=48,
        minibatches=2,
        micro_batch_tokens=10_000,
        epochs=2,
        max_steps=10,
        target_kl=None,
        kl=config_part(f"trainer={kind}", "kl", coef=0.0),
        **groups,
    )
    trainer = make_trainer(policy, config, RolloutConfig(turns=1, max_new_tokens=4), Parrots())
    metrics = [result.metrics for result in trainer.steps()]
    reward = [one["reward/total"] for one in metrics]
    entropy = [one["policy/entropy_nats_per_token"] for one in metrics]
    before, after = entropy[0], statistics.mean(entropy[-2:])
    figures = {
        "reward_before": reward[0],
        "reward_after": statistics.mean(reward[-2:]),
        "entropy_before_nats": before,
        "entropy_after_nats": after,
        "set_point_nats": SET_POINT,
    }
    says = (
        f"reward {reward[0]:.2f} -> {figures['reward_after']:.2f}, entropy {before:.2f} -> "
        f"{after:.2f} nats, set point {SET_POINT:g}"
    )
    return Finding(says, figures, abs(after - SET_POINT) < APPROACH * abs(before - SET_POINT))


def resume(place: Place, _: Records) -> Finding:
    """Two updates in one go, twice, and with a checkpoint and fresh objects in between."""
    dtype = torch.bfloat16 if place.device.type == "cuda" else torch.float32
    settings = run_settings("ppo", tiny=True)  # two updates: few episodes do

    def fresh() -> PolicyGradient:
        policy = make_policy(DEFAULT, place, dtype, settings.lora)
        bots = Brief(build(settings.bot, Bots))
        return make_trainer(policy, settings.trainer, settings.rollout, bots)

    begun = _weights(fresh())
    straight, again = (_weights(_stepped(fresh(), 2)) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        first = _stepped(fresh(), 1)
        save_adapter(first.policy, path / "adapter")
        torch.save(first.state_dict(), path / "state.pt")
        second = fresh()
        load_adapter(second.policy, path / "adapter")
        second.load_state_dict(torch.load(path / "state.pt", map_location="cpu", weights_only=True))
    resumed = _weights(_stepped(second, 1))
    difference, chance = _largest(straight, resumed), _largest(straight, again)
    figures = {
        "dtype": _name(dtype),
        "largest_difference": difference,
        "largest_difference_of_two_straight_runs": chance,
        "largest_move_in_two_updates": _largest(straight, begun),
    }
    equal = difference == 0
    says = (
        f"{_name(dtype)}, equal to the bit"
        if equal
        else f"{_name(dtype)}, weights differ by up to {difference:.1e}, two straight runs by up "
        f"to {chance:.1e}; the updates moved them by up to "
        f"{figures['largest_move_in_two_updates']:.1e}"
    )
    # Only a CPU is promised to repeat itself to the bit.
    return Finding(says, figures, equal if place.device.type == "cpu" else None)


def _stepped(trainer: PolicyGradient, updates: int) -> PolicyGradient:
    """The trainer after so many updates."""
    steps = trainer.steps()
    for _ in range(updates):
        next(steps)
    return trainer


def _weights(trainer: PolicyGradient) -> list[Tensor]:
    """The adapter, on the CPU."""
    return [p.detach().cpu().clone() for p in trainer.policy.adapter_parameters()]


def _largest(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference between two adapters' numbers."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def sampling(place: Place, rows: int, _: Records) -> Finding:
    """Tokens per second of the sampler and of `generate` with its two caches, adapter on."""
    lora = run_settings("ppo", place.tiny).lora
    policy = make_policy(DEFAULT, place, torch.bfloat16, lora, Talkative)
    stir_adapter(policy)
    prompts = random_rows(rows, SAMPLED_PROMPT)
    ready = torch.tensor(prompts, device=place.device)
    calls: dict[str, Call] = {
        "homeostat": functools.partial(sample, policy, prompts, SAMPLED_TOKENS),
        "generate, dynamic": functools.partial(generate, policy, ready, SAMPLED_TOKENS),
        "generate, static": functools.partial(generate, policy, ready, SAMPLED_TOKENS, "static"),
    }
    speeds = {name: _speed(call, rows, place.device) for name, call in calls.items()}
    torch.compiler.reset()  # what transformers has compiled for this batch fits no other
    said = []
    for name, speed in speeds.items():
        rate = speed["tokens_per_s"]
        said.append(f"{name} {speed['failed'] if rate is None else f'{rate:.0f}'}")
    ours = speeds["homeostat"]
    if ours["failed"] is not None:
        raise RuntimeError(f"the sampler {ours['failed']}")
    figures = {"new_tokens": SAMPLED_TOKENS, "prompt_tokens": SAMPLED_PROMPT, "samplers": speeds}
    return Finding(f"tokens/s: {', '.join(said)}", figures)


def _speed(call: Call, rows: int, device: torch.device) -> dict[str, Any]:
    """Median speed after a first call, which may compile; a sampler that fails stops no other."""
    try:
        first = seconds_of(call, device)
        rounds = [seconds_of(call, device) for _ in range(REPEATS)]
    except Exception as error:
        return {"tokens_per_s": None, "first_call_s": None, "failed": f"failed: {sentence(error)}"}
    rate = rows * SAMPLED_TOKENS / statistics.median(rounds)
    return {"tokens_per_s": rate, "first_call_s": first, "rounds_s": rounds, "failed": None}


def run_time(place: Place, records: Records) -> Finding:
    """Hours of a whole run, from the stages of the update that was measured.

    Counted are the updates and every other episode that is played and traced: those of the set
    points, and the held-out ones of base and trained model. Not counted are the fitting of the
    probes and the evaluations.
    """
    measured = records.get(_update(place, DEFAULT, "ppo").name)
    stages = measured.figures.get("stages_s") if measured else None
    if measured is None or stages is None:
        raise Skipped(f"no update of {DEFAULT} was measured")
    settings = run_settings("ppo", place.tiny)
    episodes = settings.trainer.batch_size
    others = 2 * settings.eval.episodes + settings.signals.calibration_episodes
    per_episode = (stages["generate"] + stages["trace"]) / episodes
    updates = settings.trainer.max_steps * sum(stages.values())
    hours = (updates + others * per_episode) / 3600
    figures = {
        "hours": hours,
        "updates": settings.trainer.max_steps,
        "seconds_per_update": sum(stages.values()),
        "other_episodes": others,
        "goal_hours": MAX_HOURS,
    }
    if place.tiny:
        says = f"{3600 * hours:.1f} s for a shrunken model and run: says nothing of a GPU"
        return Finding(says, figures)
    says = f"{hours:.2f} h without probes and evaluations, goal {MAX_HOURS:g} h"
    return Finding(says, figures, hours <= MAX_HOURS)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
