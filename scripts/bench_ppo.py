"""Measures homeostat's PPO beside TRL's PPOTrainer: seconds per update, peak memory, and where.

python scripts/bench_ppo.py --trl-python trl/bin/python [--json] [--repeats 3]
                            [--template chat|bare] [--episodes 16] [--new-tokens 48]

TRL gets a virtual environment of its own:

    python3.11 -m venv trl && trl/bin/pip install "torch==2.13.0" "trl==1.12.*" peft

The task, the same for both: the embedded SmolLM2-135M in float32 on the CPU, LoRA of rank 16 on all
linear layers of all blocks, 16 episodes of 48 new tokens on prompts of 50, sampled at temperature 1
and never ended earlier, 2 epochs of 4 optimiser steps on 4 episodes each. Both read the weights
and, token by token, the prompts from one folder; every prompt is used once.

Each trainer has a process of its own that waits while another one works. Each makes one update to
warm up, then `--repeats` rounds let each make one, in alternating order. A round gives one ratio,
so that load on the machine meets all of them. Peak memory is the process's peak resident memory
over its life, loading included (Linux).

homeostat: its defaults, a critic on the policy's own trunk, all intrinsic signals measured, a set
point on one of them; no probes, since TRL has nothing like them. Every episode ends with a user's
turn of a few tokens, which homeostat reads and TRL does not have. The chat template opens every
prompt with the same 27 tokens, as it does in a run; homeostat reads them once per batch, TRL once
per row. `--template bare` leaves the system prompt out and makes up for it with words: then
nothing is shared.

TRL, in what its API offers for the task, chosen for speed where there was a choice:

    policy        peft_config, so that its reference is the policy without the adapter, no copy
    value model   the classifier of the same weights that PPOTrainer asks for; its backbone is
                  trained whole, as in TRL's example (`full`), or has a LoRA like the policy's on a
                  frozen base (`lora`), which its documentation does not mention but its API allows
    reward model  the same classifier, frozen; its share of the time is told apart
    batches       rollouts of 16; minibatches of 4 in one piece, no accumulation, so that it makes
                  as many optimiser steps as homeostat; no gradient checkpointing
    off           sample generations, checkpoints, reporting

Where TRL's time goes is measured around the functions that its training loop calls; `update` is
from its first forward pass with gradients to the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_calls import run_config
from bench_ppo_task import (
    EPOCHS,
    LORA_RANK,
    MINIBATCHES,
    PROMPT_TOKENS,
    Task,
)

from homeostat.config.register import build
from homeostat.errors import HomeostatError
from homeostat.models.chat import encode
from homeostat.models.load import BaseModel
from homeostat.models.template import chat_template
from homeostat.types import Conversation, Turn

OURS = "homeostat"
TRL = {"full": "TRL, value model whole", "lora": "TRL, value model LoRA"}
MIN_SPEEDUP, MAX_MEMORY_SHARE = 2.0, 0.4
BARE_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Each is one token of SmolLM2's vocabulary, with the space before it.
WORDS = ("river", "house", "table", "music", "water", "light", "stone", "garden", "bread")


# --- the task ---------------------------------------------------------------------------------


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Leave the model, its tokenizer and the prompts in ``folder``."""
    base = build(run_config().model, BaseModel, device=torch.device("cpu"), dtype=torch.float32)
    if options.template == "bare":
        base.tokenizer.chat_template = BARE_TEMPLATE
    base.model.save_pretrained(folder / "model")
    base.tokenizer.save_pretrained(folder / "model")
    chance = random.Random(0)
    texts, prompts = [], []
    for _ in range((options.repeats + 1) * options.episodes):
        text = chance.choice(WORDS)
        while len(ids := prompt_ids(base.tokenizer, text)) < PROMPT_TOKENS:
            text += f" {chance.choice(WORDS)}"
        assert len(ids) == PROMPT_TOKENS
        texts.append(text)
        prompts.append(ids)
    task = Task(str(folder / "model"), options.episodes, options.new_tokens, texts, prompts)
    task.write(folder)


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """What the policy reads before it replies to ``text``."""
    asked = Conversation((Turn("user", text),))
    return encode(asked, chat_template(tokenizer), [tokenizer.eos_token_id]).ids


# --- the trainers' processes ------------------------------------------------------------------


class Arm:
    """One trainer in a process of its own, which works only within `update`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def update(self) -> dict[str, Any]:
        """Let it make one update; returns its report.

        Raises:
            HomeostatError: It has ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise HomeostatError(f"a trainer has failed:\n{self._log.read_text()[-4000:]}")
        report: dict[str, Any] = json.loads(line)
        return report

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()


