"""Measures homeostat's PPO or GRPO beside TRL's: seconds per update, peak memory, and where.

python scripts/bench_trl.py --trl-python trl/bin/python [--trainer ppo|grpo] [--json] [--repeats 3]
                            [--dtype float32|bfloat16|auto] [--trl-dtype float32|bfloat16]
                            [--template chat|bare] [--episodes N] [--new-tokens 48]

TRL gets a virtual environment of its own:

    python3.11 -m venv trl && trl/bin/pip install "torch==2.13.0" "trl==1.12.*" peft

The task, the same for both: the embedded SmolLM2-135M on the CPU, LoRA of rank 16 on all linear
layers of all blocks, replies of 48 new tokens to prompts of 50, sampled at temperature 1 and never
ended earlier. Both read the weights and, token by token, the prompts from one folder.

    ppo     16 episodes, each with a prompt of its own; 2 epochs of 4 optimiser steps on 4 each
    grpo    32 episodes, 8 to a prompt; one epoch of one optimiser step

Each trainer has a process of its own that waits while another one works. Each makes one update to
warm up, then `--repeats` rounds let each make one, in alternating order. A round gives one ratio,
so that load on the machine meets all of them. Peak memory is the process's peak resident memory
over its life, loading included (Linux).

homeostat: its defaults, with PPO a critic on the policy's own trunk, all intrinsic signals
measured, a set point on one of them; no probes, since TRL has nothing like them. Every episode ends
with a user's turn of a few tokens, which homeostat reads and TRL does not have. The chat template
opens every prompt with the same 27 tokens, as it does in a run; homeostat reads them once per
batch, TRL once per row. `--template bare` leaves the system prompt out and makes up for it with
words: then nothing is shared. Micro-batches are as many tokens as its default allows.

TRL's PPO, in what its API offers for the task, chosen for speed where there was a choice:

    policy        peft_config, so that its reference is the policy without the adapter, no copy
    value model   the classifier of the same weights that PPOTrainer asks for; its backbone is
                  trained whole, as in TRL's example (`full`), or has a LoRA like the policy's on a
                  frozen base (`lora`), which its documentation does not mention but its API allows
    reward model  the same classifier, frozen; its share of the time is told apart
    batches       rollouts of 16; minibatches of 4 in one piece, no accumulation, so that it makes
                  as many optimiser steps as homeostat; no gradient checkpointing
    off           sample generations, checkpoints, reporting

TRL's GRPO: a price of KL as homeostat has one, which takes a pass of the reference; all episodes in
one piece; its reward is a function of the first token, which costs nothing.

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
from bench_trl_task import LORA_RANK, PROMPT_TOKENS, Task

from homeostat.config.register import build
from homeostat.errors import HomeostatError
from homeostat.models.chat import encode
from homeostat.models.load import BaseModel
from homeostat.models.template import chat_template
from homeostat.types import Conversation, Turn

OURS = "homeostat"
TRL = {
    "ppo": {"full": "TRL, value model whole", "lora": "TRL, value model LoRA"},
    "grpo": {"": "TRL"},
}
# What is to be reached: TRL's seconds / homeostat's, and homeostat's peak / TRL's.
BARS = {"ppo": (3.0, 0.35), "grpo": (5.0, 0.3)}
SIZES = {
    "ppo": {"episodes": 16, "epochs": 2, "minibatches": 4, "group": 1},
    "grpo": {"episodes": 32, "epochs": 1, "minibatches": 1, "group": 8},
}
BARE_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Each is one token of SmolLM2's vocabulary, with the space before it.
WORDS = ("river", "house", "table", "music", "water", "light", "stone", "garden", "bread")


# --- the task ---------------------------------------------------------------------------------


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Leave the model, its tokenizer and both sides' task in ``folder``."""
    base = build(run_config().model, BaseModel, device=torch.device("cpu"), dtype=torch.float32)
    if options.template == "bare":
        base.tokenizer.chat_template = BARE_TEMPLATE
    base.model.save_pretrained(folder / "model")
    base.tokenizer.save_pretrained(folder / "model")
    sizes = SIZES[options.trainer] | {"episodes": options.episodes}
    chance = random.Random(0)
    texts, prompts = [], []
    for _ in range((options.repeats + 1) * options.episodes // sizes["group"]):
        text = chance.choice(WORDS)
        while len(ids := prompt_ids(base.tokenizer, text)) < PROMPT_TOKENS:
            text += f" {chance.choice(WORDS)}"
        assert len(ids) == PROMPT_TOKENS
        texts.append(text)
        prompts.append(ids)
    for side, dtype in (("homeostat", options.dtype), ("trl", options.trl_dtype)):
        task = Task(
            model=str(folder / "model"),
            trainer=options.trainer,
            dtype=dtype,
            new_tokens=options.new_tokens,
            texts=texts,
            prompts=prompts,
            **sizes,
        )
        task.write(folder / f"{side}.json")


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


def start(folder: Path, options: argparse.Namespace) -> dict[str, Arm]:
    """All trainers by name; each loads its models and waits."""
    here, trainer = Path(__file__).parent, options.trainer
    ours = [sys.executable, str(here / "bench_trl_homeostat.py"), str(folder / "homeostat.json")]
    theirs = [options.trl_python, str(here / f"bench_trl_{trainer}.py"), str(folder / "trl.json")]
    commands = {OURS: ours}
    for critic in options.trl_critic if trainer == "ppo" else TRL[trainer]:
        commands[TRL[trainer][critic]] = [*theirs, str(folder), critic]
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
        arms = start(folder, options)
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
    rows = [summed_up(name, measured, options.trainer) for name in arms]
    return {"rounds": options.repeats, "trainers": rows}


def summed_up(
    name: str, reports: Mapping[str, Sequence[Mapping[str, Any]]], trainer: str
) -> dict[str, Any]:
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
    scored = [theirs["stages"].get("reward model", 0.0) for theirs in updates]
    min_speedup, max_memory_share = BARS[trainer]
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
        "met": statistics.median(ratios) >= min_speedup and share <= max_memory_share,
    }


