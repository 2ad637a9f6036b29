"""Measures how fast replies are sampled, beside a bare `model.generate` of the same model.

python scripts/bench_generate.py [--json] [--repeats 5] [--batch 32]
                                 [--new-tokens 48] [--template chat|bare] [--device cpu]

Both get the embedded model in float32, the same batch of prompts (50 tokens each, with the chat
template around them) and the same number of new tokens, which no end-of-turn token shortens; both
sample at temperature 1 from the whole vocabulary. The LoRA (rank 16, all linear layers) is on in
both, with small random weights. What is timed:

    homeostat   a new `Sampler` reads the prompts and samples replies, as `play` does for a turn
    bare        `generate` of the model inside the adapter, on a ready batch without padding
    bare, no adapter    the same with the LoRA off, for comparison only

homeostat reads what all prompts begin with once (27 tokens of the system prompt); `--template bare`
leaves the system prompt out and makes up for it with words, so that nothing is shared.

Each round runs all in alternating order and gives one ratio, so that load on the machine meets all.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bench_calls import (
    Call,
    Talkative,
    generate,
    run_config,
    sample,
    stir_adapter,
    time_rounds,
    without_adapter,
)
from bench_trl import BARE_TEMPLATE, WORDS, prompt_ids
from bench_trl_task import LORA_ALPHA, LORA_RANK, PROMPT_TOKENS

from homeostat.config.register import build, config_part
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.load import BaseModel
from homeostat.models.placement import resolve_device

OURS, BARE, PLAIN = "homeostat", "model.generate", "model.generate, no adapter"
MIN_SHARE = 1.5


def make_policy(device: torch.device, template: str) -> Policy:
    """The embedded model with a LoRA that changes what it says."""
    base = build(run_config().model, BaseModel, device=device, dtype=torch.float32)
    if template == "bare":
        base.tokenizer.chat_template = BARE_TEMPLATE
    policy = Talkative(base, config_part("lora", rank=LORA_RANK, alpha=LORA_ALPHA), seed=0)
    stir_adapter(policy)
    return policy


def make_prompts(policy: Policy, count: int) -> list[list[int]]:
    """Prompts of equal length that differ from the user's first word on."""
    chance, prompts = random.Random(0), []
    for _ in range(count):
        text = chance.choice(WORDS)
        while len(ids := prompt_ids(policy.tokenizer, text)) < PROMPT_TOKENS:
            text += f" {chance.choice(WORDS)}"
        prompts.append(ids)
    return prompts


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each, and the ratios of the rounds, JSON-ready."""
    device = resolve_device(options.device)
    policy = make_policy(device, options.template)
    prompts = make_prompts(policy, options.batch)
    ready = torch.tensor(prompts, device=device)
    bare = functools.partial(generate, policy, ready, options.new_tokens)
    calls: dict[str, Call] = {
        OURS: functools.partial(sample, policy, prompts, options.new_tokens),
        BARE: bare,
        PLAIN: functools.partial(without_adapter, policy, bare),
    }
    seconds = time_rounds(calls, options.repeats, device)
    rows = compare(seconds, options.batch * options.new_tokens)
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": options.batch,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": options.new_tokens,
        "template": options.template,
        "rounds": options.repeats,
        "min_share": MIN_SHARE,
        "met": rows[1]["homeostat_share"] >= MIN_SHARE,
        "samplers": rows,
    }


def compare(seconds: Mapping[str, Sequence[float]], tokens: int) -> list[dict[str, Any]]:
    """One row for each sampler: its speed, and homeostat's as a share of it, round by round."""
    rows = []
    for name, spent in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(spent, seconds[OURS], strict=True)]
        rows.append(
            {
                "sampled_by": name,
                "seconds": spent,
                "tokens_per_s": tokens / statistics.median(spent),
                "homeostat_share": statistics.median(ratios),
                "homeostat_share_min": min(ratios),
                "homeostat_share_max": max(ratios),
            }
        )
    return rows


def table(results: dict[str, Any]) -> list[str]:
    """Lines: tokens per second of each, and homeostat's share of the others'."""
    lines = [
        f"{results['device']}, {results['threads']} threads, torch {results['torch']}; "
        f"{results['batch']} replies of {results['new_tokens']} tokens to prompts of "
        f"{results['prompt_tokens']} ({results['template']} template), {results['rounds']} rounds",
        f"{'':<30}{'tokens/s':>10}{'homeostat / it':>16}{'min':>7}{'max':>7}",
    ]
    for row in results["samplers"]:
        lines.append(
            f"{row['sampled_by']:<30}{row['tokens_per_s']:>10.0f}{row['homeostat_share']:>16.2f}"
            f"{row['homeostat_share_min']:>7.2f}{row['homeostat_share_max']:>7.2f}"
        )
    verdict = "met" if results["met"] else "NOT met"
    return [*lines, f"at least {results['min_share']} of {BARE}: {verdict}"]


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--batch", type=int, default=32, help="prompts")
    parser.add_argument("--new-tokens", type=int, default=48, help="of every reply")
    parser.add_argument("--template", choices=("chat", "bare"), default="chat")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if min(options.repeats, options.batch, options.new_tokens) < 1:
        parser.error("--repeats, --batch and --new-tokens must be at least 1.")
    return options


def main() -> None:
    """Measure, and print a table or one JSON object."""
    options = parse_options()
    try:
        results = measure(options)
    except HomeostatError as error:
        sys.exit(str(error))
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
