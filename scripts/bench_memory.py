"""Compares the memory plan with what training really holds, on models of well-known shapes.

python scripts/bench_memory.py [--json] [--device auto|cpu|cuda] [--only NAME ...]

The models have random weights and the exact shapes of SmolLM2-135M, Qwen2.5-0.5B and the text part
of gemma-3-4b (hyperparameters as published with them), so nothing is downloaded. Every case has a
process of its own, which builds the model, adds a LoRA of rank 16 on all linear layers and does one
of

    update     one PPO update: every minibatch of 8 episodes, backward pass and optimiser steps
    one pass   one forward and backward pass of a micro-batch, logits at response positions only
    heal       two steps of healing under the rmse barrier, four completions in each

over conversations of 200 tokens (or 512), half of them responses. Measured is the peak above what
the process held before the model was built: resident memory on a CPU (Linux; the peak is reset
before the update, freed blocks are returned to the system at once), allocated memory on CUDA,
where the process is held to 12 GB. A case that is too large or too slow for a CPU is estimated
alone, with the model on the meta device.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from homeostat.config.register import build, config_part, target_of
from homeostat.config.steering import SteerHealConfig
from homeostat.config.trainers import TrainerConfig
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.models.template import chat_template
from homeostat.models.tiny import byte_tokenizer
from homeostat.runs.memory import MemoryPlan, plan_memory
from homeostat.steering.completions import Completion
from homeostat.steering.heal import Heal, HealRound
from homeostat.timing import Stopwatch
from homeostat.trainers.base import World
from homeostat.trainers.batch import Batch, Credit
from homeostat.trainers.ppo import PPO
from homeostat.types import TokenStream

LENGTH, EPISODES, MINIBATCHES = 200, 8, 2
HEALED = 4  # completions in a step of healing
GPU_BYTES = 12e9
# Freed blocks go back to the system, so that resident memory is what is in use.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "0",
}
MAX_ERROR = 0.15

SHAPES = {
    "SmolLM2-135M": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "Qwen2.5-0.5B": Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "gemma-3-4b": Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=262208,
        sliding_window=1024,
        tie_word_embeddings=True,
    ),
}


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    model: str
    dtype: str
    what: str = "update"
    micro_batch_tokens: int = 800
    checkpointing: bool = False
    lora_layers: tuple[float, float] = (0.0, 1.0)
    length: int = LENGTH

    @property
    def config(self) -> TrainerConfig:
        """The trainer's config."""
        if self.what == "heal":
            sizes = {"minibatch": HEALED, "epochs": 2, "validation": 0.0}
            return config_part(
                "trainer=steer_heal", heal=config_part("trainer=steer_heal", "heal", **sizes)
            )
        return config_part(
            "trainer=ppo",
            batch_size=EPISODES,
            minibatches=MINIBATCHES,
            micro_batch_tokens=self.micro_batch_tokens,
            gradient_checkpointing=self.checkpointing,
            target_kl=None,
        )


CASES = [
    Case("SmolLM2-135M", "float32"),
    Case("SmolLM2-135M", "float32", lora_layers=(0.5, 1.0)),
    Case("SmolLM2-135M", "float32", checkpointing=True),
    Case("SmolLM2-135M", "float32", what="one pass"),
    Case("SmolLM2-135M", "float32", what="heal", micro_batch_tokens=HEALED * LENGTH),
    Case("SmolLM2-135M", "float32", what="heal", micro_batch_tokens=HEALED * 512, length=512),
    Case("SmolLM2-135M", "bfloat16"),
    Case("Qwen2.5-0.5B", "float32", micro_batch_tokens=400),
    Case("Qwen2.5-0.5B", "float32", micro_batch_tokens=400, checkpointing=True),
    Case("Qwen2.5-0.5B", "bfloat16", micro_batch_tokens=400),
    Case("Qwen2.5-0.5B", "bfloat16", what="one pass", micro_batch_tokens=400),
    Case("gemma-3-4b", "bfloat16", micro_batch_tokens=400),
    Case("gemma-3-4b", "bfloat16", micro_batch_tokens=400, checkpointing=True),
    Case("gemma-3-4b", "bfloat16", what="one pass", micro_batch_tokens=400, checkpointing=True),
    Case("gemma-3-4b", "bfloat16", what="heal", micro_batch_tokens=HEALED * 512, length=512),
]


def make_policy(case: Case, device: torch.device) -> Policy:
    """The case's model with its adapter."""
    with device:
        model = AutoModelForCausalLM.from_config(
            SHAPES[case.model], dtype=getattr(torch, case.dtype)
        )
    model.requires_grad_(False)
    tokenizer = byte_tokenizer()
    base = BaseModel(model.eval(), tokenizer, case.model, "random", chat_template(tokenizer))
    return Policy(base, config_part("lora", rank=16, layers=list(case.lora_layers)), seed=0)


def make_ppo(case: Case, policy: Policy) -> PPO:
    """A trainer that is only asked to learn from a batch."""
    nobody: Any = None  # nothing is played, read or rewarded
    world = World(policy, nobody, nobody, nobody, config_part("rollout"))
    return build(case.config, PPO, world=world, seed=0, watch=Stopwatch())