def start(folder: Path, trl_python: str, critics: Sequence[str]) -> dict[str, Arm]:
    """All trainers by name; each loads its models and waits."""
    here = Path(__file__).parent
    commands = {OURS: [sys.executable, str(here / "bench_ppo_homeostat.py"), str(folder)]}
    for critic in critics:
        commands[TRL[critic]] = [trl_python, str(here / "bench_ppo_trl.py"), str(folder), critic]
    return {
        name: Arm(command, folder / f"{number}.log")
        for number, (name, command) in enumerate(commands.items())
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Reports of every update of every trainer, and their medians and ratios, JSON-ready."""
    reports: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options)
        arms = start(folder, options.trl_python, options.trl_critic)
        try:
            for number in range(options.repeats + 1):
                print(f"round {number} of {options.repeats}" if number else "warm-up", end=":")
                for arm in list(arms)[:: 1 if number % 2 else -1]:
                    report = arms[arm].update()
                    print(f"  {arm} {report['seconds']:.1f} s", end="", flush=True)
                    reports.setdefault(arm, []).append(report)
                print()
        finally:
            for running in arms.values():
                running.end()
    measured = {arm: updates[1:] for arm, updates in reports.items()}
    return {"rounds": options.repeats, "trainers": [summed_up(n, measured) for n in arms]}


def summed_up(name: str, reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of one trainer, and what homeostat gains on it in the same rounds if it is TRL's."""
    updates, ours = reports[name], reports[OURS]
    seconds = [report["seconds"] for report in updates]
    row: dict[str, Any] = {
        "trainer": name,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "peak_bytes": updates[-1]["peak_bytes"],
        "stages_s": {
            stage: statistics.median(report["stages"][stage] for report in updates)
            for stage in updates[0]["stages"]
        },
        "last_report": updates[-1],
    }
    if name == OURS:
        return row
    ratios = [theirs["seconds"] / our["seconds"] for theirs, our in zip(updates, ours, strict=True)]
    scored = [theirs["stages"]["reward model"] for theirs in updates]
    bare = [
        (theirs["seconds"] - extra) / our["seconds"]
        for theirs, our, extra in zip(updates, ours, scored, strict=True)
    ]
    share = ours[-1]["peak_bytes"] / updates[-1]["peak_bytes"]
    return row | {
        "speedup": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "speedup_without_reward_model": statistics.median(bare),
        "memory_share": share,
        "met": statistics.median(ratios) >= MIN_SPEEDUP and share <= MAX_MEMORY_SHARE,
    }


# --- output -----------------------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> list[str]:
    """Lines: seconds, peak and ratios of every trainer, then where the time goes."""
    lines = [
        f"{results['machine']}, {results['threads']} threads; torch {results['torch']}",
        f"PPO, SmolLM2-135M float32, LoRA r {LORA_RANK}: {results['episodes']} episodes of "
        f"{results['new_tokens']} new tokens on prompts of {PROMPT_TOKENS}",
        f"({results['template']} template), {EPOCHS} epochs of {MINIBATCHES} steps; "
        f"{results['rounds']} rounds",
        "",
        f"{'':<26}{'s/update':>10}{'peak MB':>10}{'speed':>8}{'min':>7}{'max':>7}{'memory':>9}",
    ]
    for row in results["trainers"]:
        line = f"{row['trainer']:<26}{row['median_s']:>10.1f}{row['peak_bytes'] / 1e6:>10.0f}"
        if "speedup" in row:
            line += "".join(
                f"{row[key]:>{width}.2f}"
                for key, width in (("speedup", 8), ("speedup_min", 7), ("speedup_max", 7))
            )
            line += f"{row['memory_share']:>9.2f}  {'met' if row['met'] else 'NOT met'}"
        lines.append(line)
    lines.append(
        f"speed: TRL's seconds / homeostat's, at least {MIN_SPEEDUP:g}; memory: homeostat's peak / "
        f"TRL's, at most {MAX_MEMORY_SHARE:g}"
    )
    lines += ["", "Where the time goes, median s"]
    for row in results["trainers"]:
        stages = "   ".join(f"{stage} {s:.1f}" for stage, s in row["stages_s"].items())
        lines.append(f"{row['trainer']:<26}{stages}")
    return lines


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", required=True, help="Python of the environment with TRL")
    parser.add_argument(
        "--trl-critic", nargs="*", choices=tuple(TRL), default=list(TRL), help="which to measure"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=3, help="updates after the warm-up")
    parser.add_argument("--episodes", type=int, default=16, help="per update, a multiple of 4")
    parser.add_argument("--new-tokens", type=int, default=48, help="of every reply")
    parser.add_argument("--template", choices=("chat", "bare"), default="chat")
    options = parser.parse_args()
    if options.repeats < 1 or options.episodes % MINIBATCHES:
        parser.error(f"--repeats must be at least 1, --episodes a multiple of {MINIBATCHES}.")
    return options


def main() -> None:
    """Measure, and print a table or one JSON object."""
    options = parse_options()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            results = measure(options)
    except HomeostatError as error:
        sys.exit(str(error))
    results |= {
        "template": options.template,
        "episodes": options.episodes,
        "new_tokens": options.new_tokens,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "min_speedup": MIN_SPEEDUP,
        "max_memory_share": MAX_MEMORY_SHARE,
    }
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
