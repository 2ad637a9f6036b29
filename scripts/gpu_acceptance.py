"""Whether homeostat does on a GPU what it says, in one command and at most nine minutes.

python scripts/gpu_acceptance.py [--minutes 9] [--json PATH]
python scripts/gpu_acceptance.py --device cpu --tiny        # every part that a CPU can run, shrunk

Nothing is downloaded. The parts, in the order in which they decide:

    learning   PPO and GRPO bring a tiny model's entropy to a set point, in float32 and bfloat16
    12 GB      an update and a step of healing on random weights in the shapes of four models, under
               a cap of 12 GB: peak against the memory plan, seconds
    resume     two updates in one go against one, a checkpoint, and one
    4-bit      an update on weights in 4 bits
    sampling   tokens per second beside `generate` of transformers, with its two caches
    run time   hours of `homeostat model=qwen2.5_0.5b scale=gpu12`, from what was measured

A part that fails says why in a sentence and the others go on; what no longer fits into the time is
listed as skipped. The exit status is 1 if a part has failed or a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_records import Budget, Record, run_parts, table, verdict

SPARE_S = 10.0  # of the time, for the table and the end of the process
NOT_A_GPU = (
    "No GPU has run this: CPU, shrunken shapes. It shows that the parts run, not how fast or large."
)


def describe(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on, JSON-ready."""
    on_gpu = device.type == "cuda"
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "device_gb": torch.cuda.get_device_properties(device).total_memory / 1e9
        if on_gpu
        else None,
        "run_on_a_gpu": on_gpu,
        "tiny": options.tiny,
        "minutes": options.minutes,
        "threads": torch.get_num_threads(),
    }
    return about | {name: version(name) for name in ("torch", "transformers", "peft")}


def free_memory() -> None:
    """Let go of what a part has left; a failed one's tensors hang in the frames of its error."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse_options() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="shrunken shapes, for a CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--json", type=Path, help="file for all figures, rewritten after each part")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if options.device == "auto":
        options.device = "cuda" if has_gpu else "cpu"
    if options.device == "cuda" and not has_gpu:
        parser.error("there is no CUDA device here; --device cpu --tiny shrinks what a CPU can run")
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU the shapes must be shrunk: --device cpu --tiny")
    return options


def main() -> int:
    """Run all parts, print the table; returns the exit status."""
    options = parse_options()
    began = psutil.Process().create_time()
    budget = Budget(60 * options.minutes - SPARE_S - (time.time() - began))
    try:
        from gpu_parts import make_parts
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is missing; pip install -e . brings what homeostat needs.")
    device = torch.device(options.device)
    about = describe(device, options)

    def tell(records: Sequence[Record]) -> None:
        free_memory()
        newest = records[-1]
        print(f"{newest.seconds:6.1f} s  {newest.name}: {newest.status}", file=sys.stderr)
        if options.json is None:
            return
        state = {
            "seconds": time.time() - began,
            "complete": len(records) == len(parts),
            "failed_or_missed": sum(record.is_bad for record in records),
            "skipped": sum(record.status.startswith("skipped") for record in records),
            "parts": [asdict(record) for record in records],
        }
        options.json.write_text(json.dumps(about | state, indent=1) + "\n")

    parts = make_parts(device, options.tiny)
    records = run_parts(parts, budget, tell)
    if device.type != "cuda":
        print(NOT_A_GPU)
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    print("\n".join([*table(records), verdict(records)]))
    return int(any(record.is_bad for record in records))


if __name__ == "__main__":
    sys.exit(main())
