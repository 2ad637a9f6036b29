"""Measures how an update's seconds and memory grow with its episodes and with their length.

python scripts/bench_scale.py [--json] [--figure PATH] [--dtype float32|bfloat16|auto]

PPO as in bench_trl.py on the embedded model, an epoch of one optimiser step: 8, 32, 128 episodes of
24 tokens, then 8 episodes of 24, 96 and 384 tokens. Each size has a process of its own, which
makes one update to warm up and one that counts; its peak is that of its resident memory. The slope
is that of a line through the logarithms: 1 is linear growth.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from bench_trl import SIZES, prepare

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, StrMethodFormatter

SIDES: dict[str, list[tuple[int, int]]] = {  # (episodes, tokens of a reply)
    "episodes": [(8, 24), (32, 24), (128, 24)],
    "tokens": [(8, 24), (8, 96), (8, 384)],
}

TICKS = (8, 32, 128, 512)


def one(episodes: int, new_tokens: int, dtype: str) -> dict[str, Any]:
    """The second update of one size, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = argparse.Namespace(
            trainer="ppo",
            dtype=dtype,
            trl_dtype="float32",
            template="chat",
            episodes=episodes,
            new_tokens=new_tokens,
            repeats=1,
        )
        prepare(folder, options)
        path = folder / "homeostat.json"
        task = json.loads(path.read_text()) | {"epochs": 1, "minibatches": 1}
        path.write_text(json.dumps(task))
        script = Path(__file__).parent / "bench_trl_homeostat.py"
        done = subprocess.run(
            [sys.executable, str(script), str(path)],
            input="\n\n",
            capture_output=True,
            text=True,
            check=True,
        )
    report = json.loads(done.stdout.splitlines()[-1])
    return {"episodes": episodes, "new_tokens": new_tokens, **report}


def slope(rows: list[dict[str, Any]], over: str, key: str) -> float:
    """Of the least-squares line through the logarithms of both."""
    x = [math.log(row[over]) for row in rows]
    y = [math.log(row[key]) for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every size, and the slopes, JSON-ready."""
    sizes = sorted({size for side in SIDES.values() for size in side})
    measured = {}
    for size in sizes:
        measured[size] = one(*size, options.dtype)
        print(f"{size}: {measured[size]['seconds']:.1f} s", file=sys.stderr)
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "steps": SIZES["ppo"] | {"epochs": 1, "minibatches": 1},
    }
    for side, of_side in SIDES.items():
        rows = [measured[size] for size in of_side]
        over = "episodes" if side == "episodes" else "new_tokens"
        slopes = {key: slope(rows, over, key) for key in ("seconds", "peak_bytes")}
        results[side] = {"rows": rows, "slope": slopes}
    return results


def draw(results: dict[str, Any], path: Path) -> None:
    """Seconds and peak memory over both sizes, on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    labels = {"seconds": "seconds per update", "peak_bytes": "peak memory, GB"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        unit = 1e9 if key == "peak_bytes" else 1
        for side, marker in (("episodes", "o"), ("tokens", "s")):
            over = "episodes" if side == "episodes" else "new_tokens"
            rows = results[side]["rows"]
            named = f"{side}, slope {results[side]['slope'][key]:.2f}"
            x = [row[over] for row in rows]
            axis.plot(x, [row[key] / unit for row in rows], marker=marker, label=named)
        axis.set(xscale="log", yscale="log", xlabel="episodes, or tokens of a reply", ylabel=label)
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def table(results: dict[str, Any]) -> list[str]:
    """Lines: one for each size, then the slopes."""
    lines = [f"{'episodes':>9}{'tokens':>8}{'seconds':>9}{'peak GB':>9}"]
    for side in SIDES:
        for row in results[side]["rows"]:
            lines.append(
                f"{row['episodes']:>9}{row['new_tokens']:>8}{row['seconds']:>9.1f}"
                f"{row['peak_bytes'] / 1e9:>9.2f}"
            )
        slopes = results[side]["slope"]
        seconds, peak = slopes["seconds"], slopes["peak_bytes"]
        lines.append(f"slope over {side}: seconds {seconds:.2f}, peak {peak:.2f}")
    return lines


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--figure", type=Path, help="where to draw it, a PNG")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="float32")
    options = parser.parse_args()
    results = measure(options)
    if options.figure:
        draw(results, options.figure)
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
