"""Times sampling and updates in bfloat16 with attention in bfloat16 and in float32, on this CPU.

python scripts/bench_attention.py [--json] [--repeats 3]

The embedded model with a LoRA on all linear layers, random tokens. `sampling` is 48 new tokens of
each row after its prompt, `update` a pass forward and backward. Both arms alternate in one process
after a round that warms up; medians of rounds and their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from bench_calls import Talkative, run_config, sample, stir_adapter, time_rounds
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from homeostat.config.register import build
from homeostat.models.adapters import Policy
from homeostat.models.attention import NAME, attend_in_float32
from homeostat.models.load import BaseModel
from homeostat.types import TokenBlock

ARMS = {"bfloat16": sdpa_attention_forward, "float32": attend_in_float32}
CPU = torch.device("cpu")
NEW_TOKENS = 48
# What is done, with how many rows of how many tokens.
SIZES = (
    *(("sampling", rows, tokens) for rows in (12, 48) for tokens in (60, 250)),
    *(("update", rows, tokens) for rows, tokens in ((8, 74), (16, 74), (3, 400))),
)


def work(policy: Policy, what: str, rows: int, tokens: int, attention: str) -> None:
    """Sample or update once under one of the two."""
    AttentionInterface.register(NAME, ARMS[attention])
    ids = torch.randint(100, 40_000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    if what == "sampling":
        sample(policy, ids.tolist(), NEW_TOKENS)
        return
    mask = torch.ones_like(ids)
    block = TokenBlock(ids, mask, mask.cumsum(dim=1) - 1)
    policy.hidden(block).float().square().mean().backward()
    policy.model.zero_grad()


def compare(policy: Policy, size: tuple[str, int, int], repeats: int) -> dict[str, Any]:
    """Seconds of both arms and their ratio by round."""
    calls = {arm: partial(work, policy, *size, arm) for arm in ARMS}
    slow, fast = time_rounds(calls, repeats, CPU).values()
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        **dict(zip(("work", "rows", "tokens"), size, strict=True)),
        "seconds": {"bfloat16": statistics.median(slow), "float32": statistics.median(fast)},
        "faster": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each size."""
    lines = [f"{'work':<10}{'rows':>6}{'tokens':>8}{'bfloat16, s':>13}{'float32, s':>12}  faster"]
    for row in rows:
        slow, fast = row["seconds"].values()
        low, high = row["range"]
        lines.append(
            f"{row['work']:<10}{row['rows']:>6}{row['tokens']:>8}{slow:>13.2f}{fast:>12.2f}  "
            f"{row['faster']:.2f} ({low:.2f} to {high:.2f})"
        )
    return lines


def main() -> None:
    """Measure, and print a table or one JSON array."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each size")
    options = parser.parse_args()
    config = run_config()
    base = build(config.model, BaseModel, device=CPU, dtype=torch.bfloat16)
    policy = Talkative(base, config.lora, config.seed)
    stir_adapter(policy)
    rows = [compare(policy, size, options.repeats) for size in SIZES]
    print(json.dumps(rows) if options.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
