"""Measures what all signals cost on top of bare forward passes: time, and peak memory.

python scripts/bench_trace.py [--json] [--repeats 7] [--conversations 16]
                              [--device auto|cpu|cuda] [--skip-time] [--skip-memory]

Time: the embedded model in float32 reads conversations of two user and two assistant turns, made of
the packaged corpus, in the batches that `homeostat.signals.trace.trace` makes. One pass is the
reference alone, two passes are the policy (an adapter with random weights) and the reference. Three
bare forward passes over the same tokens are the baselines:

    full logits           the causal language model called as it is
    trunk only            the same without its unembedding: no logits at all
    trunk, shared prefix  the trunk as `trace` runs it, the tokens that all rows share read once

Each round runs every pass once, in alternating order, and gives one ratio of signals to bare, so
that load on the machine meets both. `trace` is timed as a whole, with the chat template and the
tokenizer; the baselines get ready batches. The signals' own formulas on its result are not timed.

Memory: a random model with a large vocabulary reads one batch; each call has a process of its own.
What it needs beyond the bare trunk is compared with what all logits of the batch would take.
Resident memory on a CPU (Linux; elsewhere only an approximation), allocated memory on CUDA.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from bench_calls import (
    Call,
    full_logits,
    run_config,
    shared_trunk,
    stir_adapter,
    time_rounds,
    trunk_only,
    without_adapter,
)
from bench_trace_memory import measure_memory, memory_table, verdict_of

from homeostat.config.register import build
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.forward import READ_TOKENS, batches_by_length, shared_prefix
from homeostat.models.hooks import layers_at
from homeostat.models.load import BaseModel
from homeostat.models.placement import resolve_device
from homeostat.signals.probing.corpus import load_corpus
from homeostat.signals.trace import trace
from homeostat.types import Conversation, TokenBatch, TokenStream, Turn

MAX_TIME_RATIO = 1.10


def corpus_conversations(policy: Policy, count: int) -> list[Conversation]:
    """Conversations of two user and two assistant turns, evenly spread over the corpus' authors.

    Each is made of two exchanges of one author; the assistant's turns count as sampled.
    """
    replies = [u for u in load_corpus(None, list(AFFECTS)).utterances if u.conversation.turns[1:]]
    pairs = [(one, two) for one, two in pairwise(replies) if one.group == two.group]
    spread = [pairs[i * len(pairs) // count] for i in range(count)]
    return [
        Conversation(
            tuple(
                Turn(turn.role, turn.text, _sampled_ids(policy, turn))
                for utterance in pair
                for turn in utterance.conversation.turns[:2]
            )
        )
        for pair in spread
    ]


def _sampled_ids(policy: Policy, turn: Turn) -> tuple[int, ...] | None:
    if turn.role != "assistant":
        return None
    ids = policy.tokenizer(turn.text, add_special_tokens=False)["input_ids"]
    return (*ids, policy.eos_ids[0])


def bare_batches(
    policy: Policy, streams: Sequence[TokenStream], share: bool = False
) -> list[TokenBatch]:
    """The batches that `trace` makes; with their common prefix apart only where ``share``."""
    parts = batches_by_length([len(stream.ids) for stream in streams], READ_TOKENS)
    rows = [[streams[i] for i in part] for part in parts]
    return [
        pad(part, policy.pad_id, policy.device, shared=shared_prefix(part) if share else 0)
        for part in rows
    ]


def calls_to_time(
    policy: Policy, config: RunConfig, talks: Sequence[Conversation]
) -> dict[tuple[str, bool], Call]:
    """What is timed, by its name and whether the adapter is on."""
    streams = [policy.encode(talk) for talk in talks]
    padded, shared = bare_batches(policy, streams), bare_batches(policy, streams, share=True)
    calls: dict[str, Call] = {
        "full logits": functools.partial(full_logits, policy, padded),
        "trunk only": functools.partial(trunk_only, policy, padded),
        "trunk, shared prefix": functools.partial(shared_trunk, policy, shared),
    }
    assert config.signals.intrinsic is not None
    assert config.signals.affect is not None
    calls["all signals"] = functools.partial(
        trace,
        policy,
        talks,
        layers_at(config.signals.intrinsic.norm_layers, policy.num_layers),
        layers_at(config.signals.affect.layers, policy.num_layers),
        max_tokens=READ_TOKENS,
    )
    return {
        (name, on): call if on else functools.partial(without_adapter, policy, call)
        for name, call in calls.items()
        for on in (False, True)
    }


def measure_time(device: torch.device, conversations: int, repeats: int) -> dict[str, Any]:
    """Seconds of bare passes and of all signals, and their ratios, JSON-ready."""
    config = run_config()
    base = build(config.model, BaseModel, device=device, dtype=torch.float32)
    policy = Policy(base, config.lora, config.seed)
    stir_adapter(policy)
    talks = corpus_conversations(policy, conversations)
    seconds = time_rounds(calls_to_time(policy, config, talks), repeats, device)
    streams = [policy.encode(talk) for talk in talks]
    tokens = sum(len(stream.ids) for stream in streams)
    compared = compare(seconds)
    return {
        "model": config.model.name,
        "dtype": "float32",
        "conversations": conversations,
        "tokens": tokens,
        "response_tokens": sum(sum(stream.response) for stream in streams),
        "rounds": repeats,
        "max_ratio": MAX_TIME_RATIO,
        "passes": [
            {**row, "tokens_per_s": tokens / row["median_s"]} for row in compared.pop("passes")
        ],
        **compared,
    }


def compare(seconds: Mapping[tuple[str, bool], list[float]]) -> dict[str, Any]:
    """Medians of every pass, and the per-round ratios of all signals to each baseline.

    Two bare passes are the one with the adapter on and the one with it off, of the same round.
    """
    rows: dict[str, list[dict[str, Any]]] = {"passes": [], "ratios": []}
    for passes in (1, 2):
        signals = seconds["all signals", passes == 2]
        for name in dict.fromkeys(name for name, _ in seconds):
            off, on = seconds[name, False], seconds[name, True]
            if name == "all signals":
                spent = signals
            else:
                spent = off if passes == 1 else [a + b for a, b in zip(off, on, strict=True)]
                ratios = [s / bare for s, bare in zip(signals, spent, strict=True)]
                rows["ratios"].append({"passes": passes, "baseline": name, **_spread(ratios)})
            rows["passes"].append(
                {
                    "pass": name,
                    "passes": passes,
                    "median_s": statistics.median(spent),
                    "seconds": spent,
                }
            )
    return rows


def _spread(ratios: Sequence[float]) -> dict[str, Any]:
    median = statistics.median(ratios)
    return {
        "ratio": median,
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "met": median <= MAX_TIME_RATIO,
    }


def time_table(results: Mapping[str, Any]) -> list[str]:
    """Lines: seconds and tokens per second of each pass, then ratios and whether they are met."""
    lines = [
        f"Time: {results['model']}, {results['dtype']}, {results['conversations']} conversations, "
        f"{results['tokens']:,} tokens, {results['response_tokens']:,} of them responses, "
        f"{results['rounds']} rounds",
        f"{'':<38}{'median s':>10}{'tokens/s':>10}",
    ]
    for row in results["passes"]:
        name = row["pass"] if row["pass"] == "all signals" else f"bare, {row['pass']}"
        label = f"{name}, {_count(row['passes'])}"
        lines.append(f"{label:<38}{row['median_s']:>10.3f}{row['tokens_per_s']:>10.0f}")
    target = f"at most {results['max_ratio']:.2f}"
    lines += ["", f"{'all signals / bare':<38}{'ratio':>10}{'min':>8}{'max':>8}   {target}"]
    for row in results["ratios"]:
        label = f"{row['baseline']}, {_count(row['passes'])}"
        ratios = f"{row['ratio']:>10.3f}{row['ratio_min']:>8.3f}{row['ratio_max']:>8.3f}"
        lines.append(f"{label:<38}{ratios}   {verdict_of(row)}")
    return lines


def _count(passes: int) -> str:
    return "one pass" if passes == 1 else "two passes"


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--repeats", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--conversations", type=int, default=16, help="how many are read")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--skip-time", action="store_true", help="measure memory only")
    parser.add_argument("--skip-memory", action="store_true", help="measure time only")
    options = parser.parse_args()
    if min(options.repeats, options.conversations) < 1:
        parser.error("--repeats and --conversations must be at least 1.")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, JSON-ready."""
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = resolve_device(name)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if name == "cuda" else name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if not options.skip_memory:
        results["memory"] = measure_memory(device)
    if not options.skip_time:
        results["time"] = measure_time(device, options.conversations, options.repeats)
    return results


def main() -> None:
    """Measure, and print tables or one JSON object."""
    options = parse_options()
    try:
        results = measure(options)
    except HomeostatError as error:
        sys.exit(str(error))
    if options.json:
        print(json.dumps(results))
        return
    print(f"{results['device']}, {results['threads']} threads, torch {results['torch']}")
    for part, table in (("time", time_table), ("memory", memory_table)):
        if part in results:
            print("", *table(results[part]), sep="\n")


if __name__ == "__main__":
    main()