# --- output -----------------------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> list[str]:
    """Lines: seconds, peak and ratios of every trainer, then where the time goes."""
    lines = [
        f"{results['machine']}, {results['threads']} threads; torch {results['torch']}",
        f"{results['trainer']}, SmolLM2-135M, homeostat {results['dtype']}, TRL "
        f"{results['trl_dtype']}, LoRA r {LORA_RANK}: {results['episodes']} episodes of "
        f"{results['new_tokens']} new tokens on prompts of {PROMPT_TOKENS}",
        f"({results['template']} template), {results['epochs']} epochs of "
        f"{results['minibatches']} steps; {results['rounds']} rounds",
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
        f"speed: TRL's seconds / homeostat's, at least {results['min_speedup']:g}; memory: "
        f"homeostat's peak / TRL's, at most {results['max_memory_share']:g}"
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
    parser.add_argument("--trainer", choices=tuple(BARS), default="ppo")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--trl-dtype", choices=("float32", "bfloat16"), default="float32")
    critics = tuple(TRL["ppo"])
    parser.add_argument(
        "--trl-critic", nargs="*", choices=critics, default=list(critics), help="which to measure"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=3, help="updates after the warm-up")
    parser.add_argument("--episodes", type=int, help="per update, a multiple of the task's own")
    parser.add_argument("--new-tokens", type=int, default=48, help="of every reply")
    parser.add_argument("--template", choices=("chat", "bare"), default="chat")
    options = parser.parse_args()
    sizes = SIZES[options.trainer]
    options.episodes = options.episodes or sizes["episodes"]
    multiple = max(sizes["minibatches"], sizes["group"])
    if options.repeats < 1 or options.episodes % multiple:
        parser.error(f"--repeats must be at least 1, --episodes a multiple of {multiple}.")
    return options


def main() -> None:
    """Measure, and print a table or one JSON object."""
    options = parse_options()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            results = measure(options)
    except HomeostatError as error:
        sys.exit(str(error))
    min_speedup, max_memory_share = BARS[options.trainer]
    results |= SIZES[options.trainer] | {
        "trainer": options.trainer,
        "dtype": options.dtype,
        "trl_dtype": options.trl_dtype,
        "template": options.template,
        "episodes": options.episodes,
        "new_tokens": options.new_tokens,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "min_speedup": min_speedup,
        "max_memory_share": max_memory_share,
    }
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
