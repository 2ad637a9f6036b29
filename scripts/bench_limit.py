"""Measures what share of the machine's arithmetic an update uses, part by part.

python scripts/bench_limit.py [--json] [--trainer ppo|grpo] [--dtype float32|bfloat16|auto]

The update of bench_trl.py. The machine's limit is the fastest of several products of matrices in
the shapes of the model's MLP, at the rows of a micro-batch and at those of a decoding step. The
update's products are counted by torch, in an update of its own, so that counting costs the timed
one nothing; the share is what they would take at the limit by what the part took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_trl import SIZES, prepare
from bench_trl_homeostat import make_trainer
from bench_trl_task import read_task
from torch.utils.flop_counter import FlopCounterMode

from homeostat.models.placement import place
from homeostat.timing import Stopwatch

SHAPES = {"micro-batch": (1200, 576, 1536), "decoding": (32, 576, 1536)}
TRIALS = 40


class Counted(Stopwatch):
    """A stopwatch that counts products instead of seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[str, int] = {}
        self.counts = False

    def __call__(self, part: str) -> Any:
        """The part's own context, with a counter in it."""
        return _Part(self, part) if self.counts else super().__call__(part)


class _Part:
    def __init__(self, watch: Counted, part: str) -> None:
        self.watch, self.part = watch, part

    def __enter__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.counter.__exit__(*raised)
        total = self.counter.get_total_flops()
        self.watch.operations[self.part] = self.watch.operations.get(self.part, 0) + total


def matmul_rate(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Operations per second of the fastest of several products."""
    rows, inputs, outputs = shape
    x, w = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    fastest = float("inf")
    for _ in range(TRIALS):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * rows * inputs * outputs / fastest


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, operations and share of every part, JSON-ready."""
    dtype = place("cpu", options.dtype).dtype
    with tempfile.TemporaryDirectory() as name:
        sizes = {"template": "chat", "new_tokens": 48, "repeats": 2, "trl_dtype": "float32"}
        given = vars(options) | sizes | {"episodes": SIZES[options.trainer]["episodes"]}
        prepare(Path(name), argparse.Namespace(**given))
        watch = Counted()
        steps = make_trainer(read_task(str(Path(name) / "homeostat.json")), watch).steps()
        next(steps)
        rates = {name: matmul_rate(shape, dtype) for name, shape in SHAPES.items()}
        before = dict(watch.seconds)
        next(steps)
        seconds = {part: spent - before[part] for part, spent in watch.seconds.items()}
        watch.counts = True
        next(steps)
    parts = {
        part: {
            "seconds": spent,
            "operations": watch.operations[part],
            "limit": "decoding" if part == "generate" else "micro-batch",
        }
        for part, spent in seconds.items()
    }
    for row in parts.values():
        row["share"] = row["operations"] / rates[row["limit"]] / row["seconds"]
    return {
        "trainer": options.trainer,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "operations_per_s": rates,
        "parts": parts,
        "least_seconds": sum(row["share"] * row["seconds"] for row in parts.values()),
        "seconds": sum(seconds.values()),
    }


def table(results: dict[str, Any]) -> list[str]:
    """Lines: the machine's limit, then every part beside it."""
    rates = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in results["operations_per_s"].items())
    lines = [f"{results['trainer']}, {results['dtype']}: limit in GFLOPS: {rates}"]
    for part, row in results["parts"].items():
        lines.append(
            f"{part:<10}{row['seconds']:>7.1f} s{row['operations'] / 1e12:>7.2f} TFLOP  "
            f"{row['share']:.2f} of the limit"
        )
    return [*lines, f"{results['seconds']:.1f} s; at the limit {results['least_seconds']:.1f} s"]


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--trainer", choices=tuple(SIZES), default="ppo")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="float32")
    options = parser.parse_args()
    results = measure(options)
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
