"""The memory half of bench_trace: what the signals need beyond the bare trunk at their peak."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from bench_calls import full_logits, stir_adapter, trunk_only
from transformers import LlamaConfig, LlamaForCausalLM

from homeostat.config.model import ModelConfig
from homeostat.config.register import config_part
from homeostat.models.adapters import Policy
from homeostat.models.chat import pad
from homeostat.models.load import finish
from homeostat.models.tiny import byte_tokenizer
from homeostat.signals.trace import trace
from homeostat.types import Conversation, Trace, Turn

MAX_MEMORY_SHARE = 0.15

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
        lines.append(f"{label:<38}{numbers}   {verdict_of(row)}")
    return lines


def verdict_of(row: Mapping[str, Any]) -> str:
    """Whether a row keeps to its target, for a table."""
    return "met" if row["met"] else "NOT met"
