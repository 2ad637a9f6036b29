"""Asks whether one run on two processes could beat two runs side by side.

python scripts/bench_parallel.py [--json] [--rounds 3] [--episodes 24] [override ...]

Seeds are the unit of every claim, so there are always several runs to do. What splitting each of
them over two processes could bring is bounded by measuring, in each round, one after the other:

    alone          one run with all episodes, on one thread
    halves         two processes at once, each with half of the episodes, held-out ones included
    side by side   two whole runs at once, a thread for each

`halves` plus adding up the adapter's gradients of every step (two processes over gloo, measured) is
what a run split by data would take if nothing else had to be exchanged: no advantages normalised
over the batch, no controller, no probes, no checkpoint. A pair of runs takes twice that, or
`side by side` once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

HOMEOSTAT = "import sys; from homeostat.cli import main; sys.exit(main())"
STEPS = 3
ALL_REDUCE = """\
import os, sys, time, torch
import torch.distributed as dist
rank, size, port = map(int, sys.argv[1:])
torch.set_num_threads(1)
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
dist.init_process_group("gloo", rank=rank, world_size=2)
gradient = torch.ones(size)
for _ in range(3):
    dist.all_reduce(gradient)
began = time.perf_counter()
for _ in range(20):
    dist.all_reduce(gradient)
if rank == 0:
    print((time.perf_counter() - began) / 20)
dist.destroy_process_group()
"""


def together(programs: Sequence[Sequence[str]], folder: Path) -> tuple[float, list[str]]:
    """Seconds until programs that are started at once have all ended, and what each has printed.

    Raises:
        RuntimeError: One has failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", *program],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for program in programs
    ]
    said = [one.communicate() for one in started]
    for one, (_, errors) in zip(started, said, strict=True):
        if one.returncode:
            raise RuntimeError(errors[-2000:])
    return time.perf_counter() - began, [out for out, _ in said]


def runs(count: int, episodes: int, overrides: Sequence[str], folder: Path) -> float:
    """Seconds that ``count`` runs at once take, with so many episodes to train on and to test."""
    share = (f"work.episodes={episodes}", f"eval.episodes={episodes}")
    programs = []
    for number in range(count):
        place = f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}"
        seed = f"seed={number}"
        programs.append([HOMEOSTAT, f"trainer.max_steps={STEPS}", *share, seed, place, *overrides])
    return together(programs, folder)[0]


def all_reduce(numbers: int, folder: Path) -> float:
    """Seconds that two processes take to add up so many float32."""
    port = 20000 + os.getpid() % 20000
    programs = [[ALL_REDUCE, str(rank), str(numbers), str(port)] for rank in (0, 1)]
    return float(together(programs, folder)[1][0])


def trained_weights(folder: Path) -> int:
    """How many weights a run in ``folder`` trains."""
    adapter = next(folder.glob("*/adapters/*.safetensors"))
    return sum(tensor.size for tensor in load_file(adapter).values())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The rounds, the gradients' share, and the two ratios."""
    half, rows = options.episodes // 2, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs(1, half, options.overrides, folder)  # fills the cache
        for _ in range(options.rounds):
            row = {
                "alone_s": runs(1, options.episodes, options.overrides, folder),
                "halves_s": runs(2, half, options.overrides, folder),
                "side_by_side_s": runs(2, options.episodes, options.overrides, folder),
            }
            rows.append(row)
            print(", ".join(f"{key} {value:.1f}" for key, value in row.items()), file=sys.stderr)
        weights = trained_weights(folder)
        exchange = all_reduce(weights, folder)
    ratios = {
        "split_speedup": [row["alone_s"] / row["halves_s"] for row in rows],
        "pair_split_over_side_by_side": [2 * r["halves_s"] / r["side_by_side_s"] for r in rows],
    }
    middle = {name: statistics.median(values) for name, values in ratios.items()}
    return {"rounds": rows, "weights": weights, "all_reduce_s": exchange, "ratios": middle}


def main() -> None:
    """Measure, and print lines or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=24, help="per update, and held out")
    parser.add_argument("overrides", nargs="*", help="of the runs")
    results = measure(options := parser.parse_args())
    if options.json:
        print(json.dumps(results, indent=1))
        return
    ratios = results["ratios"]
    print(
        f"a run split in two: at most {ratios['split_speedup']:.2f} times as fast, before "
        f"{results['all_reduce_s'] * 1000:.1f} ms a step for {results['weights']:,} gradients\n"
        f"two runs, each split in two: {ratios['pair_split_over_side_by_side']:.2f} times as long "
        "as side by side"
    )


if __name__ == "__main__":
    main()
