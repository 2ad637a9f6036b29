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
import gc
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from homeostat.config.model import ModelConfig
from homeostat.config.register import build, compose_run, config_part
from homeostat.config.run import RunConfig
from homeostat.config.signals import AFFECTS
from homeostat.errors import HomeostatError
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.forward import (
    READ_TOKENS,
    batches_by_length,
    forward,
    read_prefix,
    shared_prefix,
)
from homeostat.models.hooks import layers_at
from homeostat.models.load import BaseModel, finish, resolve_device
from homeostat.models.tiny import byte_tokenizer
from homeostat.signals.probing.corpus import load_corpus
from homeostat.signals.trace import trace
from homeostat.types import Conversation, TokenBatch, TokenStream, Trace, Turn

MODEL = "smollm2_135m"
MAX_TIME_RATIO = 1.10
MAX_MEMORY_SHARE = 0.15
ADAPTER_STD = 0.02

ROWS, WIDTH, VOCABULARY = 16, 512, 150_000
LOGITS_BYTES = ROWS * WIDTH * VOCABULARY * 4
RESPONSES = {"half": WIDTH // 2, "all but 16": WIDTH - 16}  # response tokens of each row
# Two template tokens, so that nearly the whole width can be responses.
SHORT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
TRUNK, LOGITS, ONE_PASS, TWO_PASSES = (
    "bare trunk",
    "bare, full logits",
    "all signals, one pass",
    "all signals, two passes",
)

Call = Callable[[], object]


# --- bare forward passes ----------------------------------------------------------------------


@torch.no_grad()
def full_logits(policy: Policy, batches: Iterable[TokenBatch]) -> None:
    """The causal language model as it is, its logits thrown away."""
    causal = policy.model.get_base_model()
    for batch in batches:
        causal(batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)


@torch.no_grad()
def trunk_only(policy: Policy, batches: Iterable[TokenBatch]) -> None:
    """The model without its unembedding, its hidden states thrown away."""
    for batch in batches:
        policy.trunk(batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)


@torch.no_grad()
def shared_trunk(policy: Policy, batches: Iterable[TokenBatch]) -> None:
    """The trunk as `trace` runs it: what all rows of a batch begin with is read once."""
    for batch in batches:
        forward(policy, batch, read_prefix(policy, batch))


def stir_adapter(policy: Policy) -> None:
    """Small random weights where a fresh adapter has zeros, so that it changes the policy."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(ADAPTER_STD * torch.randn(weight.shape, generator=generator))


# --- time -------------------------------------------------------------------------------------


def run_config() -> RunConfig:
    """The run config with the embedded model in float32, as the command line composes it."""
    config = OmegaConf.to_object(compose_run(f"model={MODEL}", "dtype=float32"))
    assert isinstance(config, RunConfig)
    return config


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
    bare: dict[str, Call] = {
        "full logits": functools.partial(full_logits, policy, padded),
        "trunk only": functools.partial(trunk_only, policy, padded),
        "trunk, shared prefix": functools.partial(shared_trunk, policy, shared),
    }
    assert config.signals.intrinsic is not None
    assert config.signals.affect is not None
    signals = functools.partial(
        trace,
        policy,
        talks,
        layers_at(config.signals.intrinsic.norm_layers, policy.num_layers),
        layers_at(config.signals.affect.layers, policy.num_layers),
        max_tokens=READ_TOKENS,
    )
    calls = {(name, on): call for name, call in bare.items() for on in (False, True)}
    return {**calls, ("all signals", False): signals, ("all signals", True): signals}


def time_rounds(
    policy: Policy, calls: Mapping[tuple[str, bool], Call], repeats: int
) -> dict[tuple[str, bool], list[float]]:
    """Seconds of every call in every round after one warm-up, in alternating order."""
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in calls}
    for number in range(repeats + 1):
        print(f"round {number} of {repeats}" if number else "warm-up", file=sys.stderr)
        for name, adapter_on in list(calls)[:: 1 if number % 2 else -1]:
            with nullcontext() if adapter_on else policy.reference():
                spent = seconds_of(calls[name, adapter_on], policy.device)
            if number:
                seconds[name, adapter_on].append(spent)
    return seconds


def seconds_of(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, until the device has finished."""
    _finish_work(device)
    started = time.perf_counter()
    call()
    _finish_work(device)
    return time.perf_counter() - started


def _finish_work(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_time(device: torch.device, conversations: int, repeats: int) -> dict[str, Any]:
    """Seconds of bare passes and of all signals, and their ratios, JSON-ready."""
    config = run_config()
    base = build(config.model, BaseModel, device=device, dtype=torch.float32)
    policy = Policy(base, config.lora, config.seed)
    stir_adapter(policy)
    talks = corpus_conversations(policy, conversations)
    seconds = time_rounds(policy, calls_to_time(policy, config, talks), repeats)
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


# --- memory -----------------------------------------------------------------------------------


def large_vocabulary_policy(device: torch.device) -> Policy:
    """A small random Llama with a large vocabulary, an adapter and the byte tokenizer."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = SHORT_TEMPLATE
    architecture = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config = ModelConfig(_target_="", name="large_vocabulary")
    base = finish(LlamaForCausalLM(architecture), tokenizer, config, device)
    policy = Policy(base, config_part("lora"), seed=0)
    stir_adapter(policy)
    return policy


def random_conversations(rows: int, width: int, responses: int) -> list[Conversation]:
    """Conversations of exactly ``width`` tokens, of which the last ``responses`` are sampled."""
    generator = torch.Generator().manual_seed(0)
    replies = torch.randint(VOCABULARY, (rows, responses), generator=generator).tolist()
    user = Turn("user", "a" * (width - responses - 2))
    return [Conversation((user, Turn("assistant", "", tuple(reply)))) for reply in replies]


def run_pass(name: str, policy: Policy, talks: Sequence[Conversation]) -> list[Trace] | None:
    """One of the passes whose memory is compared, over one batch."""
    if name in (ONE_PASS, TWO_PASSES):
        layers = range(policy.num_layers)
        with policy.reference() if name == ONE_PASS else nullcontext():
            return trace(policy, talks, layers, layers, max_tokens=ROWS * WIDTH)
    batch = pad([policy.encode(talk) for talk in talks], policy.pad_id, policy.device)
    with policy.reference():
        (full_logits if name == LOGITS else trunk_only)(policy, [batch])
    return None


def added_peak(name: str, responses: int, device_name: str) -> int:
    """Bytes that a pass needs at its peak beyond what was in use before it, in this process."""
    device = torch.device(device_name)
    policy = large_vocabulary_policy(device)
    run_pass(name, policy, random_conversations(2, 32, 16))  # what is loaded on first use
    talks = random_conversations(ROWS, WIDTH, responses)
    assert all(len(policy.encode(talk).ids) == WIDTH for talk in talks)
    gc.collect()
    reset_peak(device)
    before = peak_bytes(device)
    run_pass(name, policy, talks)
    return peak_bytes(device) - before


def reset_peak(device: torch.device) -> None:
    """Let the peak begin anew at what is in use now; Linux and CUDA can do that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak of the memory in use since `reset_peak`, bytes.

    On Linux it is read from /proc: a process that was started by a larger one inherits the larger
    one's ``ru_maxrss``, which would hide everything below it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).exists():
        lines = status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_memory(device: torch.device) -> dict[str, Any]:
    """Peaks of every pass, and what the signals add to the bare trunk, JSON-ready."""
    half = RESPONSES["half"]
    trunk, logits = (fresh_peak(name, half, device) for name in (TRUNK, LOGITS))
    rows = []
    for label, responses in RESPONSES.items():
        for name in (ONE_PASS, TWO_PASSES):
            peak = fresh_peak(name, responses, device)
            added = peak - trunk
            rows.append(
                {
                    "pass": name,
                    "responses": label,
                    "response_tokens": ROWS * responses,
                    "peak_bytes": peak,
                    "added_bytes": added,
                    "share_of_logits": added / LOGITS_BYTES,
                    "share_of_measured_logits": added / (logits - trunk),
                    "met": added < MAX_MEMORY_SHARE * LOGITS_BYTES,
                }
            )
    return {
        "rows": ROWS,
        "width": WIDTH,
        "vocabulary": VOCABULARY,
        "logits_bytes": LOGITS_BYTES,
        "max_share": MAX_MEMORY_SHARE,
        "trunk_peak_bytes": trunk,
        "full_logits_peak_bytes": logits,
        "signals": rows,
    }


def fresh_peak(name: str, responses: int, device: torch.device) -> int:
    """`added_peak` in a process of its own."""
    print(f"memory: {name}, {responses} response tokens per row", file=sys.stderr)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(added_peak, name, responses, str(device)).result()


# --- output -----------------------------------------------------------------------------------


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
        lines.append(f"{label:<38}{ratios}   {_verdict(row)}")
    return lines


def memory_table(results: Mapping[str, Any]) -> list[str]:
    """Lines: bytes and shares of each pass, and whether the target is met."""
    size = f"{results['rows']} x {results['width']} tokens, vocabulary {results['vocabulary']:,}"
    heads = ("peak bytes", "beyond trunk", "of logits", "of measured")
    lines = [
        f"Memory: {size}; all logits take {results['logits_bytes']:,} bytes",
        f"{'':<38}{''.join(f'{head:>15}' for head in heads)}   under {results['max_share']:.0%}",
        f"{TRUNK:<38}{results['trunk_peak_bytes']:>15,}",
    ]
    beyond = results["full_logits_peak_bytes"] - results["trunk_peak_bytes"]
    share = f"{beyond / results['logits_bytes']:>15.1%}"
    lines.append(f"{LOGITS:<38}{results['full_logits_peak_bytes']:>15,}{beyond:>15,}{share}")
    for row in results["signals"]:
        label = f"{row['pass']}, {row['responses']}"
        shares = f"{row['share_of_logits']:>15.1%}{row['share_of_measured_logits']:>15.1%}"
        numbers = f"{row['peak_bytes']:>15,}{row['added_bytes']:>15,}{shares}"
        lines.append(f"{label:<38}{numbers}   {_verdict(row)}")
    return lines


def _count(passes: int) -> str:
    return "one pass" if passes == 1 else "two passes"


def _verdict(row: Mapping[str, Any]) -> str:
    return "met" if row["met"] else "NOT met"


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