def make_batch() -> Batch:
    """Episodes of random tokens with random advantages."""
    rng = np.random.default_rng(0)
    half = LENGTH // 2
    stream = [
        TokenStream(
            rng.integers(0, 200, LENGTH).tolist(),
            [0] * half + [1] * half,
            [False] * half + [True] * half,
        )
        for _ in range(EPISODES)
    ]
    numbers = [rng.standard_normal(half) for _ in range(EPISODES)]
    credit = Credit(numbers, numbers, numbers)
    nothing: Any = None
    logprobs = [np.full(half, -12.0) for _ in range(EPISODES)]
    return Batch([nothing] * EPISODES, stream, nothing, nothing, logprobs, credit)


def heal(case: Case, policy: Policy) -> None:
    """Two steps of healing on completions of random tokens."""
    config, half = case.config, case.length // 2
    assert isinstance(config, SteerHealConfig)
    rng = np.random.default_rng(0)
    completions = [
        Completion(*(tuple(rng.integers(0, 200, half).tolist()) for _ in range(2)))
        for _ in range(HEALED)
    ]
    barrier = config_part("trainer=steer_heal", "barrier", tau=0.0)
    round_ = HealRound(number=0, seed=0, lr=1e-4, tau=0.0)
    Heal(config.heal, barrier, policy=policy, round=round_).run(completions)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Most bytes since `reset_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(case: Case, device_name: str) -> dict[str, Any]:
    """Plan and, where it fits, measured peak of one case, bytes."""
    device = torch.device(device_name)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, GPU_BYTES / total))
    before = resident() if device.type == "cpu" else 0
    policy = make_policy(case, device)
    footprint = target_of(case.config).footprint(case.config, case.length)
    plan = plan_memory(policy, replace(footprint, rows=0))
    if device.type == "meta":
        return as_row(case, plan, None)
    if case.what == "heal":
        reset_peak(device)
        heal(case, policy)
        return as_row(case, plan, peak(device) - before)
    trainer, batch = make_ppo(case, policy), make_batch()
    reset_peak(device)
    if case.what == "update":
        trainer.update(batch)
    else:
        rows = list(range(case.micro_batch_tokens // LENGTH))
        with policy.recomputing(case.checkpointing):
            loss, _ = trainer._loss(batch, rows)
            loss.backward()  # type: ignore[no-untyped-call]
    return as_row(case, plan, peak(device) - before)


def as_row(case: Case, plan: MemoryPlan, measured: int | None) -> dict[str, Any]:
    """One row of the table; a single pass has no moments yet, only gradients."""
    moments = plan.optimiser * 2 // 3 if case.what == "one pass" else 0
    estimate = plan.total - moments
    return {
        "model": case.model,
        "dtype": case.dtype,
        "what": case.what,
        "micro_batch_tokens": case.micro_batch_tokens,
        "checkpointing": case.checkpointing,
        "lora_layers": list(case.lora_layers),
        "length": case.length,
        "parts_mb": {name: round(size / 1e6) for name, size in plan.parts().items()},
        "estimate_mb": round(estimate / 1e6),
        "measured_mb": None if measured is None else round(measured / 1e6),
        "ratio": None if measured is None else round(estimate / measured, 3),
    }


def fits(case: Case, device_name: str) -> bool:
    """Whether the case can be measured on this machine in reasonable time."""
    large = case.model == "gemma-3-4b" or case.dtype != "float32"  # a CPU may crawl in bfloat16
    return device_name == "cuda" or not large


def show(rows: list[dict[str, Any]], device_name: str) -> None:
    """Print the table."""
    print(
        f"device {device_name}, conversations of {LENGTH} tokens unless said, LoRA rank 16, "
        "MB = 10^6 bytes"
    )
    print(f"{'model':<14}{'dtype':<10}{'what':<10}{'tokens':>7}  {'options':<22}", end="")
    print(f"{'estimate':>9}{'measured':>10}{'ratio':>7}")
    for row in rows:
        options = ["checkpointing"] if row["checkpointing"] else []
        options += ["upper half"] if row["lora_layers"][0] else []
        options += [f"{row['length']} tokens each"] if row["length"] != LENGTH else []
        measured = "not run" if row["measured_mb"] is None else f"{row['measured_mb']:,}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(
            f"{row['model']:<14}{row['dtype']:<10}{row['what']:<10}"
            f"{row['micro_batch_tokens']:>7}  {', '.join(options):<22}"
            f"{row['estimate_mb']:>9,}{measured:>10}{ratio:>7}"
        )
    known = [abs(row["ratio"] - 1) for row in rows if row["ratio"] is not None]
    if known:
        within = sum(error <= MAX_ERROR for error in known)
        print(f"within {MAX_ERROR:.0%} of the measurement: {within} of {len(known)}")


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    arguments = parser.parse_args()
    here = "cuda" if torch.cuda.is_available() else "cpu"
    device_name = here if arguments.device == "auto" else arguments.device
    os.environ.update(MALLOC)  # read by each process as it starts
    rows = []
    for case in (case for case in CASES if case.model in arguments.only):
        where = device_name if fits(case, device_name) else "meta"
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(measure, case, where).result())
        print(json.dumps(rows[-1]), file=sys.stderr)
    if arguments.json:
        print(json.dumps({"device": device_name, "cases": rows}))
    else:
        show(rows, device_name)


if __name__ == "__main__":
    main()
