"""Times whole runs of `homeostat` at its defaults, beside another tree's, all else cached.

python scripts/bench_default.py --other PATH [--json] [--repeats 2] [--cold] [overrides ...]

Each tree has a cache of its own, which one run that does not count fills first unless `--caches`
names a folder where it is full; with `--cold` every run begins with an empty one instead. Then
`--repeats` rounds let each make one run, in alternating order, in a process of its own, exec to
exit; a round gives one ratio. Both get the same overrides, such as `dtype=float32`; without any,
each takes its own defaults, and what they have in common is said by the work that summary.json
counts.
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

OURS, THEIRS = "this tree", "other tree"
MAX_SHARE = 0.5
COUNTED = ("steps", "time_s", "peak_rss_mb")


def run(tree: Path, cache: Path, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run from exec to exit: its seconds, and what its summary counts."""
    # Python looks in the working folder first, so that has to be the tree as well.
    environment = {**os.environ, "PYTHONPATH": str(tree), "HOMEOSTAT_CACHE": str(cache)}
    unmirrored = "tracker=none" if (tree / "conf/tracker").is_dir() else "wandb.mode=disabled"
    fixed = [unmirrored, f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "homeostat.cli", *overrides, *fixed]
    started = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"the run of {tree} has failed:\n{done.stderr[-4000:]}")
    summary = json.loads((folder / "summary.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    played = [json.loads(line).get("rollout/response_tokens") for line in lines]
    tokens = None if None in played else sum(played)
    counted = {key: summary[key] for key in COUNTED}
    return {"seconds": seconds, "trained_tokens": tokens, **counted}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every run of both trees, and the ratios of the rounds, JSON-ready."""
    trees = {OURS: Path(__file__).resolve().parents[1], THEIRS: options.other.resolve()}
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as name:
        root, caches = Path(name), options.caches or Path(name)
        full = {tree: options.cold or (caches / tree).is_dir() for tree in trees}
        for number in range(options.repeats + 1):
            for tree in list(trees)[:: 1 if number % 2 else -1]:
                if full[tree] and not number:
                    continue
                folder = root / f"run {number} of {tree}"
                cache = root / f"cache {number} of {tree}" if options.cold else caches / tree
                report = run(trees[tree], cache, folder, options.overrides)
                print(f"round {number}: {tree} {report['seconds']:.0f} s", file=sys.stderr)
                if number:
                    reports[tree].append(report)
    ratios = [
        ours["seconds"] / theirs["seconds"]
        for ours, theirs in zip(reports[OURS], reports[THEIRS], strict=True)
    ]
    return {
        "overrides": options.overrides,
        "cold": options.cold,
        "rounds": options.repeats,
        "runs": reports,
        "share": statistics.median(ratios),
        "share_min": min(ratios),
        "share_max": max(ratios),
        "max_share": MAX_SHARE,
        "met": statistics.median(ratios) <= MAX_SHARE,
    }


def table(results: dict[str, Any]) -> list[str]:
    """Lines: seconds of each tree by part, and the share."""
    lines = [f"homeostat {' '.join(results['overrides'])}, {results['rounds']} rounds"]
    for name, reports in results["runs"].items():
        seconds = [report["seconds"] for report in reports]
        parts = reports[-1]["time_s"].items()
        spent = "   ".join(f"{part} {s:.0f}" for part, s in parts if s >= 1)
        tokens = reports[-1]["trained_tokens"]
        work = "" if tokens is None else f" of {tokens:.0f} tokens in all"
        lines.append(
            f"{name:<11} {statistics.median(seconds):.0f} s ({min(seconds):.0f} to "
            f"{max(seconds):.0f}), {reports[-1]['steps']} steps{work}: {spent}"
        )
    verdict = "met" if results["met"] else "NOT met"
    return [
        *lines,
        f"share {results['share']:.2f} ({results['share_min']:.2f} to {results['share_max']:.2f}), "
        f"at most {results['max_share']}: {verdict}",
    ]


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", type=Path, required=True, help="a checkout of another commit")
    parser.add_argument("--caches", type=Path, help="a folder that keeps the trees' caches")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--cold", action="store_true", help="an empty cache for every run")
    parser.add_argument("--repeats", type=int, default=2, help="rounds after the caches are full")
    parser.add_argument("overrides", nargs="*", help="of the run, such as dtype=float32")
    options = parser.parse_args()
    results = measure(options)
    print(json.dumps(results) if options.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()
